"""From a rollout's codes to the answer of a verb: frames drawn, with the given ones around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from worldsim.config import WorldConfig
from worldsim.generate import requests, rollout
from worldsim.generate.check import check_actions, chunk_count
from worldsim.generate.options import DIALS
from worldsim.generate.render import HALO, Renderer, render, tokenize
from worldsim.generate.requests import Generated, Request, null_actions
from worldsim.generate.rollout import Dials, RolloutState
from worldsim.plan import Plan, make_plan
from worldsim.types import Actions, Clip

if TYPE_CHECKING:
    from worldsim.generate.extend import World


def detail_keys(keys: jax.Array, dials: Dials) -> jax.Array:
    """The keys of the detail: the clips' own; at temperature 0 key 0, since nothing then depends on a key."""
    return jnp.where(dials.temperature > 0, keys, jax.random.key(0, impl=jax.random.key_impl(keys)))


def take_in(
    world: World,
    asked: Sequence[Request],
    dials: Dials,
    *,
    keys: jax.Array,
    conditions: Mapping[str, Any] | None = None,
) -> tuple[Int[np.ndarray, "b p h w"], RolloutState]:
    """The known chunks of requests that share a plan, in the order of its rows, and the state after them."""
    plan, known = asked[0].plan, int(asked[0].plan.known.sum())
    frames = np.stack([one.frames for one in asked])
    told = [one.actions[:known] for one in asked if one.actions is not None]
    codes = tokenize(*world.tokenizer, frames, frames_per_chunk=world.config.tokenizer.frames_per_chunk)
    codes = codes[:, asked[0].sources[:known]]
    state, _ = rollout.run(
        world.dynamics,
        rollout.start(*world.dynamics, keys=keys),
        Plan(plan.times[:known], plan.known[:known], plan.pinned[:known]),
        codes=codes,
        dials=dials,
        actions=np.stack(told) if told else None,
        conditions=world.condition_rows(conditions, len(asked), known),
    )
    return codes, state


def draw_new(
    renderer: Renderer,
    request: Request,
    codes: Int[np.ndarray, "b p h w"],
    *,
    keys: jax.Array,
    refine_steps: int,
) -> np.ndarray:
    """The frames of a plan's generated rows ``[b t H W c]`` in the order of time, drawn beside the others.

    Args:
      renderer: what draws.
      request: its plan says which rows are which.
      codes: of all rows of the plan.
      keys: ``[b]``, of the detail.
      refine_steps: of the refinement.
    """
    plan, rows = request.plan, np.argsort(request.plan.times)
    if request.cyclic:  # the opening is there once, not again as its own future
        rows = rows[~plan.pinned[rows]]
    new = ~plan.known[rows]
    if not request.cyclic:
        near = np.convolve(np.pad(new, HALO), np.ones(2 * HALO + 1), "valid") > 0
        rows, new = rows[near], new[near]
    window = "cyclic" if request.cyclic else "final"
    made = np.flatnonzero(new)
    span = slice(int(made[0]), int(made[-1]) + 1)  # the others are only seen, as a rule on one side or both
    how = {"refine_steps": refine_steps, "window": window, "only": span}
    drawn = render(renderer, codes[:, rows], plan.times[rows], keys, **how)
    return drawn[:, np.repeat(new[span], renderer.frames_per_chunk)]


def assemble(
    request: Request,
    frames: np.ndarray,
    codes: Int[np.ndarray, "p h w"],
    state: RolloutState,
    config: WorldConfig,
) -> Generated:
    """The given frames around the new ones ``[t H W c]``, with all actions."""
    rows, plan = request.actions, request.plan
    new, old = (np.flatnonzero(which) for which in (~plan.known, plan.known))
    new, old = new[np.argsort(plan.times[new])], old[np.argsort(plan.times[old])]
    fresh = None if rows is None else rows[new].reshape(len(frames), *rows.shape[2:])
    parts = [part for part in (request.before, Clip(frames, fresh), request.after) if part is not None]
    return Generated(
        clip=join(parts, config),
        known=np.concatenate([np.full(len(part), part.frames is not frames) for part in parts]),
        codes=codes[new],
        state=state,
        times=plan.times[new],
        direction=request.direction,
        given_codes=codes[old],
        given_times=plan.times[old],
    )


