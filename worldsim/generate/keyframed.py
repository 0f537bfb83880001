"""Extensions whose far frames come first: every n-th chunk as a keyframe, then what lies between.

    known 0 1 2 3, four chunks from keyframe to keyframe, in the order of generation

    keyframes   0 1 2 3 | 7 11 15
    between     7 . 0 1 2 3 | 4 5 6        11 . 4 5 6 7 | 8 9 10       15 . 8 9 10 11 | 12 13 14

Each gap is a rollout of its own, with the keyframe after it pinned; what is left after the last keyframe is
made onward. Backward the same with the signs turned round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Int

from worldsim.generate import rollout
from worldsim.generate.answer import assemble, detail_keys, draw_new
from worldsim.generate.render import tokenize
from worldsim.generate.requests import Generated, Request
from worldsim.generate.rollout import Dials, RolloutState
from worldsim.plan import Plan

if TYPE_CHECKING:
    from worldsim.generate.extend import World


def check_keyframes(every: int, frames_per_chunk: int) -> int:
    """Chunks from a keyframe to the next.

    Raises:
      ValueError: no whole number of them.
    """
    if every < 1 or every % frames_per_chunk:
        raise ValueError(
            f"extend: keyframes {every}; take the frames from one to the next, in {frames_per_chunk}s."
        )
    return every // frames_per_chunk


def extend_keyframed(
    world: World, request: Request, *, every: int, dials: Dials, key: jax.Array, conditions: Any
) -> Generated:
    """Carry out an extension keyframes first.

    Args:
      world: that makes it.
      request: of :func:`worldsim.generate.requests.extend_request`.
      every: chunks from a keyframe to the next.
      dials: of sampling.
      key: of all randomness; a chunk draws by its time, whenever it is made.
      conditions: as :meth:`worldsim.generate.extend.World.extend` takes them.
    """
    plan, f = request.plan, world.config.tokenizer.frames_per_chunk
    known, total = int(plan.known.sum()), len(plan)
    codes = np.zeros((1, total, *world.config.tokenizer.grid), np.int32)
    seen = tokenize(*world.tokenizer, request.frames[None], frames_per_chunk=f)
    codes[:, :known] = seen[:, request.sources[:known]]
    done, state = 0, rollout.start(*world.dynamics, keys=key[None])
    for given, pins, new in _rollouts(known, total, every=every, context=world.config.dynamics.context):
        state, codes[:, new] = _make(
            world, request, codes, rows=(given, new), pins=pins, dials=dials, key=key, conditions=conditions
        )
        done += len(new)
        if world.progress is not None:
            world.progress(done, total - known)
    if state.pinned:  # a keyframe is the last one: who goes on from it sees what is near, as anywhere
        near = np.arange(max(0, total - world.config.dynamics.context), total), np.zeros(0, int)
        state, _ = _make(
            world, request, codes, rows=near, pins=0, dials=dials, key=key, conditions=conditions
        )
    drawing = {"keys": detail_keys(key[None], dials), "refine_steps": int(dials.refine)}
    frames = draw_new(world.renderer, request, codes, **drawing)
    return assemble(request, frames[0], codes[0], state, world.config)


def _rollouts(
    known: int, total: int, *, every: int, context: int
) -> Iterator[tuple[Int[np.ndarray, "g"], int, Int[np.ndarray, "n"]]]:
    """Per rollout the rows that it is given, how many of them are pinned, and those that it makes; rows of
    the plain extension's plan."""
    far = np.arange(known - 1 + every, total, every)
    if len(far):
        yield np.arange(known), 0, far
    ends = [known - 1, *far.tolist()]
    for last, after in zip(ends, [*far.tolist(), total], strict=True):
        new, pinned = np.arange(last + 1, after), [after] if after < total else []
        if len(new):
            before = np.arange(max(0, last + 1 - context + len(pinned)), last + 1)
            yield np.concatenate([np.asarray(pinned, int), before]), len(pinned), new


def _make(
    world: World,
    request: Request,
    codes: Int[np.ndarray, "1 p h w"],
    *,
    rows: tuple[np.ndarray, np.ndarray],
    pins: int,
    dials: Dials,
    key: jax.Array,
    conditions: Any,
) -> tuple[RolloutState, Int[np.ndarray, "1 n h w"]]:
    """One rollout over given rows and new ones: its state, and the codes of the new ones."""
    every, count = np.concatenate(rows), len(rows[0])
    place = np.arange(len(every))
    plan = Plan(request.plan.times[every], place < count, place < pins)
    empty = rollout.start(*world.dynamics, keys=key[None])
    state, made = rollout.run(
        world.dynamics, empty, plan, codes=codes[:, every], dials=dials,
        actions=None if request.actions is None else request.actions[None, every],
        conditions=world.condition_rows(conditions, 1, len(every)),
    )  # fmt: skip
    return state, made[:, count:]
