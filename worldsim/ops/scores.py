"""Scores of video: PSNR, SSIM, and the seam, jerk and motion ratios of a loop.

Frames are ``[t h w c]`` on a scale of 0 to ``peak`` (255 for uint8). Every ratio is a quotient of mean
absolute frame differences; where a clip stands still a ratio is 0 over nothing: it is given as 0.0 when
the numerator is 0 too (frozen), else as infinity.

A loop's seam lies between its last frame and its first::

    x[n-2]  x[n-1] | x[0]  x[1]
            <- first difference ->       seam ratio:  |x[0] - x[n-1]| / median of the others
    <--------------------> and           jerk ratio:  mean of the two second differences that
            <-------------------->                    touch the seam / median of the others

No score of a seam says anything alone: a still clip closes well. Give the motion ratio beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Array, Float, Shaped

PSNR_CAP = 50.0
"""Decibels at which reports cut off the PSNR, so that one perfect frame does not rule a mean."""


def psnr(
    frames: Shaped[np.ndarray, "t h w c"],
    truth: Shaped[np.ndarray, "t h w c"],
    *,
    peak: float = 255.0,
    cap: float | None = None,
) -> Float[np.ndarray, "t"]:
    """Peak signal-to-noise ratio of each frame, in decibels.

    Args:
      frames, truth: on the scale 0 to ``peak``.
      peak: largest value a pixel can have.
      cap: upper limit of the result; without it a perfect frame scores infinity.
    """
    _same_shape("psnr", frames, truth)
    error = np.asarray(frames, np.float64) - np.asarray(truth, np.float64)
    with np.errstate(divide="ignore"):
        decibels = 10 * np.log10(peak**2 / np.square(error).mean((1, 2, 3)))
    return decibels if cap is None else np.minimum(decibels, cap)


def ssim(
    frames: Shaped[Array | np.ndarray, "*b t h w c"],
    truth: Shaped[Array | np.ndarray, "*b t h w c"],
    *,
    peak: float = 255.0,
    sigma: float = 1.5,
) -> Float[Array | np.ndarray, "*b t"]:
    """Structural similarity (Wang et al. 2004) of each frame, mean over pixels and channels.

    The variant: Gaussian window (11 taps at sigma 1.5), population covariance, ``K = (0.01, 0.03)``,
    and only windows that lie whole inside the frame. Works on NumPy arrays (integers in float64) and,
    jitted or differentiated, on JAX arrays.
    """
    _same_shape("ssim", frames, truth)
    radius = int(3.5 * sigma + 0.5)
    if min(frames.shape[-3:-1]) <= 2 * radius:
        raise ValueError(
            f"ssim: frames of {frames.shape[-3]}x{frames.shape[-2]} are smaller than the window of "
            f"{2 * radius + 1}; take larger frames or a smaller sigma than {sigma}."
        )
    x, y = frames * 1.0, truth * 1.0
    mean_x, mean_y = _blur(x, sigma, radius), _blur(y, sigma, radius)
    var_x = _blur(x * x, sigma, radius) - mean_x * mean_x
    var_y = _blur(y * y, sigma, radius) - mean_y * mean_y
    cov = _blur(x * y, sigma, radius) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((-3, -2, -1))


def frame_differences(frames: Shaped[np.ndarray, "t h w c"]) -> Float[np.ndarray, "s"]:
    """Mean absolute difference of each pair of neighbouring frames: ``t - 1`` numbers (L1 a pixel)."""
    return np.abs(np.diff(np.asarray(frames, np.float64), axis=0)).mean((1, 2, 3))


def seam_ratio(frames: Shaped[np.ndarray, "t h w c"]) -> float:
    """Step over a loop's seam in units of its median step: 1 is ideal, 0 is a frozen seam."""
    _at_least("seam_ratio", frames, 2)
    seam = np.abs(np.asarray(frames[0], np.float64) - frames[-1]).mean()
    return _ratio(seam, np.median(frame_differences(frames)))


