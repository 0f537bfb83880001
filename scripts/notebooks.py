"""Run the notebooks' sources and write them beside as executed ``.ipynb``.

    python scripts/notebooks.py            # all
    python scripts/notebooks.py 2          # those whose names begin so

A source ``notebooks/NAME.py`` is in the percent format of jupytext. What changes from run to run without
being shown (times of execution, versions, random ids of cells) is left out. A cell that fails, that writes to
stderr or shows a path of this machine ends the run, and the notebook that was there stays.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
SECONDS = 1800
"""Limit of a cell."""
PLACES = (str(ROOT), str(Path.home()), tempfile.gettempdir())
"""What no output names."""


def sources() -> list[Path]:
    """The notebooks' sources, in the order of their numbers."""
    return sorted(FOLDER.glob("[0-9]_*.py"))


def read(source: Path) -> nbformat.NotebookNode:
    """A source as a notebook without outputs."""
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
    kept = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(kept)
    return notebook


def run(source: Path, folder: Path) -> nbformat.NotebookNode:
    """A source executed with ``folder`` as its working folder, worldsim from this checkout.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = read(source)
    kept = notebook.metadata.copy()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": path})
    notebook.metadata = kept  # without the version of Python
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):  # pictures come as JPEG as well
                output["data"].pop("image/jpeg", None)
    return notebook


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """What no published notebook shows: errors, warnings and paths of the machine that made it."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(
                    f"{cell.id}: {output.output_type} {output.get('text', output.get('evalue', ''))}"
                )
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            found += [f"{cell.id}: shows {place}" for place in PLACES if place in text]
    return found


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="beginnings of names; all by default")
    wanted = tuple(parser.parse_args().numbers) or ("",)
    for source in sources():
        if not source.name.startswith(wanted):
            continue
        began = time.perf_counter()
        notebook = run(source, FOLDER)
        if found := faults(notebook):
            raise SystemExit(f"{source.name} shows what it should not:\n" + "\n".join(found))
        out = source.with_suffix(".ipynb")
        nbformat.write(notebook, out)
        size, seconds = out.stat().st_size / 2**10, time.perf_counter() - began
        print(f"{out.relative_to(ROOT)}: {size:.0f} KiB, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
