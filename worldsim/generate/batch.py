"""Several requests as one batch: the same verb on many clips, or many futures of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from worldsim.generate import loop as loops
from worldsim.generate import requests, rollout
from worldsim.generate.answer import assemble, detail_keys, draw_new, take_in
from worldsim.generate.options import DIALS
from worldsim.generate.render import tokenize
from worldsim.generate.requests import Generated, Request
from worldsim.generate.rollout import Dials, RolloutState
from worldsim.plan import Plan

if TYPE_CHECKING:
    from worldsim.generate.extend import World


def run_batch(
    world: World,
    batch: Sequence[Request],
    dials: Dials,
    *,
    keys: jax.Array,
    conditions: Mapping[str, Any] | None = None,
    effort: loops.Effort | None = None,
) -> list[Generated]:
    """See :meth:`worldsim.generate.extend.World.run`."""
    plan, sources = batch[0].plan, batch[0].sources
    if any(not requests.same_plan(r, batch[0]) for r in batch):
        raise ValueError("run: the requests have different plans; give clips and frames of equal numbers.")
    if batch[0].cyclic:  # it is made from both ends: what works against drift in one direction is left out
        onward = dataclasses.replace(dials, stabilize=jnp.float32(0.0), guidance=None)
        dials = loops.within_window(onward, world.config)
    f = world.config.tokenizer.frames_per_chunk
    seen = tokenize(*world.tokenizer, np.stack([r.frames for r in batch]), frames_per_chunk=f)
    codes = np.where((sources >= 0)[None, :, None, None], seen[:, sources], 0)
    rows = [r.actions for r in batch if r.actions is not None]
    actions = np.stack(rows) if rows else None
    told = {"codes": codes, "actions": actions, "dials": dials, "progress": world.progress}
    told["conditions"] = world.condition_rows(conditions, len(batch), len(plan))
    if effort is None:
        state = rollout.start(*world.dynamics, keys=keys)
        state, codes = rollout.run(world.dynamics, state, plan, **told)
    else:
        state, codes, nats = loops.close(world.dynamics, world.config, plan, keys=keys, effort=effort, **told)
    drawing = {"keys": detail_keys(state.keys, dials), "refine_steps": int(dials.refine)}
    frames = draw_new(world.renderer, batch[0], codes, **drawing)
    made = [
        assemble(request, frames[i], codes[i], rollout.take(state, i), world.config)
        for i, request in enumerate(batch)
    ]
    if effort is None:
        return made
    told = {"dials": dials, "conditions": conditions}
    return [loops.judged(world, r, m, n, **told) for r, m, n in zip(batch, made, nats, strict=True)]


def futures(world: World, request: Request, samples: int, *, options: Mapping[str, Any]) -> list[Generated]:
    """Several answers to one request, of which what is known is read once.

    Each has a copy of the cache that this leaves, since a rollout writes into its own.

    Args:
      world: to run.
      request: of which all known chunks come first, as in those of ``extend``.
      samples: how many answers.
      options: all of them, as :func:`worldsim.generate.options.filled` gives them.

    Raises:
      ValueError: fewer than one sample.
    """
    if samples < 1:
        raise ValueError(f"futures: {samples} samples; take 1 or more.")
    plan, known = request.plan, int(request.plan.known.sum())
    dials = world.dials(**{name: options[name] for name in DIALS})
    keys = jax.random.split(options["key"], samples)
    seen, past = take_in(world, [request], dials, keys=keys[:1], conditions=options["conditions"])
    rows = world.condition_rows(options["conditions"], samples, len(plan))
    rest = Plan(plan.times[known:], plan.known[known:], plan.pinned[known:])
    count = (samples, len(rest), *seen.shape[2:])
    actions = None if request.actions is None else np.stack([request.actions[known:]] * samples)
    state, made = rollout.run(
        world.dynamics,
        _spread(past, keys),
        rest,
        codes=np.zeros(count, seen.dtype),
        actions=actions,
        conditions={name: a[:, known:] for name, a in rows.items()},
        dials=dials,
        progress=world.progress,
    )
    codes = np.concatenate([np.repeat(seen, samples, axis=0), made], axis=1)
    drawing = {"keys": detail_keys(state.keys, dials), "refine_steps": int(dials.refine)}
    frames = draw_new(world.renderer, request, codes, **drawing)
    answers = zip(frames, codes, range(samples), strict=True)
    return [assemble(request, f, c, rollout.take(state, i), world.config) for f, c, i in answers]


def _spread(state: RolloutState, keys: jax.Array) -> RolloutState:
    """The state of one clip as that of as many as there are keys."""
    cache = jax.tree.map(lambda a: jnp.repeat(a, len(keys), axis=0), state.cache)
    return dataclasses.replace(state, cache=cache, keys=keys)
