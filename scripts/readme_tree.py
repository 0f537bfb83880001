"""Print the captioned tree of the package, or refresh it in the README with ``--write``."""

import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- tree -->\n", "<!-- /tree -->"
TOP = ("types.py", "config", "plain.py", "plan.py", "progress.py", "ops", "parallel", "models", "data")
TOP += ("checkpoint.py", "generate", "train", "evaluate", "bench", "cli", "inspect", "demo.py", "worlds")


def caption(path: Path) -> str:
    """First line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not text:
        raise SystemExit(f"{path}: no module docstring; its first line is the caption in the README's tree.")
    return text.splitlines()[0].removesuffix(".")


def tree(package: Path = ROOT / "worldsim") -> str:
    """The package as lines ``name   caption``, in the order of the layers."""
    lines = [("worldsim/", caption(package / "__init__.py"))]

    def place(path: Path) -> tuple[int, str]:
        return (TOP.index(path.name) if path.name in TOP else len(TOP), path.name)

    for path in sorted(package.iterdir(), key=place):
        if path.suffix == ".py" and path.name != "__init__.py":
            lines.append((f"  {path.name}", caption(path)))
        elif (path / "__init__.py").is_file():
            lines.append((f"  {path.name}/", caption(path / "__init__.py")))
            inner = sorted(p for p in path.glob("*.py") if p.name != "__init__.py")
            lines += [(f"    {p.name}", caption(p)) for p in inner]
    width = max(len(name) for name, _ in lines) + 2
    return "".join(f"{name:<{width}}{text}\n" for name, text in lines)


def refreshed(readme: str) -> str:
    """The README with the tree between its markers renewed."""
    if START not in readme or END not in readme:
        raise SystemExit(f"README.md: the markers {START.strip()} and {END} are missing.")
    before, rest = readme.split(START, 1)
    return f"{before}{START}```text\n{tree()}```\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="refresh README.md instead of printing")
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        readme.write_text(refreshed(readme.read_text("utf-8")), "utf-8")
    else:
        print(tree(), end="")


if __name__ == "__main__":
    main()
