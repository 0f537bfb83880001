"""A verb's request, the checked clip as a plan with what is known of each of its chunks; and its answer."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from worldsim import plan as plans
from worldsim.config import WorldConfig
from worldsim.generate.check import check_actions, check_clip, chunk_count
from worldsim.generate.rollout import RolloutState
from worldsim.types import Actions, Clip, Frames

Direction = Literal["forward", "backward"]
DEAR = 2.0
"""Times a clip's mean surprise from which on a loop's is too much."""
RARE = 4.6
"""Nats above a clip's least likely chunk from which on a loop's is rare: a hundred times less likely."""
ALIVE = 0.5
"""Share of a clip's motion below which a loop is none, however well it closes."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a rollout needs, and what its answer is put between.

    Attributes:
      plan: rows in the order of generation.
      frames: uint8 ``[k H W c]``: the chunks that the world sees, end to end.
      sources: ``[p]``: for each known row, its chunk in ``frames``; -1 for rows to generate.
      actions: ``[p f ...]``, null where none is given; None in a world without actions.
      before, after: given frames, returned untouched around the new ones.
      direction: in which the answer can be continued, or None.
      cyclic: its end is followed by its beginning.
      clip: of a loop, what of the clip that it was asked of the world can see at once; with the actions
        only where the loop has been told its own.
    """

    plan: plans.Plan
    frames: Frames
    sources: Int[np.ndarray, "p"]
    actions: np.ndarray | None
    before: Clip | None
    after: Clip | None
    direction: Direction | None = None
    cyclic: bool = False
    clip: Clip | None = None


@dataclasses.dataclass(frozen=True)
class Closing:
    """Whether a loop holds, as its world and its frames say it.

    Attributes:
      nats: ``[q]``: how surprising each of its chunks is given all others, in nats a frame.
      usual: ``[r]``: the same of the chunks of the clip that it opens with, given each other.
      motion: its mean step over the clip's (:func:`worldsim.ops.scores.motion_ratio`); None where the clip
        is a single frame.
      faults: from :func:`worldsim.ops.faults.loop_faults`.
    """

    nats: Float[np.ndarray, "q"]
    usual: Float[np.ndarray, "r"]
    motion: float | None
    faults: tuple[str, ...]

    @property
    def score(self) -> float:
        """Mean surprise of the loop's chunks: it parts lengths that suit a world from others best."""
        return float(self.nats.mean())

    @property
    def worst(self) -> float:
        """Surprise of the least likely chunk: where the loop is hardest to believe."""
        return float(self.nats.max())

    def why(self) -> str:
        """Why this is no good loop; nothing where it is one. A loop that hardly moves is none."""
        reasons = [f"its frames are {fault}" for fault in self.faults]
        if self.motion is not None and self.motion < ALIVE:
            reasons.append(f"it moves {self.motion:.2f} times as much as the clip")
        usual = self.usual if len(self.usual) else np.median(self.nats)
        for what, value, limit in (
            ("a chunk takes", self.score, DEAR * float(np.mean(usual))),
            ("its least likely chunk takes", self.worst, RARE + float(np.max(usual))),
        ):
            if value > limit:
                reasons.append(
                    f"closing is rare at this length: given all others {what} {value:.2f} nats a frame, "
                    f"where up to {limit:.2f} would be usual"
                )
        return "; ".join(reasons)

    def report(self) -> dict[str, Any]:
        """As JSON values; how well it closes always beside how much it moves."""
        return {
            "closing_nats": round(self.score, 4),
            "closing_nats_worst": round(self.worst, 4),
            "clip_nats": round(float(self.usual.mean()), 4) if len(self.usual) else None,
            "clip_nats_worst": round(float(self.usual.max()), 4) if len(self.usual) else None,
            "motion_ratio": None if self.motion is None else round(self.motion, 4),
            "faults": list(self.faults),
            "holds": not self.why(),
        }


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a verb gives back.

    Attributes:
      clip: the whole clip in the order of time; given frames are those that were given.
      known: bool ``[t]``, True where a frame was given.
      codes: ``[p h w]`` of the generated chunks, in the order of time.
      state: where the rollout stands; ``world.extend(generated, ...)`` goes on from it. Nothing goes on
        from a loop: it is how its rollout ended, before any sweep.
      times: float32 ``[p]``, the times of the generated chunks, in frames from the first frame seen.
      direction: in which it can be continued, or None.
      given_codes, given_times: the same of the chunks that the world saw.
      closing: of a loop, whether it holds.
    """

    clip: Clip
    known: np.ndarray
    codes: Int[np.ndarray, "p h w"]
    state: RolloutState
    times: np.ndarray
    direction: Direction | None
    given_codes: Int[np.ndarray, "k h w"]
    given_times: np.ndarray
    closing: Closing | None = None


def null_actions(count: int, config: WorldConfig) -> np.ndarray | None:
    """``[count]`` or ``[count a]`` actions that say nothing; None in a world without actions."""
    action = config.dynamics.action
    if action.kind == "none":
        return None
    if action.kind == "discrete":
        return np.full(count, -1, np.int32)
    return np.full((count, action.size), np.nan, np.float32)


def by_chunk(actions: Actions | None, count: int, config: WorldConfig) -> np.ndarray | None:
    """Actions of ``count`` chunks as rows ``[count f ...]``; null where there are none."""
    f = config.tokenizer.frames_per_chunk
    null = null_actions(count * f, config)
    if null is None:
        return None
    rows = null if actions is None else np.asarray(actions, null.dtype)
    return rows.reshape(count, f, *rows.shape[1:])


def _given(clip: Clip, config: WorldConfig, *, at: Literal["start", "end"], most: int) -> tuple[Clip, int]:
    """The whole chunks of a clip next to where frames are to be made, at most ``most`` of them."""
    f = config.tokenizer.frames_per_chunk
    count = min(len(clip) // f, most)
    return (clip[: count * f] if at == "start" else clip[len(clip) - count * f :]), count


def _stack(parts: list[np.ndarray | None]) -> np.ndarray | None:
    return None if parts[0] is None else np.concatenate(parts)  # type: ignore[arg-type]


def same_plan(one: Request, other: Request) -> bool:
    """Whether two requests can be carried out as one batch."""
    pairs = (
        (one.plan.times, other.plan.times),
        (one.plan.known, other.plan.known),
        (one.plan.pinned, other.plan.pinned),
        (one.sources, other.sources),
    )
    equal = all(np.array_equal(a, b) for a, b in pairs)
    return equal and (one.actions is None) == (other.actions is None)


def extend_request(
    clip: Clip,
    frames: int,
    config: WorldConfig,
    *,
    direction: Direction = "forward",
    actions: Actions | None = None,
    sinks: int = 0,
    verb: str = "extend",
) -> Request:
    """See :meth:`World.extend`; ``verb`` is who asks."""
    check_clip(clip, config, verb=verb)
    check_actions(actions, config, frames=frames, verb=verb)
    if direction not in ("forward", "backward"):
        raise ValueError(f"{verb}: direction {direction!r}; use 'forward' or 'backward'.")
    f = config.tokenizer.frames_per_chunk
    new, onward = chunk_count(frames, config, verb=verb), direction == "forward"
    seen, known = _given(clip, config, at="end" if onward else "start", most=config.dynamics.context)
    if not 0 <= sinks <= (most := min(config.dynamics.pinned, known)):
        raise ValueError(
            f"{verb}: {sinks} sinks; take from 0 to {most}, of {known} chunks seen and "
            f"{config.dynamics.pinned} that may be pinned."
        )
    rows, fresh = by_chunk(seen.actions, known, config), by_chunk(actions, new, config)
    order = np.arange(known) if onward else np.arange(known)[::-1]
    if rows is not None and fresh is not None:
        rows, fresh = rows[order], (fresh if onward else fresh[::-1])
    return Request(
        plan=(plans.forward if onward else plans.backward)(known, new, frames_per_chunk=f, sinks=sinks),
        frames=seen.frames,
        sources=np.concatenate([order, np.full(new, -1)]),
        actions=_stack([rows, fresh]),
        before=clip if onward else None,
        after=None if onward else clip,
        direction=direction,
    )


def infill_request(
    before: Clip, after: Clip, frames: int, config: WorldConfig, *, actions: Actions | None = None
) -> Request:
    """See :meth:`World.infill`."""
    check_clip(before, config, verb="infill")
    if len(after) == 0:
        return extend_request(before, frames, config, actions=actions)
    check_clip(after, config, verb="infill")
    check_actions(actions, config, frames=frames, verb="infill")
    f, new = config.tokenizer.frames_per_chunk, chunk_count(frames, config, verb="infill")
    later, pins = _given(after, config, at="start", most=config.dynamics.pinned)
    earlier, known = _given(before, config, at="end", most=config.dynamics.context - pins)
    return Request(
        plan=plans.infill(known, pins, new, frames_per_chunk=f),
        frames=np.concatenate([earlier.frames, later.frames]),
        sources=np.concatenate([known + np.arange(pins), np.arange(known), np.full(new, -1)]),
        actions=_stack(
            [
                by_chunk(later.actions, pins, config),
                by_chunk(earlier.actions, known, config),
                by_chunk(actions, new, config),
            ]
        ),
        before=before,
        after=after,
    )


def loop_request(clip: Clip, frames: int, config: WorldConfig, *, actions: Actions | None = None) -> Request:
    """See :meth:`World.loop`."""
    check_clip(clip, config, verb="loop")
    check_actions(actions, config, frames=frames, verb="loop")
    f, total = config.tokenizer.frames_per_chunk, chunk_count(frames, config, verb="loop")
    most = min(config.dynamics.pinned, config.dynamics.context // 2)
    opening, pins = _given(clip, config, at="start", most=most)
    if total <= pins:
        raise ValueError(
            f"loop: {frames} frames with an opening of {pins * f}; ask for more than {pins * f} frames or "
            "give a shorter clip."
        )
    shown = clip[: (config.dynamics.context + 1) * f]
    given = by_chunk(opening.actions, pins, config)
    fresh = None if actions is None else np.asarray(actions)[pins * f :]
    if given is not None:  # what led to the first frame is no longer what the recording says
        first = null_actions(1, config) if actions is None else np.asarray(actions)[:1]
        given = given.copy()
        given[0, 0] = first[0]  # type: ignore[index]
        opening = dataclasses.replace(opening, actions=given.reshape(pins * f, *given.shape[2:]))
    plan, start = plans.loop(pins, total, frames_per_chunk=f), np.arange(pins)
    rows = by_chunk(fresh, total - pins, config)
    if rows is not None:
        rows = rows[(plan.times[~plan.known] // f).astype(int) - pins]
    return Request(
        plan=plan,
        frames=opening.frames,
        sources=np.concatenate([start, start, np.full(total - pins, -1)]),
        actions=_stack([given, given, rows]),
        before=opening,
        after=None,
        cyclic=True,
        clip=dataclasses.replace(shown, actions=None) if actions is None else shown,
    )
