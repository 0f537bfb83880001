"""The one rollout: masked passes over a chunk against the cache, commit, next row of the plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.generate.prefill import BLOCK, Rows, blocks, prefill
from worldsim.models.cache import Entry, KVCache, no_entry, write
from worldsim.models.dynamics import Chunks, Dynamics
from worldsim.ops.attention import KNOWN, QUERY
from worldsim.ops.cached_attention import Part
from worldsim.ops.sampling import certainty, keep_least_certain, masked_after, revised, sample_codes
from worldsim.plan import Plan

NEAR = 2
"""Chunks of the short past that guidance leads away from."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dials:
    """What a user may turn without a retrace.

    Attributes:
      steps: masked passes in which a chunk's codes are drawn, from 1 to the number of codes in it.
      temperature: of the draws; 0 takes the likeliest and ignores the key.
      refine: steps of the refinement head when frames are drawn; 0 leaves it out.
      stabilize: noise that generated chunks are said to have to those after them.
      guidance: how far to go beyond the logits of the whole past, away from those of its nearest chunks; None
        is not at all, in half the passes.
      doubt: nats that codes which a pass reveals together may lack of certainty; a chunk whose codes
        are all certain takes one pass, and its revisions.
      leads: first passes that reveal the one least certain code each; fewer than ``steps``.
      revisions: passes after those, each of which draws about half of the codes anew, given the others.
      sight: frames beyond which nothing is seen of what was committed.
    """

    steps: Int[Array, ""]
    temperature: Float[Array, ""]
    refine: Int[Array, ""] | int = 0
    stabilize: Float[Array, ""] | float = 0.0
    guidance: Float[Array, ""] | None = None
    doubt: Float[Array, ""] | float = 0.0
    leads: Int[Array, ""] | int = 0
    revisions: Int[Array, ""] | int = 0
    sight: Float[Array, ""] | float = math.inf

    @property
    def passes(self) -> Int[Array, ""]:
        """Over a chunk in all."""
        return self.steps + self.revisions


@dataclasses.dataclass(frozen=True)
class RolloutState:
    """Where a rollout stands: enough to go on exactly as if it had never stopped.

    Attributes:
      cache: committed chunks. It is consumed by going on; :func:`fork` keeps a copy.
      keys: ``[b]``, one per clip; a chunk's stream is folded from its time, so that a clip comes out the
        same in any batch and however its rollout is cut.
      next_order: of the next row.
      ring: slots that have been given out behind the pinned ones.
      pinned: slots that are never given out again.
    """

    cache: KVCache
    keys: Array
    next_order: int
    ring: int
    pinned: int


def start(graph: nnx.GraphDef, params: nnx.State, *, keys: Array) -> RolloutState:
    """An empty cache for as many clips as there are keys."""
    return RolloutState(nnx.merge(graph, params).empty_cache(len(keys)), keys, 0, 0, 0)


def fork(state: RolloutState) -> RolloutState:
    """A copy that can go on beside the original."""
    return dataclasses.replace(state, cache=jax.tree.map(jnp.copy, state.cache))


def take(state: RolloutState, index: int) -> RolloutState:
    """The state of one clip of a batch, as a batch of one."""
    cache = jax.tree.map(lambda a: a[index : index + 1], state.cache)
    return dataclasses.replace(state, cache=cache, keys=state.keys[index : index + 1])


def chunk_keys(keys: Array, time: Float[Array, ""]) -> Array:
    """The random streams of the chunk at this time, one per clip."""
    bits = jax.lax.bitcast_convert_type(time.astype(jnp.float32), jnp.uint32)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, bits)


def _row(rows: Rows, i: Int[Array, ""]) -> Rows:
    """One row of a block, as a block of one."""
    along = lambda axis: lambda a: jax.lax.dynamic_slice_in_dim(a, i, 1, axis)
    return Rows(
        codes=along(1)(rows.codes),
        times=along(0)(rows.times),
        orders=along(0)(rows.orders),
        slots=along(0)(rows.slots),
        real=along(0)(rows.real),
        actions=None if rows.actions is None else along(1)(rows.actions),
        conditions={name: along(1)(a) for name, a in rows.conditions.items()},
    )


