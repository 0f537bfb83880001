"""Layers: a module imports only its own row and the rows above it, and nothing heavy on the way in."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "worldsim"

ROWS = {
    **dict.fromkeys(("types", "config", "plain", "plan", "progress"), 1),
    **dict.fromkeys(("ops", "parallel"), 2),
    "models": 3,
    **dict.fromkeys(("data", "checkpoint"), 4),
    "generate": 5,
    **dict.fromkeys(("train", "evaluate", "bench"), 6),
    **dict.fromkeys(("", "cli", "demo", "envs", "inspect", "play", "worlds"), 7),  # "" is worldsim itself
}
LAZY = {
    *("IPython", "PIL", "ale_py", "array_record", "av", "grain", "gymnasium", "imageio_ffmpeg"),
    *(
        "apache_beam",
        "matplotlib",
        "mediapy",
        "rich",
        "safetensors",
        "starlette",
        "tensorboardX",
        "tensorflow_datasets",
        "tyro",
        "uvicorn",
        "vizdoom",
    ),
}
OWN = {("cli", "tyro"), ("envs", "gymnasium"), ("play", "starlette")}
"""What a folder is about, and so may import at once."""
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path, root=PACKAGE):
    """``ops/haar.py`` -> ``worldsim.ops.haar``; a package is named after its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(("worldsim", *parts)).removesuffix(".__init__")


def row_of(module):
    part = module.removeprefix("worldsim").removeprefix(".").split(".")[0]
    if part not in ROWS:
        raise AssertionError(f"{module} is in no row; give {part!r} one in ROWS")
    return ROWS[part]


def imports(source, module, modules):
    """(line, imported module, at import time?) of every import, those inside functions too."""
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, not lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if modules.get(module) else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".strip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((node.lineno, full if full in modules else base, not lazy))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or inside)

    visit(ast.parse(source), False)
    return found


def climbs(source, module, modules):
    """Imports that lead up the layers, as readable lines."""
    return [
        f"{module}:{line} (row {row_of(module)}) imports {other} (row {row_of(other)})"
        for line, other, _ in imports(source, module, modules)
        if other.split(".")[0] == "worldsim" and row_of(other) > row_of(module)
    ]


def is_cli(path):
    return path.relative_to(PACKAGE).parts[0] in ("cli.py", "cli")


MODULES = {name_of(path): path.name == "__init__.py" for path in FILES}


@pytest.mark.law
def test_no_import_leads_up():
    problems = [line for path in FILES for line in climbs(path.read_text("utf-8"), name_of(path), MODULES)]
    assert not problems, "\n".join(problems)


@pytest.mark.law
@pytest.mark.parametrize(
    "source",
    [
        "import worldsim.train.loop",
        "from worldsim.train import loop",
        "from worldsim import load",
        "from worldsim.models.world import World",
        "def late():\n    from worldsim.generate import rollout",
        "from ..models import world",
        "class A:\n    def f(self):\n        import worldsim.cli",
    ],
)
def test_an_import_that_leads_up_is_seen(source):
    modules = MODULES | dict.fromkeys(("worldsim.models.world", "worldsim.train.loop"), False)
    assert climbs(source, "worldsim.ops.haar", modules)
    assert not climbs(
        "from worldsim import types\nfrom . import rope\nimport numpy", "worldsim.ops.haar", modules
    )


@pytest.mark.law
def test_heavy_packages_are_imported_where_they_are_used():
    problems = [
        f"{path.relative_to(ROOT)}:{line} imports {other} when it is itself imported"
        for path in FILES
        for line, other, early in imports(path.read_text("utf-8"), name_of(path), MODULES)
        if early
        and other.split(".")[0] in LAZY
        and (path.relative_to(PACKAGE).parts[0], other.split(".")[0]) not in OWN
    ]
    assert not problems, "\n".join(problems)


def test_every_imported_package_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (
        project["dependencies"]
        + extras["atari"]
        + extras["doom"]
        + extras["gym"]
        + extras["play"]
        + ["psutil"]
    )
    declared = {re.match(r"[\w.-]+", line)[0].lower().replace("-", "_") for line in lines}
    homes = metadata.packages_distributions()
    undeclared = set()
    for path in FILES:
        for _, other, _ in imports(path.read_text("utf-8"), name_of(path), MODULES):
            top = other.split(".")[0]
            if top in sys.stdlib_module_names or top == "worldsim":
                continue
            known = {top, *homes.get(top, [])}
            if not {name.lower().replace("-", "_") for name in known} & declared:
                undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert not undeclared, sorted(undeclared)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_house_limits(path):
    source = path.read_text("utf-8")
    lines = source.count("\n")
    assert lines <= 350, f"{path}: {lines} lines; a file is one noun of at most 350"
    documented = ast.get_docstring(ast.parse(source))
    assert documented and documented.splitlines()[0].endswith("."), (
        f"{path}: no caption that ends with a period"
    )
    for node in ast.walk(ast.parse(source)):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert; raise an error with the remedy"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert is_cli(path), f"{where}: print outside the command line"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([a for a in arguments if a.arg not in ("self", "cls")])
            assert count <= 8, f"{where}: {node.name} takes {count} arguments; at most 8"
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{where}: {node.name} has {length} lines; split it"
