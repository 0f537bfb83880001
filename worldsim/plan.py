"""The Plan: for each chunk its time, its place in the order of generation, and whether it is known.

Forward, backward, infilling and loops are the same model and the same rollout with other integers:

    forward     0  1  2 |  3  4          what is left of the bar is known
    backward    2  1  0 | -1 -2          (times, in the order in which chunks enter)
    infill      4  5  0  1 |  2  3       suffix first: what was given never changes
    keyframes   0 | 16  8  4 12 ...
    loop        8  9  0  1 |  2  7  3 ... the opening, known twice: at t + N and at t
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

LAST = 2**24
"""The farthest frame from the first one seen that a plan can name."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows in the order of generation.

    Attributes:
      times: ``[p]`` float32, frames; may be negative, fractional or have gaps.
      known: ``[p]``, True where the codes are given; known rows come first.
      pinned: ``[p]``, True where a rollout keeps the chunk for good.
      first_order: the order of the first row; the rest count on from it.
    """

    times: Float[np.ndarray, "p"]
    known: Bool[np.ndarray, "p"]
    pinned: Bool[np.ndarray, "p"]
    first_order: int = 0

    def __post_init__(self) -> None:
        if not len(self.times) == len(self.known) == len(self.pinned):
            raise ValueError(
                f"Plan: {len(self.times)} times, {len(self.known)} known and {len(self.pinned)} pinned; "
                "give one of each per chunk."
            )
        if np.any(~self.known[:-1] & self.known[1:]):
            raise ValueError("Plan: a known chunk comes after a generated one; put all known chunks first.")
        if np.any(self.pinned & ~self.known):
            raise ValueError("Plan: a generated chunk is pinned; only known chunks can be.")
        if np.any(~self.pinned[:-1] & self.pinned[1:]):
            raise ValueError("Plan: a pinned chunk comes after another; put the pinned ones first.")

    def __len__(self) -> int:
        return len(self.times)

    @property
    def orders(self) -> Int[np.ndarray, "p"]:
        """When each row is generated."""
        return self.first_order + np.arange(len(self), dtype=np.int32)


def make_plan(
    known: Int[np.ndarray, "p"],
    new: Int[np.ndarray, "q"],
    *,
    frames_per_chunk: int = 1,
    pinned: int = 0,
) -> Plan:
    """A plan from chunk positions in the order of generation; the first ``pinned`` are kept for good.

    Raises:
      ValueError: a time beyond ``LAST``, from which on float32 knows no single frames.
    """
    positions = np.concatenate([np.asarray(known), np.asarray(new)])
    if len(positions) and (farthest := np.abs(positions).max() * frames_per_chunk) > LAST:
        raise ValueError(
            f"Plan: frame {farthest}; times are float32, whole up to {LAST}; begin anew from the last frames."
        )
    rows = np.arange(len(positions))
    return Plan(
        times=(positions * frames_per_chunk).astype(np.float32),
        known=rows < len(known),
        pinned=rows < pinned,
    )


def forward(known: int, new: int, *, frames_per_chunk: int = 1, sinks: int = 0) -> Plan:
    """``new`` chunks after ``known`` ones at 0, 1, ..., of which the first ``sinks`` are kept for good."""
    times = np.arange(known), known + np.arange(new)
    return make_plan(*times, frames_per_chunk=frames_per_chunk, pinned=sinks)


def backward(known: int, new: int, *, frames_per_chunk: int = 1, sinks: int = 0) -> Plan:
    """``new`` chunks before ``known`` ones at 0, 1, ...; the nearest is generated first. The farthest
    ``sinks`` of the known ones are kept for good."""
    times = np.arange(known)[::-1], -1 - np.arange(new)
    return make_plan(*times, frames_per_chunk=frames_per_chunk, pinned=sinks)


def infill(before: int, after: int, new: int, *, frames_per_chunk: int = 1) -> Plan:
    """``new`` chunks between ``before`` and ``after`` known ones; what lies after enters first, pinned."""
    suffix = before + new + np.arange(after)
    return make_plan(
        np.concatenate([suffix, np.arange(before)]),
        before + np.arange(new),
        frames_per_chunk=frames_per_chunk,
        pinned=after,
    )


def keyframes(known: int, new: int, *, frames_per_chunk: int = 1) -> Plan:
    """``new`` chunks after ``known`` ones, the farthest first, then by halving the largest gaps."""
    last, order = known - 1, []
    gaps = [(last, last + new + 1)]
    if new:
        order.append(last + new)
        gaps = [(last, last + new)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return make_plan(np.arange(known), np.asarray(order, int), frames_per_chunk=frames_per_chunk)


def loop(opening: int, total: int, *, frames_per_chunk: int = 1) -> Plan:
    """A loop of ``total`` chunks whose first ``opening`` are known, at their time and one round later.

    The others are generated from both ends by turns and meet in the middle, so that the step over the seam is
    one that the model has made with both its sides in view.
    """
    if not 1 <= opening < total:
        raise ValueError(f"A loop of {total} chunks with {opening} known ones; give from 1 to {total - 1}.")
    start, middle = np.arange(opening), np.arange(opening, total)
    from_an_end = np.minimum(middle - opening, total - 1 - middle)
    return make_plan(
        np.concatenate([total + start, start]),
        middle[np.argsort(from_an_end, kind="stable")],
        frames_per_chunk=frames_per_chunk,
        pinned=opening,
    )