def draw_chunk(
    model: Dynamics,
    query: Chunks,
    past: tuple[Part, ...],
    keys: Array,
    dials: Dials,
    *,
    near: tuple[Part, ...] | None = None,
) -> Int[Array, "b 1 h w"]:
    """Draw one chunk's codes in at most ``dials.passes`` masked passes over what it sees of the past.

    Codes of one pass are drawn as if they did not depend on one another. ``dials.revisions`` passes more make
    good for that: each hides about half of the codes and draws them anew given the others, which leaves alone
    what fits together (a corrector: Campbell et al., https://arxiv.org/abs/2205.14987, Lezama et al.,
    "Discrete predictor-corrector diffusion models", 2023). With guidance each pass reads ``near`` too, its
    nearest chunks (history guidance: Song et al., https://arxiv.org/abs/2502.06764).
    """
    b, _, h, w = query.codes.shape

    def reveal(codes, logits, key, step):
        """One clip's codes ``[n]`` after a pass that gave ``logits [n v]``."""
        drawn = sample_codes(logits, jax.random.fold_in(key, step), temperature=dials.temperature)
        masked = codes == model.mask
        left = masked_after(jnp.minimum(step, dials.steps - 1), dials.steps, h * w, leads=dials.leads)
        how = {"doubt": dials.doubt, "lead": step < dials.leads}
        still = keep_least_certain(certainty(logits), masked, left, **how)
        return jnp.where(masked & ~still, drawn, codes)

    def one_pass(carry):
        step, codes = carry
        again = revised(step - dials.steps, h * w)
        codes = jnp.where((step >= dials.steps) & again, model.mask, codes)
        grid = rearrange(codes, "b (h w) -> b 1 h w", h=h)
        asked = dataclasses.replace(query, codes=grid)
        logits = model.predict(asked, past)
        if dials.guidance is not None and near is not None:
            logits = logits + dials.guidance * (logits - model.predict(asked, near))
        logits = rearrange(logits, "b 1 h w v -> b (h w) v")
        codes = jax.vmap(reveal, (0, 0, 0, None))(codes, logits, keys, step)
        step = step + 1
        return jnp.where(jnp.any(codes == model.mask), step, jnp.maximum(step, dials.steps)), codes

    def unfinished(carry):
        return carry[0] < dials.passes

    codes = jnp.full((b, h * w), model.mask, jnp.int32)
    _, codes = jax.lax.while_loop(unfinished, one_pass, (jnp.int32(0), codes))
    return rearrange(codes, "b (h w) -> b 1 h w", h=h)


def generate(
    model: Dynamics, cache: KVCache, row: Rows, keys: Array, dials: Dials
) -> tuple[Int[Array, "b 1 h w"], Entry, dict[str, Float[Array, "b 1 v"]]]:
    """The codes of one row of a plan, what its chunk brings to the cache, and its outcomes."""
    query = row.chunks(stream=QUERY)
    past = model.past(cache, query, sight=dials.sight)  # what a query sees of it, its known chunk sees
    near = None if dials.guidance is None else model.nearest(past, cache, query, count=NEAR)
    codes = draw_chunk(model, query, past, chunk_keys(keys, row.times[0]), dials, near=near)
    known = dataclasses.replace(row, codes=codes).chunks(stream=KNOWN)
    known = dataclasses.replace(known, noise=jnp.full_like(known.noise, dials.stabilize))
    return codes, *model.enter_and_tell(known, past)


@partial(jax.jit, static_argnames="graph", donate_argnames="cache")
def rollout_block(
    graph: nnx.GraphDef, params: nnx.State, cache: KVCache, rows: Rows, keys: Array, dials: Dials
) -> tuple[KVCache, Int[Array, "b r h w"]]:
    """Generate a block of plan rows one after another; padded rows cost nothing.

    What a chunk brings is written to the cache before the next one reads it: a buffer that is first written
    and then read needs no copy.
    """
    model = nnx.merge(graph, params)

    def one_row(i, carry):
        cache, entry, slot, codes = carry
        cache = jax.lax.optimization_barrier(write(cache, entry, slot))
        row = _row(rows, i)
        drawn, entry, _ = generate(model, cache, row, keys, dials)
        codes = jax.lax.dynamic_update_slice_in_dim(codes, drawn, i, axis=1)
        return cache, entry, row.slots, codes

    slots = cache.times.shape[1]
    begin = cache, no_entry(cache), jnp.full((1,), slots), jnp.zeros(rows.codes.shape, jnp.int32)
    cache, entry, slot, codes = jax.lax.fori_loop(0, rows.real.sum(), one_row, begin)
    return write(cache, entry, slot), codes


