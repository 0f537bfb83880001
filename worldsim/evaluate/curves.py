"""Curves over horizon: PSNR and SSIM beside copying, with bands; and what actions are worth."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from worldsim.evaluate.bands import band, single
from worldsim.evaluate.play import Answer
from worldsim.ops import scores
from worldsim.ops.scores import PSNR_CAP

ACTION_HORIZONS = (1, 4, 16)
WINDOW = 11
"""Smallest side of frames that SSIM can judge."""

_ssim = jax.jit(scores.ssim)


def psnr_rows(
    frames: UInt8[np.ndarray, "n h H W c"], truth: UInt8[np.ndarray, "n h H W c"]
) -> Float[np.ndarray, "n h"]:
    """PSNR of each frame of each clip, in dB, capped."""
    return np.stack([scores.psnr(a, b, cap=PSNR_CAP) for a, b in zip(frames, truth, strict=True)])


def ssim_rows(
    frames: UInt8[np.ndarray, "n h H W c"], truth: UInt8[np.ndarray, "n h H W c"]
) -> Float[np.ndarray, "n h"] | None:
    """SSIM of each frame of each clip; None where frames are smaller than its window."""
    if min(frames.shape[2:4]) < WINDOW:
        return None
    floats = lambda a: a.astype(np.float32)
    return np.stack([_ssim(floats(a), floats(b)) for a, b in zip(frames, truth, strict=True)])


def curve(answer: Answer, *, seed: int = 0) -> dict[str, Any]:
    """PSNR and SSIM over the frames of an answer, counted from the known end.

    Returns:
      Per score: ``mean``, ``low``, ``high`` (band over clips of the mean of all samples); ``best``, the mean
      over clips of the sample that is best on average over the whole horizon; ``copy``, the nearest known
      frame repeated, with its band ``copy_low`` and ``copy_high``.
    """
    out: dict[str, Any] = {}
    for name, score in (("psnr", psnr_rows), ("ssim", ssim_rows)):
        copied = score(answer.copy, answer.truth)
        if copied is None:
            continue
        rows = np.stack([score(frames, answer.truth) for frames in answer.frames])  # type: ignore[arg-type]
        best = rows[rows.mean(-1).argmax(0), np.arange(rows.shape[1])]
        copy = {f"copy_{key}": row for key, row in band(copied, seed=seed).items()}
        copy["copy"] = copy.pop("copy_mean")
        out[name] = {**band(rows.mean(0), seed=seed), "best": best.mean(0), **copy}
    return out


def action_gain(answer: Answer, steered: UInt8[np.ndarray, "n h H W c"], *, seed: int = 0) -> dict[str, Any]:
    """PSNR with the true actions less PSNR with wrong ones, from the same frames and the same key.

    Args:
      answer: ``forward``; its first sample is compared.
      steered: the same under wrong actions.

    Returns:
      Per horizon in ``ACTION_HORIZONS`` that there is: the gain averaged over the frames up to it, and ``at``
      it, each with its band over clips.
    """
    count = steered.shape[1]
    truth = answer.truth[:, :count]
    gain = psnr_rows(answer.frames[0][:, :count], truth) - psnr_rows(steered, truth)
    return {
        str(h): {**single(gain[:, :h].mean(1), seed=seed), "at": single(gain[:, h - 1], seed=seed)}
        for h in ACTION_HORIZONS
        if h <= count
    }
