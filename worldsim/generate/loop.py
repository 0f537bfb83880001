"""Loops that hold: candidates, sweeps over single chunks, and the world's own score of a closing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt

from worldsim.config import WorldConfig
from worldsim.generate import rollout
from worldsim.generate.check import condition_rows
from worldsim.generate.render import tokenize
from worldsim.generate.requests import Closing, Generated, Request, by_chunk
from worldsim.generate.ring import WIDE, Looker, Ring
from worldsim.generate.rollout import Dials, RolloutState
from worldsim.ops.faults import loop_faults
from worldsim.ops.scores import motion_ratio
from worldsim.plan import Plan

if TYPE_CHECKING:
    from worldsim.generate.extend import World

APART = 4
"""Chunks of one ring that are drawn again at the same time lie at least this far apart."""
SHORTEST = 4
"""Chunks of a clip whose own scores say something, and frames of a loop that can have faults."""
NO_TIME = 0x7FC00000
"""Bits of a float32 that is no number: streams of keys to which no chunk's time leads."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """What is spent on a loop.

    Attributes:
      candidates: loops drawn, of which the one is kept whose least likely chunk is most likely.
      sweeps: how often each generated chunk is then drawn again with all others in view.
    """

    candidates: int = 4
    sweeps: int = 2

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.sweeps < 0:
            raise ValueError(
                f"loop: {self.candidates} candidates and {self.sweeps} sweeps; take at least 1 and 0."
            )


def branches(keys: Array, count: int) -> Array:
    """``[b count]`` streams of keys; the first of each clip is its own."""
    tags = jnp.uint32(NO_TIME) + jnp.arange(1, count, dtype=jnp.uint32)
    more = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, tags)
    return jnp.concatenate([keys[:, None], more], axis=1)


@jax.jit
def _chunk_keys(keys: Array, sweep: UInt[Array, ""], times: Float[Array, "n"]) -> Array:
    """The stream of each of n chunks in a sweep, from that of its loop and its time."""
    fold, tag = jax.random.fold_in, jnp.uint32(NO_TIME + 2**20) + sweep
    bits = jax.lax.bitcast_convert_type(times, jnp.uint32)
    return jax.vmap(lambda key, bit: fold(fold(key, tag), bit))(keys, bits)


def apart(order: Sequence[int], total: int) -> list[np.ndarray]:
    """Chunks of a ring in groups to draw at once, none nearer than ``APART`` to another of its own.

    The first of the order is in the first group, and so on as far as that goes.
    """
    groups: list[list[int]] = []
    for chunk in map(int, order):
        fits = lambda group, own=chunk: all(APART <= (own - one) % total <= total - APART for one in group)
        home = next((group for group in groups if fits(group)), None)
        if home is None:
            groups.append(home := [])
        home.append(chunk)
    return [np.asarray(group) for group in groups]


def sweep(
    looker: Looker, ring: Ring, groups: Sequence[np.ndarray], *, keys: Array, number: int, dials: Dials
) -> Ring:
    """Every chunk of the groups drawn anew once, given all others as they then are.

    Args:
      looker: the dynamics.
      ring: b loops.
      groups: chunks that are drawn at the same time (:func:`apart`).
      keys: ``[b]``, the streams of the loops.
      number: of this sweep; each has streams of its own.
      dials: of sampling.
    """
    codes, b = ring.codes.copy(), len(ring.codes)
    for group in groups:
        row, place = np.repeat(np.arange(b), len(group)), np.tile(group, b)
        times = jnp.asarray(place * looker.frames, jnp.float32)
        own = _chunk_keys(keys[row], jnp.uint32(number), times)
        now = dataclasses.replace(ring, codes=codes)
        codes[row, place] = looker.redraw(now, row, place, keys=own, dials=dials)
    return dataclasses.replace(ring, codes=codes)


def block_size(count: int) -> int:
    """Chunks in a compiled call for so many at a time: a power of two, so that few shapes compile."""
    return min(WIDE, 1 << (count - 1).bit_length())


def all_nats(looker: Looker, ring: Ring, *, steps: Int[Array, ""]) -> Float[np.ndarray, "b p"]:
    """How surprising every chunk is given all others, in nats a frame."""
    return looker.nats(ring, *ring.places(), steps=steps).reshape(ring.codes.shape[:2])


def within_window(dials: Dials, config: WorldConfig) -> Dials:
    """Dials under which the ends of a loop see each other once they are as near as a window is long.

    What lies farther off a rollout never shows, and training hardly does. A world with ``reach`` has learned
    to read it.
    """
    if config.dynamics.reach:
        return dials
    span = config.dynamics.context * config.tokenizer.frames_per_chunk
    return dataclasses.replace(dials, sight=jnp.float32(span))


def time_order(plan: Plan) -> Int[np.ndarray, "q"]:
    """Rows of a loop's plan that are its chunks in the order of time: all but the anchor."""
    return np.argsort(plan.times)[: len(plan) - int(plan.pinned.sum())]