def dispatch(
    model: tuple[nnx.GraphDef, nnx.State],
    state: RolloutState,
    plan: Plan,
    *,
    codes: Int[np.ndarray, "b p h w"],
    dials: Dials,
    actions: np.ndarray | None = None,
    conditions: dict[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[RolloutState, Callable[[], Int[np.ndarray, "b p h w"]]]:
    """Carry out a plan from a state, without waiting for it: commit its known rows, generate the others.

    Args:
      model: graph and parameters of the dynamics.
      state: where the rollout stands; its cache is consumed.
      plan: rows in the order of generation; times may continue those of an earlier plan.
      codes: a row per plan row; those of generated rows are ignored.
      dials: of sampling.
      actions: ``[b p f ...]`` or None for null actions.
      conditions: per name ``[b p ...]``; those left out are null.
      progress: told how many of all generated chunks are done, one block late.

    Returns:
      The new state, and what waits for the codes of every row of the plan and reads them.

    Raises:
      ValueError: pinned chunks in a plan that continues another, or more than the cache can pin.
    """
    context = state.cache.times.shape[1]
    pins = int(plan.pinned.sum())
    if pins and state.next_order:
        raise ValueError(f"run: {pins} pinned chunks in a plan that goes on from order {state.next_order}.")
    plain = int(plan.known.sum()) - pins
    if plain > context - state.pinned - pins:
        raise ValueError(
            f"run: {plain} known chunks beside {state.pinned + pins} pinned ones in a cache of {context}; "
            "give only the nearest."
        )
    if pins >= context:
        raise ValueError(f"run: {pins} pinned chunks in a cache of {context}; pin at most {context - 1}.")
    pinned = state.pinned + pins
    plan = dataclasses.replace(plan, first_order=state.next_order)
    ring = state.ring + np.cumsum(~plan.pinned) - 1
    slots = np.where(plan.pinned, np.arange(len(plan)), pinned + ring % (context - pinned))
    out = np.array(codes, np.int32)
    cache, extras = state.cache, {"actions": actions, "conditions": conditions or {}, "context": context}
    given = np.flatnonzero(plan.known)
    alone = len(given) > 0 and (  # both bound what is read from the cache alone
        nnx.merge(*model).config.reach > 0 or bool(np.isfinite(dials.sight))
    )
    sight = jnp.float32(dials.sight)
    for _, rows in blocks(plan, slots, given, codes=out, most=1 if alone else BLOCK, **extras):
        cache = prefill(*model, cache, rows, sight)
    drawn, new = [], int((~plan.known).sum())
    for index, rows in blocks(plan, slots, np.flatnonzero(~plan.known), codes=out, **extras):
        cache, block = rollout_block(*model, cache, rows, state.keys, dials)
        if progress is not None and drawn:
            drawn[-1][1].block_until_ready()
            progress(sum(len(done) for done, _ in drawn), new)
        drawn.append((index, block))

    def read() -> np.ndarray:
        for index, block in drawn:
            out[:, index] = np.asarray(block)[:, : len(index)]
        if progress is not None and drawn:
            progress(new, new)
        return out

    state = RolloutState(
        cache,
        state.keys,
        state.next_order + len(plan),
        int(ring[-1]) + 1 if len(plan) else state.ring,
        pinned,
    )
    return state, read


def run(
    model: tuple[nnx.GraphDef, nnx.State], state: RolloutState, plan: Plan, **told: Any
) -> tuple[RolloutState, Int[np.ndarray, "b p h w"]]:
    """The new state, and the codes of every row of a plan; arguments as of :func:`dispatch`."""
    state, read = dispatch(model, state, plan, **told)
    return state, read()
