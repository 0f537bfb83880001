"""The notebooks run from top to bottom, with their own assertions, and are published as they run."""

import nbformat
import pytest

from scripts import notebooks

SOURCES = notebooks.sources()
NAMES = [source.stem for source in SOURCES]
LARGEST = 2 * 2**20


def pictured(notebook):
    """The cells that show figures or videos."""
    shows = lambda data: "image/png" in data or "<video" in data.get("text/html", "")
    outputs = lambda cell: [output.get("data", {}) for output in cell.get("outputs", [])]
    return [cell.id for cell in notebook.cells if any(map(shows, outputs(cell)))]


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_notebook_runs(source, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLDSIM_FAST", "1")
    notebook = notebooks.run(source, tmp_path)
    assert notebooks.faults(notebook) == []
    assert pictured(notebook) == pictured(nbformat.read(source.with_suffix(".ipynb"), as_version=4))


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_notebook_runs_in_full(source, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLDSIM_FAST", raising=False)
    assert notebooks.faults(notebooks.run(source, tmp_path)) == []


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_what_is_published_is_the_source_executed(source):
    published = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(published)
    cells = lambda notebook: [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells(published) == cells(notebooks.read(source)), "run: make notebooks"
    code = [cell for cell in published.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert len(pictured(published)) >= 5
    assert notebooks.faults(published) == []
    assert not any("execution" in cell.metadata for cell in code)
    assert source.with_suffix(".ipynb").stat().st_size <= LARGEST


def test_faults_are_found():
    shows = lambda **output: nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output(**output)])
    cells = [
        shows(output_type="stream", name="stdout", text="fine"),
        shows(output_type="stream", name="stderr", text="a warning"),
        shows(output_type="stream", name="stdout", text=f"{notebooks.ROOT}/notebooks"),
        shows(output_type="error", ename="ValueError", evalue="no"),
    ]
    found = notebooks.faults(nbformat.v4.new_notebook(cells=cells))
    assert len(found) >= 3 and not any(cells[0].id in line for line in found)


def test_the_readme_lists_all():
    text = (notebooks.ROOT / "README.md").read_text("utf-8")
    assert NAMES and all(f"(notebooks/{name}.ipynb)" in text for name in NAMES)
