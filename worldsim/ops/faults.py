"""What is no loop although its ends meet: frames copied, played there and back, or faded into one another.

Each fault is found from the frames alone, as a ring (the first follows the last):

    copied       no step for a third of the ring, or three frames long across the seam
    mirrored     about some frame or gap, what comes after is what came before, run backward
    crossfaded   for three frames things are half there: neither their colour nor what is behind them

Thresholds lie between real video (Pong, sprites, Pong through a tokenizer) and fakes made of it. A world
that does stand still, or in which all things turn back at the same moment, can't be told from a fake.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

FROZEN = 0.02
"""A step below this share of the mean step is none."""
STILL_SHARE, STILL_SEAM = 1 / 3, 3
"""Frozen steps in a row that are a fault: share of the ring, and count where the seam is among them."""
MIRROR = 0.1
"""Mean distance of frames from their mirror images, in units of what is usual so far apart in time. Real
video: 0.4 and more; true loops of few things: 0.13 and more."""
FADED = 0.83
"""Least solidity of three frames in a row, in units of the ring's median. Real video: 0.88 and more."""
FADE_FRAMES = 3
STAYS = 0.05
"""A pixel that changes by less than this share of its largest distance from the median frame stays."""
VISIBLE = 30 / 255
"""Least change of a pixel, summed over channels, in units of the scale, that solidity is taken of."""


def loop_faults(
    frames: Shaped[np.ndarray, "t h w c"],
    real: Sequence[Shaped[np.ndarray, "_ h w c"]] = (),
    *,
    peak: float = 255.0,
) -> list[str]:
    """Which of ``copied``, ``mirrored`` and ``crossfaded`` a loop is; none is what a loop should be.

    Args:
      frames: the loop, on the scale 0 to ``peak``, at least 4 frames.
      real: clips of the same world: standing still for no longer than they do, and two steps, is no fault.
      peak: largest value a pixel can have.
    """
    if len(frames) < 4:
        raise ValueError(f"loop_faults: {len(frames)} frames; it takes at least 4.")
    ring = np.asarray(frames, np.float32)
    found, steps = [], _steps(ring)
    usual = max((_longest(_frozen(_steps(np.asarray(clip, np.float32))[:-1])) for clip in real), default=0)
    if _is_copied(_frozen(steps), usual):
        found.append("copied")
    if not steps.any():
        return found
    if mirror_ratio(ring, peak=peak) < MIRROR:
        found.append("mirrored")
    if fade_ratio(ring, peak=peak) < FADED:
        found.append("crossfaded")
    return found


def mirror_ratio(ring: Shaped[np.ndarray, "t h w c"], *, peak: float = 255.0) -> float:
    """How far a ring is from its mirror image about the best of its axes, over what is usual: 0 is mirrored.

    ``mean |x[i] - x[c - i]| / mean over i of |x[j] - x[j + c - 2i]| for all j``, the least over c.
    """
    n = len(ring)
    flat = _visible(ring, peak)[0].reshape(n, -1)
    apart = np.stack([np.abs(flat - row).mean(1) for row in flat])
    i = np.arange(n)
    by_lag = np.array([apart[i, (i + lag) % n].mean() for lag in i])
    ratios = []
    for axis in range(n):
        image = (axis - i) % n
        moved = image != i
        usual = by_lag[(image - i) % n][moved].mean()
        if usual > 0:
            ratios.append(apart[i, image][moved].mean() / usual)
    return float(min(ratios, default=1.0))


def fade_ratio(ring: Shaped[np.ndarray, "t h w c"], *, peak: float = 255.0) -> float:
    """Least solidity of three frames in a row over the ring's median solidity: far below 1 is a fade.

    A frame's solidity is the product of two shares that are 1 where things are wholly there or not at all:
    how much of their largest distance from the median frame its pixels have, all of it where they keep their
    colour from or to the next frame, weighted by that distance; and the size of its second difference over
    that of the two first differences around it, which a ramp makes 0.
    """
    x, away = _visible(ring, peak)
    most = away.max(0)
    come, go = x - np.roll(x, 1, axis=0), np.roll(x, -1, axis=0) - x
    change = np.abs(come).sum((1, 2, 3)) + np.abs(go).sum((1, 2, 3))
    bend = _share(np.abs(go - come).sum((1, 2, 3)), change)
    stays = np.minimum(np.abs(come).sum(-1), np.abs(go).sum(-1)) < STAYS * most
    full = np.where(stays, 1.0, away / np.maximum(most, 1e-6))
    full = _share((away * full).sum((1, 2)), away.sum((1, 2)))
    solid = bend * full
    window = np.mean([np.roll(solid, -i) for i in range(FADE_FRAMES)], axis=0)
    return float(window.min() / max(float(np.median(solid)), 1e-6))


def _visible(
    ring: Shaped[np.ndarray, "t h w c"], peak: float
) -> tuple[Float[np.ndarray, "t h w c"], Float[np.ndarray, "t h w"]]:
    """A ring less its median frame, and the size of that; 0 where a pixel differs by a bit at most."""
    away = np.asarray(ring, np.float32) - np.median(np.asarray(ring, np.float32), axis=0)
    size = np.abs(away).sum(-1)
    visible = size.max(0) > VISIBLE * peak
    return away * visible[..., None], size * visible


def _share(part: Float[np.ndarray, "t"], whole: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Their ratio per frame; 1 where there is next to nothing of the whole."""
    enough = whole > 0.1 * np.median(whole)
    return np.where(enough, part / np.where(enough, whole, 1.0), 1.0)


def _steps(ring: Float[np.ndarray, "t h w c"]) -> Float[np.ndarray, "t"]:
    """From each frame to the next, the last to the first."""
    return np.abs(np.roll(ring, -1, axis=0) - ring).mean((1, 2, 3))


def _frozen(steps: Float[np.ndarray, "s"]) -> Bool[np.ndarray, "s"]:
    return steps <= FROZEN * (steps.mean() if len(steps) else 0.0)


def _longest(flags: Bool[np.ndarray, "s"]) -> int:
    """The longest run."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def _is_copied(frozen: Bool[np.ndarray, "t"], usual: int) -> bool:
    """Whether a ring stands still for longer than a real one; its last step is the one over the seam."""
    n = len(frozen)
    if frozen.all():
        return True
    longest = _longest(np.concatenate([frozen, frozen]))
    over_seam = _longest(np.flip(frozen).cumprod() > 0) + _longest(frozen.cumprod() > 0) if frozen[-1] else 0
    if usual:
        return longest > usual + 2
    return longest >= max(STILL_SEAM, STILL_SHARE * n) or over_seam >= STILL_SEAM
