"""Means over clips with bootstrap bands, and figures as strict JSON."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

DRAWS, LEVEL = 1000, 0.9
"""Resamples of the clips, and the share of their means that a band holds."""


def nanmean(rows: np.ndarray, axis: int | tuple[int, ...] | None = None) -> Any:
    """The mean of what is there; NaN, without a warning, where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(rows, axis=axis)


def band(rows: Float[np.ndarray, "n h"], *, seed: int = 0) -> dict[str, Float[np.ndarray, "h"]]:
    """Mean over clips, and how far it would move with other clips (percentile bootstrap).

    Clips are the unit that is drawn again: frames of one clip are not independent of each other.

    Args:
      rows: a figure per clip and frame; NaN where a clip has none.
      seed: of the resampling.

    Returns:
      ``mean``, ``low`` and ``high``; the band holds ``LEVEL`` of the resampled means.
    """
    rng = np.random.default_rng(seed)
    means = np.stack([nanmean(rows[rng.integers(len(rows), size=len(rows))], 0) for _ in range(DRAWS)])
    edge = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanquantile(means, (edge, 1 - edge), axis=0)
    return {"mean": nanmean(rows, 0), "low": low, "high": high}


def single(values: Float[np.ndarray, "n"], *, seed: int = 0) -> dict[str, float]:
    """:func:`band` of one number a clip."""
    return {name: float(row[0]) for name, row in band(values[:, None], seed=seed).items()}


def upto(curve: Any, horizon: int) -> float:
    """Mean of a curve over its first frames."""
    return float(nanmean(np.asarray(curve, float)[:horizon]))


def around(curve: Any, horizon: int, width: int = 4) -> float:
    """Mean of a curve over the ``width`` frames that end at ``horizon``, since one frame is noisy."""
    return float(nanmean(np.asarray(curve, float)[max(0, horizon - width) : horizon]))


def plain(value: Any, digits: int = 5) -> Any:
    """Figures as strict JSON: arrays as lists, rounded, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(name): plain(item, digits) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return round(float(value), digits) if math.isfinite(value) else None
    return value
