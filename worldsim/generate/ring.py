"""One chunk of a finished ring looked at with all the others in view: drawn again, or scored.

The plan that does so has the chunk last and the others before it at t, t - N and t + N, the nearest in time,
without any copy of the chunk itself: as many that follow as a rollout may pin (so many has training shown),
then as many that lead to it. Farther ones were measured to add nothing. A ring of 3 with three of each:

    chunk 1       times relative to it    1  2  4 | -4 -2 -1 |  0
                  chunks                  2  0  2 |  0  2  0 |  1, drawn or scored

Times are relative to the reader, so every chunk of a ring has this one plan with other codes: chunks that lie
far enough apart, and all candidates, are rows of one batch of one compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.config import WorldConfig
from worldsim.generate.rollout import Dials, draw_chunk
from worldsim.models.dynamics import Chunks, Dynamics
from worldsim.ops.attention import KNOWN, QUERY
from worldsim.ops.cached_attention import Part
from worldsim.ops.sampling import certainty, keep_least_certain, masked_after

WIDE = 32
"""Chunks looked at in one compiled call, at most."""


@dataclasses.dataclass(frozen=True)
class Ring:
    """Rows of chunks in the order of time.

    Attributes:
      codes: ``[b p h w]``.
      actions: ``[b p f ...]``, what leads to each frame; or None.
      conditions: per name ``[b p ...]``.
      closed: whether the last chunk is followed by the first; else a row is a piece of a recording.
    """

    codes: Int[np.ndarray, "b p h w"]
    actions: np.ndarray | None
    conditions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    closed: bool = True

    def places(self) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """Row and place of every chunk, row by row."""
        b, p = self.codes.shape[:2]
        return np.repeat(np.arange(b), p), np.tile(np.arange(p), b)

    def chunks(
        self, row: np.ndarray, place: Int[np.ndarray, "n q"], times: np.ndarray, orders: np.ndarray
    ) -> Chunks:
        """The chunks at these places of these rows ``[n]`` in the known stream; ``times [n q]`` in frames."""
        pick = lambda a: jnp.asarray(a[row[:, None], place])
        ids = np.stack(np.broadcast_arrays(0, orders, KNOWN, place)[:3], axis=-1)
        return Chunks(
            codes=pick(self.codes),
            times=jnp.asarray(times, jnp.float32),
            ids=jnp.asarray(ids, jnp.int32),
            noise=jnp.zeros(place.shape, jnp.float32),
            actions=None if self.actions is None else pick(self.actions),
            conditions={name: pick(a) for name, a in self.conditions.items()},
        )


def others(place: int, total: int, *, context: int, after: int, closed: bool) -> Int[np.ndarray, "q"]:
    """How far away the chunks lie that are seen while one is looked at, in the order in which they enter.

    Args:
      place: its own, which matters only where the row is not ``closed``.
      total: chunks of the row.
      context: how many can be seen.
      after: how many of them follow it, as long as enough lie before it.
      closed: the others are seen one round earlier and one round later, too.
    """
    reach = np.arange(1, 2 * total)
    reach = reach[reach % total != 0] if closed else reach[: total - 1]
    late, early = (reach, reach) if closed else (reach[: total - 1 - place], reach[:place])
    seen = min(context, len(late) + len(early))
    count = min(len(late), max(after, seen - len(early)))
    return np.concatenate([late[:count], -early[: seen - count][::-1]]).astype(np.int32)


def surprise(
    model: Dynamics, query: Chunks, past: tuple[Part, ...], steps: Int[Array, ""]
) -> Float[Array, "b"]:
    """Nats with which ``steps`` masked passes, at temperature 1, would draw the codes that a chunk has.

    The chunk is revealed as the sampler does without leads, doubt or revisions: the most certain codes
    first. In as many passes as there are codes this is one order of revealing them one by one, hence exact
    for that order; in fewer, codes that are revealed together count as independent.
    """
    true = rearrange(query.codes, "b 1 h w -> b (h w)")
    h, n = query.codes.shape[2], true.shape[1]

    def reveal(codes, true, logits, left):
        masked = codes == model.mask
        shown = masked & ~keep_least_certain(certainty(logits), masked, left)
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), true[:, None], axis=1)[:, 0]
        return jnp.where(shown, true, codes), -jnp.sum(own, where=shown)

    def one_pass(step, carry):
        codes, nats = carry
        grid = rearrange(codes, "b (h w) -> b 1 h w", h=h)
        logits = model.predict(dataclasses.replace(query, codes=grid), past)
        logits = rearrange(logits, "b 1 h w v -> b (h w) v")
        left = masked_after(step, steps, n)
        codes, more = jax.vmap(reveal, (0, 0, 0, None))(codes, true, logits, left)
        return codes, nats + more

    start = jnp.full_like(true, model.mask), jnp.zeros(len(true), jnp.float32)
    return jax.lax.fori_loop(0, steps, one_pass, start)[1]


@partial(jax.jit, static_argnames="graph")
def redraw_block(
    graph: nnx.GraphDef, params: nnx.State, seen: Chunks, query: Chunks, keys: Array, dials: Dials
) -> Int[Array, "b h w"]:
    """Draw each row's query given what it sees."""
    model = nnx.merge(graph, params)
    return draw_chunk(model, query, model.past(model.remember(seen), query), keys, dials)[:, 0]


