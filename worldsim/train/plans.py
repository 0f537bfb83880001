"""Which chunks a training sample shows, in which order, and which of them carry loss."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from worldsim import plan as plans
from worldsim.config import MixConfig


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """One sample's plan: positions in its clip, in chunks, in the order of generation.

    Attributes:
      positions: ``[p]``.
      queries: ``[q]``, ascending rows of ``positions`` that carry loss.
    """

    positions: Int[np.ndarray, "p"]
    queries: Int[np.ndarray, "q"]


def sample_plan(rng: np.random.Generator, span: int, *, mix: MixConfig, pinned: int) -> TrainingPlan:
    """Draw a plan over a clip of ``span`` chunks.

    Args:
      rng: the sample's own generator.
      span: chunks in the clip, at least ``mix.chunks``.
      mix: shares of the orders and sizes.
      pinned: the longest suffix that an infill knows.

    Returns:
      A plan of ``mix.chunks`` rows. In half of the infills the known suffix follows at once, in the
      others after a gap of 0 to ``span - mix.chunks`` chunks, so that a window that draws near to its
      end is in distribution.
    """
    n = mix.chunks
    shares = (mix.forward, mix.backward, mix.infill, mix.shuffled, mix.keyframes)
    kind = ("forward", "backward", "infill", "shuffled", "keyframes")[rng.choice(5, p=shares)]
    first = 1
    row = np.arange(n)
    if kind == "infill":
        suffix = int(rng.integers(1, pinned + 1))
        gap = 0 if rng.random() < 0.5 else int(rng.integers(0, span - n + 1))
        row = np.concatenate([n - suffix + gap + np.arange(suffix), np.arange(n - suffix)])
        first = suffix + 1
    elif kind == "backward":
        row = row[::-1]
    elif kind == "shuffled":
        row = rng.permutation(n)
    elif kind == "keyframes":
        row = plans.keyframes(1, n - 1).times.astype(int)
    start = int(rng.integers(0, span - row.max()))
    queries = np.sort(rng.choice(np.arange(first, n), mix.queries, replace=False))
    return TrainingPlan(start + row, queries)