def sweep_groups(plan: Plan) -> list[np.ndarray]:
    """The generated chunks of a loop in groups to draw at once: where its ends met comes first.

    That is what was drawn last, with both its sides in view but not what came after it.
    """
    rows = time_order(plan)
    last_first = np.argsort(rows)[::-1]
    return apart(last_first[~plan.known[rows[last_first]]].tolist(), len(rows))


def close(
    model: tuple[nnx.GraphDef, Any],
    config: WorldConfig,
    plan: Plan,
    *,
    codes: Int[np.ndarray, "b p h w"],
    keys: Array,
    effort: Effort,
    dials: Dials,
    progress: Callable[[int, int], None] | None = None,
    **extras: Any,
) -> tuple[RolloutState, Int[np.ndarray, "b p h w"], Float[np.ndarray, "b q"]]:
    """Carry out a loop's plan: draw candidates, sweep over them, keep the best of each clip.

    Args:
      model: graph and parameters of the dynamics.
      config: of the world.
      plan: from :func:`worldsim.plan.loop`.
      codes: a row per plan row; those of generated rows are ignored.
      keys: ``[b]``; the first candidate of a clip is what its key alone draws.
      effort: candidates and sweeps.
      dials: of sampling.
      progress: told how many of all drawings and scorings of a chunk are done.
      extras: ``actions`` and ``conditions`` as :func:`worldsim.generate.rollout.run` takes them.

    Returns:
      The state of the rollout that drew the kept candidates; codes of every row of the plan, swept; and how
      surprising each chunk of the finished loops is given all others, in the order of time, in nats a frame.
    """
    b, n = len(codes), effort.candidates
    extras = jax.tree.map(lambda rows: np.repeat(rows, n, axis=0), extras)
    actions, conditions = extras.get("actions"), extras.get("conditions") or {}
    order, groups = time_order(plan), sweep_groups(plan)
    new, total = int((~plan.known).sum()), len(order)
    work = new * (1 + effort.sweeps) + total
    tell = progress or (lambda *_: None)
    streams = branches(keys, n).reshape(-1)
    state, drawn = rollout.run(
        model, rollout.start(*model, keys=streams), plan, codes=np.repeat(codes, n, axis=0), dials=dials,
        progress=None if progress is None else lambda done, _: tell(done, work), **extras,
    )  # fmt: skip
    ring = Ring(
        drawn[:, order],
        None if actions is None else actions[:, order],
        {name: rows[:, order] for name, rows in conditions.items()},
    )
    looker = Looker(model, config, block=block_size(b * n * max(map(len, groups))))
    for number in range(effort.sweeps):
        ring = sweep(looker, ring, groups, keys=streams, number=number, dials=dials)
        tell(new * (2 + number), work)
    nats = all_nats(looker, ring, steps=dials.passes)
    tell(work, work)
    kept = np.arange(b) * n + nats.max(1).reshape(b, n).argmin(1)
    drawn[:, order] = ring.codes
    state = dataclasses.replace(
        state, cache=jax.tree.map(lambda a: a[kept], state.cache), keys=state.keys[kept]
    )
    return state, drawn[kept], nats[kept]


def judged(world: World, request: Request, made: Generated, nats: np.ndarray, **asked: Any) -> Generated:
    """A loop with its closing, compared with the clip that it was asked of.

    Args:
      world: that made it.
      request: whose ``clip`` is that clip.
      made: the loop.
      nats: ``[q]``, from :func:`close`.
      asked: ``dials`` and ``conditions`` of the loop.
    """
    clip, f = request.clip, world.config.tokenizer.frames_per_chunk
    if clip is None:
        raise ValueError("run: an effort is for loops, and this request is none; leave it out.")
    count = len(clip) // f
    codes = tokenize(*world.tokenizer, clip.frames[None, : count * f], frames_per_chunk=f)
    rows = by_chunk(None if clip.actions is None else clip.actions[: count * f], count, world.config)
    given = condition_rows(asked["conditions"], count, world.config)
    ring = Ring(
        codes, None if rows is None else rows[None], {k: v[None] for k, v in given.items()}, closed=False
    )
    looker = Looker(world.dynamics, world.config, block=block_size(count))
    usual = all_nats(looker, ring, steps=asked["dials"].passes)[0] if count >= SHORTEST else np.zeros(0)
    frames = made.clip.frames
    motion = motion_ratio(frames, [clip.frames]) if len(clip) > 1 else None
    faults = loop_faults(frames, [clip.frames]) if len(frames) >= SHORTEST else []
    closing = Closing(nats, usual, motion, tuple(faults))
    return dataclasses.replace(made, closing=closing)
