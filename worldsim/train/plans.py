"""Which chunks a training sample shows, in which order, and which of them carry loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from worldsim import plan as plans
from worldsim.config import MixConfig
from worldsim.ops.visible import PADDING

ORDERS = ("forward", "backward", "infill", "shuffled", "keyframes")


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """A row of chunks: one plan for each of the clips that lie end to end in it, in the order of generation.

        two clips, of 3 and of 4 chunks, in a row of 8 chunks; the second is generated backward

        segments    0  0  0  1  1  1  1 -1
        orders      0  1  2  0  1  2  3  0
        positions   0  1  2  6  5  4  3  0
        queries        1  2        5          of 5 chunks that may be asked for; -1 where there are too few

    Attributes:
      positions: ``[p]``, chunks of the row that the loader cut.
      segments: ``[p]``, the clip of each; -1 is padding.
      orders: ``[p]``, counted from 0 in each segment.
      queries: ``[q]``, ascending rows of ``positions`` that carry loss, then -1.
    """

    positions: Int[np.ndarray, "p"]
    segments: Int[np.ndarray, "p"]
    orders: Int[np.ndarray, "p"]
    queries: Int[np.ndarray, "q"]


def sample_plan(
    rng: np.random.Generator, spans: Sequence[int], *, mix: MixConfig, pinned: int
) -> TrainingPlan:
    """Draw a plan over a row of clips.

    Args:
      rng: the row's own generator.
      spans: chunks in each clip; one clip of ``mix.chunks`` or more fills the row.
      mix: shares of the orders and sizes.
      pinned: the longest suffix that an infill knows.

    Returns:
      A plan of ``mix.chunks`` rows. Clips are shown whole, the last one as far as there is room; one of a
      single chunk has nothing to be asked for. In half of the infills the known suffix follows at once, in
      the others after a gap as long as chunks are left over, so that a window that draws near to its end is
      in distribution.
    """
    positions, segments, orders = (np.full(mix.chunks, value) for value in (0, PADDING, 0))
    asked: list[np.ndarray] = []
    row = start = 0
    for segment, span in enumerate(spans):
        count = min(span, mix.chunks - row)
        if not count:
            break
        order, first = _order(rng, span, count, mix=mix, pinned=pinned)
        here = slice(row, row + count)
        positions[here], segments[here], orders[here] = start + order, segment, np.arange(count)
        asked.append(np.arange(row + first, row + count))
        row, start = row + count, start + span
    choice = np.concatenate(asked)
    drawn = np.sort(rng.choice(choice, min(mix.queries, len(choice)), replace=False))
    queries = np.full(mix.queries, -1)
    queries[: len(drawn)] = drawn
    return TrainingPlan(positions, segments, orders, queries)


def _order(
    rng: np.random.Generator, span: int, count: int, *, mix: MixConfig, pinned: int
) -> tuple[Int[np.ndarray, "n"], int]:
    """Positions of ``count`` chunks of a clip in the order of generation, and where queries begin."""
    kind = ORDERS[rng.choice(len(ORDERS), p=[getattr(mix, name) for name in ORDERS])]
    first = 1
    row = np.arange(count)
    if kind == "infill" and count > 2:
        suffix = int(rng.integers(1, min(pinned, count - 2) + 1))
        gap = 0 if rng.random() < 0.5 else int(rng.integers(0, span - count + 1))
        row = np.concatenate([count - suffix + gap + np.arange(suffix), np.arange(count - suffix)])
        first = suffix + 1
    elif kind in ("forward", "backward"):
        if mix.gaps and span > count > 2 and rng.random() < mix.gaps:
            first = int(rng.integers(1, min(pinned, count - 2) + 1))
            row[first:] += int(rng.integers(1, span - count + 1))
            first += 1  # what a rollout asks for has what is near in view as well
        if kind == "backward":
            row = row.max() - row
    elif kind == "shuffled":
        row = rng.permutation(count)
    elif kind == "keyframes":
        row = plans.keyframes(1, count - 1).times.astype(int)
    return int(rng.integers(0, span - row.max())) + row, first
