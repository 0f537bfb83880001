"""What it is that was given to look at: a world, a dataset or the workdir of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from worldsim.train.metrics import PLAN_FILE

STAGES = ("tokenizer", "refine", "dynamics")
"""In the order in which they are trained."""

Kind = Literal["world", "data", "run"]

_WORLD = ("config.json", "weights.safetensors")
_DATA = "dataset_info.json"


def kind_of(what: str) -> Kind:
    """Which of the three a path or name is; what lies on disk goes before the name of a bundled world.

    Raises:
      FileNotFoundError: none of them; what each would be is told.
    """
    path = Path(what).expanduser()
    if what.startswith("tfds:") or (path.suffix == ".npz" and path.is_file()):
        return "data"
    if path.is_dir():
        if all((path / name).is_file() for name in _WORLD):
            return "world"
        if (path / _DATA).is_file() or any(path.glob(f"*/{_DATA}")):
            return "data"
        if (path / PLAN_FILE).is_file() or any((path / stage).is_dir() for stage in STAGES):
            return "run"
    from worldsim.checkpoint import bundled_worlds  # which brings JAX

    if what in bundled_worlds():
        return "world"
    raise FileNotFoundError(f"inspect: {what} {_why(path)}; {_wanted(list(bundled_worlds()))}")


def _why(path: Path) -> str:
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if not child.name.startswith("."))
        some = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
        return "is an empty folder" if not inside else f"is a folder with {some}, none of what it takes"
    return "is a file that it does not take" if path.exists() else "does not exist"


def _wanted(bundled: list[str]) -> str:
    return (
        f"give a world ({', '.join(bundled) or 'a bundled name'}, or a folder with {' and '.join(_WORLD)}), "
        f"a dataset (a folder with {_DATA} or a version folder that has it, an .npz, or tfds:NAME), or the "
        f"workdir of a training (with {PLAN_FILE} or a folder {', '.join(STAGES[:-1])} or {STAGES[-1]})."
    )
