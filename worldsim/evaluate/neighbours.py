"""Whether a world plays or replays: distance from its frames to the nearest ones of the training set."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from worldsim.evaluate.features import PIECE

HORIZONS = (1, 8, 16, 32, 64)
"""Where frames are taken, as far as a horizon reaches."""


def nearest(
    queries: UInt8[np.ndarray, "n f H W c"], train: UInt8[np.ndarray, "m f H W c"]
) -> Float[np.ndarray, "n"]:
    """Root mean square difference of each clip to its nearest one of a set, on the scale 0 to 255."""
    flat = [a.reshape(len(a), -1).astype(np.float32) for a in (queries, train)]
    x, y = (a - flat[1].mean(0) for a in flat)  # small numbers, so that float32 keeps small distances
    square = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T
    best = np.argmin(square, axis=1)
    return np.sqrt(np.square(flat[0] - flat[1][best]).mean(1))


def neighbour_table(
    made: UInt8[np.ndarray, "n h H W c"],
    truth: UInt8[np.ndarray, "n h H W c"],
    train: UInt8[np.ndarray, "k l H W c"],
) -> dict[str, Any]:
    """Distances of generated and of held-out true frames to a sample of the training set.

    A world that copies its training set lies nearer to it than the truth does: a ratio far below 1, above all
    of clips, is memorising. Above 1 lies what looks like no training frame.

    Returns:
      For ``frames`` and for ``clips`` of ``PIECE`` frames: medians ``made`` and ``truth`` on the scale 0 to
      255, and their ``ratio``; and how many training frames were compared (``sample``).
    """
    ends = [h for h in HORIZONS if h <= made.shape[1]]
    out: dict[str, Any] = {"sample": int(np.prod(train.shape[:2]))}
    for name, length in (("frames", 1), ("clips", PIECE)):
        if train.shape[1] < length or ends[-1] < length:
            continue
        cut = lambda rows, n=length: np.concatenate([rows[:, h - n : h] for h in ends if h >= n])
        pool = np.concatenate([train[:, i : i + length] for i in range(train.shape[1] - length + 1)])
        ours, real = (float(np.median(nearest(cut(rows), pool))) for rows in (made, truth))
        out[name] = {"made": ours, "truth": real, "ratio": ours / real if real else None}
    return out
