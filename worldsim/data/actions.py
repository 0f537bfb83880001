"""Actions beside a recording: ``NAME.actions.npy`` or ``NAME.actions.csv``, a row for every frame.

``actions[t]`` leads from frame t-1 to frame t. Many recorders store the action with the frame that it
follows; ``follow`` shifts those by one row::

    frames    0   1   2   3        frames    0   1   2   3
    stored    a   b   c   d   ->   actions   -   a   b   c
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from worldsim.config import ActionConfig
from worldsim.data.arrays import UNREADABLE
from worldsim.types import Actions

KINDS = (".actions.npy", ".actions.csv")


def actions_file(video: Path) -> Path | None:
    """The file of actions beside a video, or None.

    Raises:
      ValueError: there is an ``.npy`` as well as a ``.csv``.
    """
    found = [path for kind in KINDS if (path := video.with_name(video.stem + kind)).is_file()]
    if len(found) > 1:
        raise ValueError(f"there are both {found[0].name} and {found[1].name}; keep one")
    return found[0] if found else None


def read_rows(path: Path) -> Actions:
    """The rows of a file: int32 ``[t]`` (discrete) or float32 ``[t a]`` (continuous).

    A row of nulls (-1, or nothing but NaN) is allowed at the very beginning only.

    Raises:
      ValueError: unreadable, of another shape or kind, negative, infinite or not a number.
    """
    try:
        rows = _read_npy(path) if path.suffix == ".npy" else _read_csv(path)
    except (*UNREADABLE, csv.Error) as error:
        raise ValueError(f"{path.name} can't be read ({error})") from error
    discrete = rows.dtype.kind in "iu" and rows.ndim == 1
    continuous = rows.dtype.kind == "f" and rows.ndim in (1, 2) and rows.size > 0
    if not discrete and not continuous:
        raise ValueError(
            f"{path.name} holds {rows.dtype} {list(rows.shape)}; give integers [t] or floats [t, size]"
        )
    if discrete:
        if len(rows) and (rows[1:].min(initial=0) < 0 or rows[0] < -1 or rows.max() > 2**20):
            raise ValueError(f"{path.name} has actions under 0 or over 2**20; number them from 0")
        return rows.astype(np.int32)
    rows = rows.reshape(len(rows), -1).astype(np.float32)
    bad = np.any(~np.isfinite(rows), axis=1)
    bad[0] = bad[0] and not np.isnan(rows[0]).all()
    if bad.any():
        raise ValueError(f"{path.name} has a value that is no finite number in row {int(np.argmax(bad))}")
    return rows


def _read_npy(path: Path) -> np.ndarray:
    """One plain array; unlike ``np.load``, no ``.npz`` under another name."""
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_csv(path: Path) -> np.ndarray:
    """Numbers separated by commas; a first line without a single number is a heading."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    if lines and not any(_is_number(cell) for cell in lines[0]):
        lines = lines[1:]
    widths = sorted({len(line) for line in lines})
    if len(widths) != 1:
        raise ValueError(f"rows of {widths or 'no'} cells; give each row the same")
    cells = [[cell.strip() for cell in line] for line in lines]
    if widths == [1] and all(row[0].lstrip("+-").isdigit() for row in cells):
        return np.array([int(row[0]) for row in cells])
    return np.array(cells, np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def kind_of(rows: Actions | None) -> tuple[str, int]:
    """Kind and size: ``("none", 0)``, ``("discrete", 0)`` (any number of them) or ``("continuous", a)``."""
    if rows is None:
        return "none", 0
    return ("discrete", 0) if rows.ndim == 1 else ("continuous", rows.shape[1])


def action_config(kind: tuple[str, int], largest: int, stored: ActionConfig | None) -> ActionConfig:
    """The config of a dataset's actions; discrete ones go up to the largest that was ever seen."""
    match kind[0]:
        case "none":
            return ActionConfig()
        case "continuous":
            return ActionConfig("continuous", kind[1])
        case _:
            return ActionConfig("discrete", max(largest + 1, stored.size if stored else 1))


def null_row(rows: Actions) -> Shaped[np.ndarray, "1 *a"]:
    """One null action of the kind of the rows."""
    return np.full((1, *rows.shape[1:]), -1 if rows.ndim == 1 else np.nan, rows.dtype)


def aligned(rows: Actions, *, follow: bool) -> Actions:
    """The rows as actions that lead to their frame, the first null."""
    return np.concatenate([null_row(rows), rows[:-1] if follow else rows[1:]])


def thinned(rows: Actions, step: int) -> Shaped[np.ndarray, "s *a"]:
    """Actions between each ``step``-th frame, from those between all frames.

    Of the ``step`` actions on the way, continuous ones are averaged, and of discrete ones the most
    frequent stands for all (the latest of equals).
    """
    if step == 1:
        return rows
    ways = [rows[stop - step + 1 : stop + 1] for stop in range(step, len(rows), step)]
    if rows.ndim == 2:
        merged: Sequence[np.ndarray] = [way.mean(0) for way in ways]
    else:
        merged = [np.asarray(_commonest(way)) for way in ways]
    return np.concatenate([null_row(rows), np.array(merged, rows.dtype).reshape(-1, *rows.shape[1:])])


def _commonest(way: np.ndarray) -> int:
    values, counts = np.unique(way[::-1], return_counts=True)
    best = set(values[counts == counts.max()].tolist())
    return next(value for value in way[::-1].tolist() if value in best)
