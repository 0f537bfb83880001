"""How surprised the world is by the truth: teacher-forced nats per frame, in both directions of time."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from worldsim.data.sprites import SpriteConfig
from worldsim.evaluate.bands import single
from worldsim.evaluate.held_out import HeldOut
from worldsim.generate import requests, rollout
from worldsim.generate.extend import World
from worldsim.generate.render import tokenize
from worldsim.models.cache import KVCache
from worldsim.models.dynamics import Chunks
from worldsim.ops.attention import QUERY
from worldsim.parallel.shares import in_shares
from worldsim.plan import make_plan

QUERIES = 8
"""Chunks of a clip that are judged: those with the longest past that the cache holds."""


@partial(jax.jit, static_argnames="graph")
def surprise(
    graph: nnx.GraphDef, params: nnx.State, cache: KVCache, query: Chunks, ranks: Int[Array, "b p n"]
) -> Float[Array, "b p n"]:
    """Nats of each of a chunk's true codes, one code at a time in the order of ``ranks``.

    Pass i shows the true codes of rank below i and reads off the one of rank i, so that the sum is minus the
    log of a proper distribution over whole chunks: one order is one factorisation, and the mean over random
    orders bounds minus the log of their mixture from above.

    Args:
      cache: the true past of every chunk (who sees what is ruled by the orders in ``query.ids``).
      query: chunks of the query stream with their true codes ``[b p h w]``.
      ranks: a permutation of 0 .. n-1 per chunk, in the row-major order of the codes.
    """
    model = nnx.merge(graph, params)
    h = query.codes.shape[2]
    codes = rearrange(query.codes, "b p h w -> b p (h w)")
    past = model.past(cache, query)

    def one(i, told):
        shown = rearrange(jnp.where(ranks < i, codes, model.mask), "b p (h w) -> b p h w", h=h)
        logits = model.predict(dataclasses.replace(query, codes=shown), past)
        logits = rearrange(logits, "b p h w v -> b p (h w) v")
        here = jnp.argmax(ranks == i, axis=-1)[..., None]
        row = jnp.take_along_axis(logits, here[..., None], axis=2)[:, :, 0]
        code = jnp.take_along_axis(codes, here, axis=-1)
        return jnp.where(ranks == i, -jnp.take_along_axis(jax.nn.log_softmax(row), code, axis=-1), told)

    return jax.lax.fori_loop(0, codes.shape[-1], one, jnp.zeros(codes.shape))


def nats(
    world: World, held: HeldOut, direction: Literal["forward", "backward"], *, seed: int = 0
) -> dict[str, Any]:
    """A bound on the surprise at the true codes of held-out frames, given the true frames before (or after).

    Of each window the first chunks fill the cache; the last ``QUERIES`` of them and one more are judged, each
    by what lies before it in the direction of generation. The windows are spread over all processes.

    Returns:
      ``mean``, ``low``, ``high`` in nats a frame (band over clips), ``frames`` judged, and the fewest and the
      most frames of ``past`` that they were given. On sprites also ``free``, the same three of the codes that
      the pushed sprite can't have had a part in: where it came from, at a wall, nobody can know.
    """
    config, f = world.config, world.config.tokenizer.frames_per_chunk
    chunks = min(config.dynamics.context + 1, held.frames.shape[1] // f)
    order = np.arange(chunks) if direction == "forward" else np.arange(chunks)[::-1]
    past, first = chunks - 1, max(1, chunks - QUERIES)
    rng, count = np.random.default_rng(seed), math.prod(config.tokenizer.grid)
    ranks = rng.permuted(np.broadcast_to(np.arange(count), (len(held), chunks - first, count)), axis=-1)
    keys = jax.random.split(jax.random.key(seed), len(held))
    judged = lambda rows: _judged(world, held, rows, order=order, ranks=ranks[rows], keys=keys[rows])
    codes = in_shares(len(held), judged)
    found: dict[str, Any] = single(codes.sum(-1).mean(1) / f, seed=seed)
    if held.game == "sprites" and held.info is not None:
        apart = _apart(held.truth["state"], SpriteConfig.of(held.info.source), config.tokenizer.grid[0], f)
        counted = apart[:, order[first:]].reshape(codes.shape)
        found["free"] = single((codes * counted).sum(-1).mean(1) / f, seed=seed)
    return found | {"frames": int(codes.shape[0] * codes.shape[1] * f), "past": [first * f, past * f]}


def _apart(
    state: Int[np.ndarray, "n t k 6"], config: SpriteConfig, rows: int, f: int
) -> Bool[np.ndarray, "n p r r"]:
    """The codes of each chunk that are farther from the pushed sprite than it can have come in two steps."""
    size, chunks = config.size / rows, state.shape[1] // f
    edges = np.arange(rows) * size
    place = state[:, : chunks * f, 0, :2, None] - 2 * config.push
    reach = config.side + 4 * config.push
    touched = (edges < place + reach) & (edges + size > place)  # [n t xy r]
    both = touched[:, :, 1, :, None] & touched[:, :, 0, None, :]  # places are (x, y)
    return np.logical_not(both.reshape(len(state), chunks, f, rows, rows).any(axis=2))


def _judged(
    world: World,
    held: HeldOut,
    windows: Int[np.ndarray, "b"],
    *,
    order: Int[np.ndarray, "p"],
    ranks: Int[np.ndarray, "b q n"],
    keys: Array,
) -> Float[np.ndarray, "b q n"]:
    """Nats of the codes of the last q chunks of some windows, whose first chunks enter in this order."""
    config, f = world.config, world.config.tokenizer.frames_per_chunk
    chunks, past = len(order), len(order) - 1
    codes = tokenize(*world.tokenizer, held.frames[windows, : chunks * f], frames_per_chunk=f)
    clips = [held.clip(i)[: chunks * f] for i in windows.tolist()]
    rows = [requests.by_chunk(clip.actions, chunks, config) for clip in clips]
    actions = None if rows[0] is None else np.stack(rows)  # type: ignore[arg-type]
    codes, actions = codes[:, order], None if actions is None else actions[:, order]
    plan = make_plan(order[:past], np.zeros(0, int), frames_per_chunk=f)
    state, _ = rollout.run(
        world.dynamics, rollout.start(*world.dynamics, keys=keys), plan, codes=codes[:, :past],
        actions=None if actions is None else actions[:, :past], dials=world.dials(steps=1),
    )  # fmt: skip
    asked = np.arange(chunks - ranks.shape[1], chunks)
    ids = np.stack([np.zeros_like(asked), asked, np.full_like(asked, QUERY)], -1)
    shape = (len(windows), len(asked))
    query = Chunks(
        codes=jnp.asarray(codes[:, asked], jnp.int32),
        times=jnp.broadcast_to(jnp.asarray(order[asked] * f, jnp.float32), shape),
        ids=jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (*shape, 3)),
        noise=jnp.zeros(shape, jnp.float32),
        actions=None if actions is None else jnp.asarray(actions[:, asked]),
    )
    return np.asarray(surprise(*world.dynamics, state.cache, query, jnp.asarray(ranks, jnp.int32)))
