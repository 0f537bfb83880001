"""The notebooks run from top to bottom, with their own assertions."""

import os
from pathlib import Path

import jupytext
import nbclient
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["first_world"])
def test_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLDSIM_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("<video" in output.get("data", {}).get("text/html", "") for output in shown) == 3
    assert sum("<img" in output.get("data", {}).get("text/html", "") for output in shown) == 2
