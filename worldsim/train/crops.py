"""Where the tokenizer looks: what is unusual in a frame, and squares cut around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from worldsim.data.source import Source
from worldsim.train.state import Batch


def unusual(frames: Float[Any, "*t h w c"], median: Float[Any, "... h w c"]) -> Float[Any, "*t h w"]:
    """How far each pixel in [-1, 1] is from the data's median frame: 0 where the same, 1 where far."""
    return (4.0 * abs(frames - median).max(-1)).clip(0.0, 1.0)


def spaced_frames(
    source: Source, *, records: int = 128, every: int = 8, most: int = 64
) -> Iterator[UInt8[np.ndarray, "t h w c"]]:
    """Frames of evenly spaced records, every eighth of each, or fewer of long ones."""
    for i in np.unique(np.linspace(0, len(source) - 1, records).astype(int)):
        frames = source[int(i)]["frames"]
        yield frames[:: max(every, -(-len(frames) // most))]


def rarity_map(
    parts: Iterable[UInt8[np.ndarray, "t h w c"]], median: UInt8[np.ndarray, "h w c"]
) -> Float[np.ndarray, "h w"]:
    """What an unusual pixel counts at each place: one over how often there is one, at most 100.

    So a ball that may be anywhere draws as many crops as a paddle that keeps to its column.
    """
    total, count = np.zeros(median.shape[:2]), 0
    for frames in parts:
        total += unusual(frames / 127.5, median / 127.5).sum(0)
        count += len(frames)
    return 1.0 / (total / count + 0.01)


def crop_batch(
    clip: Batch,
    median: np.ndarray,
    rarity: np.ndarray,
    *,
    size: int,
    stride: int,
    seed: tuple[int, ...],
    rows: Sequence[int] | None = None,
) -> Batch:
    """Cut a square around an unusual pixel of each clip's first frame.

    Small rare things fill a few of a frame's codes; squares around them show as many in a quarter of the
    work. The square of a row depends on the frames, the seed and the row's number alone.

    Args:
      clip: ``frames [b t h w c]`` uint8.
      median: uint8 ``[h w c]``.
      rarity: from :func:`rarity_map`.
      size: of the squares in pixels, a multiple of ``stride``; 0 leaves frames whole.
      stride: pixels per code: squares start at multiples of it.
      seed: numbers that tell this batch from all others.
      rows: the rows' numbers, counted over all processes; None counts them from 0.

    Returns:
      ``frames [b t size size c]`` and ``corner [b 2]``, the row and column of each square.
    """
    frames = clip["frames"]
    if size == 0:
        return {"frames": frames, "corner": np.zeros((len(frames), 2), np.int32)}
    height, width = median.shape[:2]
    corners = np.zeros((len(frames), 2), np.int32)
    for i, frame in enumerate(frames[:, 0]):
        rng = np.random.default_rng((*seed, i if rows is None else rows[i]))
        mass = unusual(frame / 127.5, median / 127.5) * rarity + 1e-3
        total = np.cumsum(mass)
        pixel = min(int(np.searchsorted(total, rng.random() * total[-1])), total.size - 1)
        for axis, (place, limit) in enumerate(zip(divmod(pixel, width), (height, width), strict=True)):
            low = max(0, -(-(place - size + 1) // stride))
            high = min((limit - size) // stride, place // stride)
            corners[i, axis] = stride * rng.integers(low, high + 1)
    cut = [f[:, y : y + size, x : x + size] for f, (y, x) in zip(frames, corners, strict=True)]
    return {"frames": np.stack(cut), "corner": corners}


def crop_median(
    median: Float[Array, "h w c"], corner: Array, shape: tuple[int, ...]
) -> Float[Array, "b 1 s s2 c"]:
    """The median frame under each square of :func:`crop_batch`."""
    cut = jax.vmap(lambda at: jax.lax.dynamic_slice(median, (at[0], at[1], 0), shape))
    return cut(corner)[:, None]