@partial(jax.jit, static_argnames="graph")
def surprise_block(
    graph: nnx.GraphDef, params: nnx.State, seen: Chunks, query: Chunks, steps: Int[Array, ""]
) -> Float[Array, "b"]:
    """Score each row's query given what it sees."""
    model = nnx.merge(graph, params)
    return surprise(model, query, model.past(model.remember(seen), query), steps)


@dataclasses.dataclass(frozen=True)
class Looker:
    """A dynamics that looks at single chunks of rings, a fixed number of them in a compiled call.

    Attributes:
      model: graph and parameters.
      config: of the world.
      block: chunks in a call.
    """

    model: tuple[nnx.GraphDef, Any]
    config: WorldConfig
    block: int = WIDE

    @property
    def frames(self) -> int:
        """In a chunk."""
        return self.config.tokenizer.frames_per_chunk

    def look(
        self, ring: Ring, row: Int[np.ndarray, "n"], place: Int[np.ndarray, "n"]
    ) -> Iterator[tuple[np.ndarray, Chunks, Chunks]]:
        """The chunks at these places and what each sees, a block at a time.

        Yields:
          Which of the n a block's rows are (the last is repeated to fill it), what is seen in the known
          stream, and the chunks themselves in the query stream, at time 0.
        """
        total, dynamics = ring.codes.shape[1], self.config.dynamics
        after = dynamics.pinned
        sizes = {"context": min(dynamics.context, 2 * after), "after": after, "closed": ring.closed}
        for start in range(0, len(row), self.block):
            index = np.minimum(start + np.arange(self.block), len(row) - 1)
            away = np.stack([others(int(i), total, **sizes) for i in place[index]])
            seen = ring.chunks(
                row[index], (place[index, None] + away) % total, self.frames * away, np.arange(away.shape[1])
            )
            own = place[index, None]
            query = ring.chunks(row[index], own, np.zeros(own.shape), np.full(1, away.shape[1]))
            yield index, seen, dataclasses.replace(query, ids=query.ids.at[..., 2].set(QUERY))

    def nats(
        self, ring: Ring, row: np.ndarray, place: np.ndarray, *, steps: Int[Array, ""]
    ) -> Float[np.ndarray, "n"]:
        """How surprising chunks are given all others, in nats a frame; see :func:`surprise`."""
        out = np.zeros(len(row))
        blocks = self.look(ring, row, place)
        done = [(index, surprise_block(*self.model, seen, own, steps)) for index, seen, own in blocks]
        for index, nats in done:  # read back only after every block is dispatched
            out[index] = np.asarray(nats) / self.frames
        return out

    def redraw(
        self, ring: Ring, row: np.ndarray, place: np.ndarray, *, keys: Array, dials: Dials
    ) -> Int[np.ndarray, "n h w"]:
        """Chunks drawn anew given all others as they are; ``keys [n]``."""
        out = np.zeros((len(row), *ring.codes.shape[2:]), np.int32)
        blocks = self.look(ring, row, place)
        done = [(i, redraw_block(*self.model, seen, own, keys[i], dials)) for i, seen, own in blocks]
        for index, codes in done:
            out[index] = np.asarray(codes)
        return out