def peak_ratio(frames: Shaped[np.ndarray, "t h w c"], *, loop: bool = True) -> float:
    """Largest step in units of the median step: a jump that a loop hides away from its seam shows here.

    Args:
      frames: a loop, or a piece of real play of the same length to compare it with.
      loop: whether the step from the last frame to the first counts.
    """
    _at_least("peak_ratio", frames, 2)
    inside = frame_differences(frames)
    seam = np.abs(np.asarray(frames[0], np.float64) - frames[-1]).mean() if loop else 0.0
    return _ratio(max(seam, inside.max()), np.median(inside))


def jerk_ratio(frames: Shaped[np.ndarray, "t h w c"]) -> float:
    """Change of velocity over a loop's seam in units of its median: 1 is ideal, far above 1 a kick."""
    _at_least("jerk_ratio", frames, 3)
    x = np.asarray(frames, np.float64)
    around = np.concatenate([x[-2:], x[:2]])
    seam = np.abs(np.diff(around, n=2, axis=0)).mean()
    return _ratio(seam, np.median(np.abs(np.diff(x, n=2, axis=0)).mean((1, 2, 3))))


def motion_ratio(
    frames: Shaped[np.ndarray, "t h w c"], real: Sequence[Shaped[np.ndarray, "_ h w c"]]
) -> float:
    """Mean step of a clip over the mean step of real clips: near 1 is alive, near 0 is still.

    Args:
      frames: the clip to judge.
      real: real clips of any lengths; no difference is taken from one clip to the next.
    """
    _at_least("motion_ratio", frames, 2)
    steps = [frame_differences(clip) for clip in real if len(clip) > 1]
    if not steps:
        raise ValueError(
            f"motion_ratio: {len(real)} real clips with no pair of neighbouring frames; "
            "give at least one real clip of 2 frames."
        )
    return _ratio(frame_differences(frames).mean(), np.concatenate(steps).mean())


def _blur(x: Shaped[Array | np.ndarray, "*b h w c"], sigma: float, radius: int) -> Array | np.ndarray:
    """Gaussian mean of the windows that fit: ``h`` and ``w`` shrink by ``2 * radius``."""
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    taps = [tap / sum(taps) for tap in taps]
    height, width = x.shape[-3] - 2 * radius, x.shape[-2] - 2 * radius
    x = reduce(add, (tap * x[..., i : i + height, :, :] for i, tap in enumerate(taps)))
    return reduce(add, (tap * x[..., i : i + width, :] for i, tap in enumerate(taps)))


def _ratio(above: float, below: float) -> float:
    if below > 0:
        return float(above / below)
    return math.inf if above > 0 else 0.0


def _same_shape(name: str, frames: Array | np.ndarray, truth: Array | np.ndarray) -> None:
    if frames.shape != truth.shape:
        raise ValueError(
            f"{name}: frames {list(frames.shape)} against truth {list(truth.shape)}; cut or resize one "
            "so that both have the same shape."
        )


def _at_least(name: str, frames: np.ndarray, count: int) -> None:
    if len(frames) < count:
        raise ValueError(f"{name}: {len(frames)} frames; it takes at least {count}.")


def loop_ratios(
    loops: Sequence[Shaped[np.ndarray, "_ h w c"]], real: Sequence[Shaped[np.ndarray, "_ h w c"]]
) -> dict[str, list[float]]:
    """Each loop's ratios, ``seam``, ``jerk``, ``peak`` and ``motion``: the four functions above.

    Args:
      loops: to judge.
      real: clips to measure their motion by.
    """
    return {
        "seam": [seam_ratio(frames) for frames in loops],
        "jerk": [jerk_ratio(frames) for frames in loops],
        "peak": [peak_ratio(frames) for frames in loops],
        "motion": [motion_ratio(frames, real) for frames in loops],
    }