def lengthen(
    done: Generated,
    plan: Plan,
    codes: Int[np.ndarray, "1 p h w"],
    actions: np.ndarray | None,
    state: RolloutState,
    *,
    renderer: Renderer,
    dials: Dials,
    config: WorldConfig,
) -> Generated:
    """An extension with more chunks at its open end.

    The chunks next to the new ones are drawn again, now that they have neighbours on both sides: the whole
    comes out as if it had been asked for at once.

    Args:
      done: the extension so far.
      plan, codes: of the new chunks, in the order of generation.
      actions: ``[p f ...]`` of the new chunks, or None.
      state: where the rollout stands now.
      renderer: what draws.
      dials: how.
      config: of the world.
    """
    f, onward = config.tokenizer.frames_per_chunk, done.direction == "forward"
    turn = slice(None) if onward else slice(None, None, -1)
    codes, times = codes[0, turn], plan.times[turn]
    fresh = None if actions is None else actions[turn].reshape(-1, *actions.shape[2:])

    def put(old, new):
        return np.concatenate([old, new][turn])

    order = slice(-2 * HALO, None) if onward else slice(0, 2 * HALO)
    pairs = (done.given_codes, done.codes), (done.given_times, done.times)
    near_codes, near_times = (np.concatenate(pair[turn])[order] for pair in pairs)
    shown, keys = put(near_codes, codes)[None], detail_keys(state.keys, dials)
    drawn = render(renderer, shown, put(near_times, times), keys, refine_steps=int(dials.refine))[0]
    again = f * min(HALO, len(done.codes))
    drawn = drawn[f * len(near_codes) - again :] if onward else drawn[: f * len(codes) + again]
    kept = done.clip.frames[: len(done.clip) - again] if onward else done.clip.frames[again:]
    first, last = (drawn[:again], drawn[again:]) if onward else (drawn[-again:], drawn[:-again])
    old = dataclasses.replace(done.clip, frames=put(kept, first))
    return dataclasses.replace(
        done,
        clip=join([old, Clip(last, fresh)][turn], config),
        known=put(done.known, np.zeros(len(last), bool)),
        codes=put(done.codes, codes),
        times=put(done.times, times),
        state=state,
    )


def join(parts: Sequence[Clip], config: WorldConfig) -> Clip:
    """Clips end to end; where some have actions, the others get null ones."""
    fps = next((part.fps for part in parts if part.fps), config.fps)
    said = [null_actions(len(part), config) if part.actions is None else part.actions for part in parts]
    rows = [row for row in said if row is not None]
    actions = np.concatenate(rows) if len(rows) == len(parts) else None
    return Clip(np.concatenate([part.frames for part in parts]), actions, fps=fps)


def go_on(
    world: World, done: Generated, frames: int, actions: Actions | None, options: dict[str, Any]
) -> Generated:
    """More of an extension, from its kept state."""
    dials = world.dials(**{name: options[name] for name in DIALS})
    if done.direction is None:
        raise ValueError("extend: only an extension can go on from its state; give the clip itself instead.")
    check_actions(actions, world.config, frames=frames, verb="extend")
    f, new = world.config.tokenizer.frames_per_chunk, chunk_count(frames, world.config, verb="extend")
    onward = done.direction == "forward"
    last = int((done.times.max() if onward else done.times.min()) // f)
    positions = last + 1 + np.arange(new) if onward else last - 1 - np.arange(new)
    plan = make_plan(np.zeros(0, int), positions, frames_per_chunk=f)
    rows = requests.by_chunk(actions, new, world.config)
    rows = rows if onward or rows is None else rows[::-1]
    blank = np.zeros((1, new, *world.config.tokenizer.grid), np.int32)
    state, codes = rollout.run(
        world.dynamics, rollout.fork(done.state), plan, codes=blank, dials=dials,
        actions=None if rows is None else rows[None], progress=world.progress,
        conditions=world.condition_rows(options["conditions"], 1, new),
    )  # fmt: skip
    return lengthen(done, plan, codes, rows, state, renderer=world.renderer, dials=dials, config=world.config)
