"""Whether a world plays or replays: distance from its frames to the nearest ones of the training set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from worldsim.evaluate.features import PIECE

HORIZONS = (1, 8, 16, 32, 64)
"""Where frames are taken, as far as a horizon reaches."""

BLOCK = 512
"""Training frames, about, that are compared at a time."""

Frames = UInt8[np.ndarray, "_ H W c"]


def nearest(queries: UInt8[np.ndarray, "n f H W c"], train: Iterable[Frames]) -> Float[np.ndarray, "n"]:
    """Root mean square difference of each clip to its nearest one of a set, on the scale 0 to 255.

    Args:
      queries: clips of f frames.
      train: records, read once; every f neighbouring frames of one are compared, and records of fewer left
        out. Infinite where no record is as long.
    """
    n, f = queries.shape[:2]
    flat = queries.reshape(n * f, -1).astype(np.float32)
    centre = flat.mean(0)  # small numbers, so that float32 keeps small distances
    mine = flat - centre
    best, found = np.full(n, np.inf, np.float32), np.zeros_like(queries)
    for block in _blocks(record for record in train if len(record) >= f):
        frames = np.concatenate(block)
        theirs = frames.reshape(len(frames), -1).astype(np.float32) - centre
        square = np.square(mine).sum(1)[:, None] + np.square(theirs).sum(1)[None] - 2 * mine @ theirs.T
        square = square.reshape(n, f, -1)
        count = len(frames) - f + 1
        clips = np.sum([square[:, i, i : i + count] for i in range(f)], axis=0)
        edges = np.cumsum([len(record) for record in block])[:-1]
        for i in range(1, f):  # clips that would begin in one record and end in the next
            clips[:, edges - i] = np.inf
        at = np.argmin(clips, axis=1)
        less = clips[np.arange(n), at]
        for row in np.flatnonzero(less < best):
            best[row], found[row] = less[row], frames[at[row] : at[row] + f]
    exact = np.sqrt(np.square(flat - found.reshape(n * f, -1)).reshape(n, -1).mean(1))
    return np.where(np.isfinite(best), exact, np.inf)


def _blocks(records: Iterable[Frames]) -> Iterator[list[Frames]]:
    """Records in lists of about ``BLOCK`` frames together."""
    block, size = [], 0
    for record in records:
        block.append(record)
        size += len(record)
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def neighbour_table(
    made: UInt8[np.ndarray, "n h H W c"], truth: UInt8[np.ndarray, "n h H W c"], train: Iterable[Frames]
) -> dict[str, Any]:
    """Distances of generated and of held-out true frames to the training set.

    A world that copies its training set lies nearer to it than the truth does: a ratio far below 1, above all
    of clips, is memorising. Above 1 lies what looks like no training frame.

    Args:
      made: generated frames.
      truth: what really came.
      train: records of the training set; read once for frames and once for clips.

    Returns:
      For ``frames`` and for ``clips`` of ``PIECE`` frames: medians ``made`` and ``truth`` on the scale 0 to
      255, and their ``ratio``; and how many training frames were compared (``compared``).
    """
    ends = [h for h in HORIZONS if h <= made.shape[1]]
    out: dict[str, Any] = {"compared": 0}
    for name, length in (("frames", 1), ("clips", PIECE)):
        if ends[-1] < length:
            continue
        cut = lambda rows, n=length: np.concatenate([rows[:, h - n : h] for h in ends if h >= n])
        ours, real = cut(made), cut(truth)
        seen = 0

        def counted() -> Iterator[Frames]:
            nonlocal seen
            for record in train:
                seen += len(record)
                yield record

        far = nearest(np.concatenate([ours, real]), counted())
        out["compared"] = max(out["compared"], seen)
        if np.isfinite(far).all():
            mine, theirs = (float(np.median(part)) for part in (far[: len(ours)], far[len(ours) :]))
            out[name] = {"made": mine, "truth": theirs, "ratio": mine / theirs if theirs else None}
    return out
