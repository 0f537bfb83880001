"""Attention of one shard of queries over one shard of keys, tile by tile, and its gradient.

The pure-JAX block that runs everywhere. Scores exist for one pair of tiles at a time, and pairs of which
the ids say that nothing in them is visible are not visited:

    ids -> bounds of each tile -> which pairs see all, some or nothing of each other
        -> one loop over the pairs that see all (no mask), one over those that see some (masked)

Both loops run over lists of pairs, so that the law of :mod:`worldsim.ops.visible` costs what it shows, in
any layout; tiles are tightest where tokens of a shard are sorted by stream, segment and order. A mask depends
on the pair that the loop has come to, so that no compiler can build all of them before a scan over layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from worldsim.ops.visible import KNOWN, PADDING, UNSEEN, sees

NOTHING, SOME, ALL = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Tiles of queries, or of what is known per query.

    Attributes:
      x: ``[i b g r e]`` arrays: tile, batch, key head, row, width. The rows of a tile are its tokens once per
        query head of the group.
      ids: ``[i b 3 r]``.
    """

    x: tuple[Array, ...]
    ids: Int[Array, "*i b 3 r"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Columns:
    """Tiles of keys and values.

    Attributes:
      k, v: ``[j b g c e]``: tile, batch, key head, column, width.
      ids: ``[j b 3 c]``.
    """

    k: Float[Array, "*j b g c e"]
    v: Float[Array, "*j b g c e"]
    ids: Int[Array, "*j b 3 c"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """What an online softmax has seen so far, per row in float32.

    Attributes:
      out: sum of values under weights ``exp(score - peak)``.
      peak: the highest score.
      total: sum of the weights.
    """

    out: Float[Array, "*i b g r e"]
    peak: Float[Array, "*i b g r"]
    total: Float[Array, "*i b g r"]


def cut_rows(x: Float[Array, "b n h e"], groups: int, tile: int) -> Float[Array, "i b g r e"]:
    """Queries (or their outputs) as tiles of rows; ``n`` divides by ``tile``."""
    return rearrange(x, "b (i t) (g a) e -> i b g (a t) e", t=tile, g=groups)


def join_rows(x: Float[Array, "i b g r e"], tile: int) -> Float[Array, "b n h e"]:
    """The inverse of :func:`cut_rows`."""
    return rearrange(x, "i b g (a t) e -> b (i t) (g a) e", t=tile)


def cut_columns(x: Float[Array, "b n g e"], tile: int) -> Float[Array, "j b g c e"]:
    """Keys or values as tiles of columns; ``n`` divides by ``tile``."""
    return rearrange(x, "b (j c) g e -> j b g c e", c=tile)


def join_columns(x: Float[Array, "j b g c e"]) -> Float[Array, "b n g e"]:
    """The inverse of :func:`cut_columns`."""
    return rearrange(x, "j b g c e -> b (j c) g e")


def cut_ids(ids: Int[Array, "b n 3"], tile: int, *, repeat: int = 1) -> Int[Array, "i b 3 r"]:
    """Ids as tiles, each ``repeat`` times: once per query head of a group."""
    return jnp.tile(rearrange(ids, "b (i t) c -> i b c t", t=tile), (1, 1, 1, repeat))


def relations(
    rows: Int[Array, "i b 3 r"], columns: Int[Array, "j b 3 c"], *, part: int | None = None
) -> Int[Array, "i j"]:
    """What tiles of rows see of tiles of columns: :data:`NOTHING`, :data:`SOME` or :data:`ALL`.

    Read from the least and greatest ids of each tile, or of each ``part`` of it: so many tokens, which divide
    both tiles. It may say ``SOME`` where a look at every pair would say ``NOTHING`` or ``ALL``, never the
    reverse: a tile with the end of one clip and the start of the next seems to hold all orders of both, and
    chunks of two devices' stripes overlap. Parts that are chunks don't. A batch has the relation of its rows
    together.
    """
    if part:
        cut = lambda ids: rearrange(ids, "i b c (p t) -> (i p) b c t", t=part)
        said = relations(cut(rows), cut(columns))
        said = rearrange(said, "(i p) (j s) -> i j (p s)", i=rows.shape[0], j=columns.shape[0])
        return jnp.where(said.min(-1) == ALL, ALL, jnp.minimum(said.max(-1), SOME))
    (low, high, full), (least, most, filled) = _bounds(rows, 1), _bounds(columns, 0)

    def overlap(axis: int) -> Bool[Array, "i j b"]:
        return (low[..., axis] <= most[..., axis]) & (least[..., axis] <= high[..., axis])

    earlier = (least[..., 2] == KNOWN) & (least[..., 1] < high[..., 1])
    some = overlap(0) & (earlier | (overlap(1) & overlap(2)))
    alike = [(low[..., a] == most[..., a]) & (high[..., a] == least[..., a]) for a in range(3)]
    before = (most[..., 2] == KNOWN) & (most[..., 1] < low[..., 1])
    whole = full & filled & alike[0] & (before | (alike[1] & alike[2]))
    return jnp.where(whole.all(-1), ALL, jnp.where(some.any(-1), SOME, NOTHING))


def _bounds(ids: Int[Array, "i b 3 r"], axis: int) -> tuple[Array, Array, Array]:
    """The least and greatest ids of each tile's tokens, and whether none of them is padding.

    Padding may carry any order and stream; a tile of nothing else overlaps with none.
    """
    real = ids[:, :, :1] != PADDING
    limit = jnp.iinfo(ids.dtype).max
    low, high = jnp.where(real, ids, limit).min(-1), jnp.where(real, ids, -limit).max(-1)
    return tuple(jnp.expand_dims(x, axis) for x in (low, high, real.all((2, 3))))  # type: ignore[return-value]


def _over_pairs(relation: Int[Array, "i j"], visit: Callable[[Any, Any, Any, bool], Any], carry: Any) -> Any:
    """``visit(i, j, carry, masked)`` for each pair of tiles that sees something of each other."""
    if relation.size == 1:
        return visit(0, 0, carry, True)
    for kind, masked in ((ALL, False), (SOME, True)):
        chosen = relation == kind
        i, j = jnp.nonzero(chosen, size=relation.size, fill_value=0)
        body = lambda at, carry, i=i, j=j, masked=masked: visit(i[at], j[at], carry, masked)
        carry = jax.lax.fori_loop(0, chosen.sum(), body, carry)
    return carry


def _pick(x: Any, i: Any) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), x)


def _put(x: Any, new: Any, i: Any) -> Any:
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, i, 0), x, new)


def _bias(q_ids: Int[Array, "b 3 n"], k_ids: Int[Array, "b 3 m"], *, turned: bool = False) -> Array:
    """Zero where the law lets a pair of tiles see, :data:`UNSEEN` elsewhere: ``[b n m]``, turned ``[b m n]``.

    Worked out once for all heads behind a branch that is always taken: without it compilers write the law
    into each of its readers, head by head, which on CPUs costs more than all else of a tile.
    """

    def law(q: Array, k: Array) -> Array:
        q, k = jnp.moveaxis(q, 1, 0), jnp.moveaxis(k, 1, 0)
        seen = sees(q[:, :, None], k[..., None]) if turned else sees(q[..., None], k[:, :, None])
        return jnp.where(seen, 0.0, UNSEEN).astype(jnp.float32)

    def never(q: Array, k: Array) -> Array:
        return jnp.zeros_like(law(q, k))

    return jax.lax.cond(q_ids.reshape(-1)[0] >= PADDING, law, never, q_ids, k_ids)


def _dot(pattern: str, *x: Array) -> Array:
    return jnp.einsum(pattern, *x, preferred_element_type=jnp.float32)


def block_forward(rows: Rows, columns: Columns, sums: Sums, *, part: int | None = None) -> Sums:
    """The sums with one more block of keys in them.

    Args:
      rows: ``x`` is the queries.
      columns: the block.
      sums: of the blocks before.
      part: of :func:`relations`.
    """

    def visit(i, j, sums, masked):
        (q,), q_ids = _pick(rows.x, i), rows.ids[i]
        kv, old = _pick(columns, j), _pick(sums, i)
        scores = _dot("bgre,bgce->bgrc", q, kv.k)
        if masked:
            scores = scores + _bias(q_ids, kv.ids)[:, None]
        peak = jnp.maximum(old.peak, scores.max(-1))
        weights = jnp.exp(scores - peak[..., None])
        weights = jax.lax.optimization_barrier(weights)
        fade = jnp.exp(old.peak - peak)
        out = old.out * fade[..., None] + _dot("bgrc,bgce->bgre", weights.astype(kv.v.dtype), kv.v)
        return _put(sums, Sums(out, peak, old.total * fade + weights.sum(-1)), i)

    return _over_pairs(relations(rows.ids, columns.ids, part=part), visit, sums)


def block_backward(
    rows: Rows, columns: Columns, dq: Float[Array, "i b g e r"], *, part: int | None = None
) -> tuple[Float[Array, "i b g e r"], Float[Array, "j b g c e"], Float[Array, "j b g c e"]]:
    """What one block of keys adds to the gradients.

    Args:
      rows: ``x`` is the queries, the gradient of their outputs and, of width 1, the log-sum-exp over *all*
        blocks (0 for rows that see nothing) and the mean of the output's gradient under the weights.
      columns: the block.
      dq: gradient of the queries so far, its rows last, so that no product runs over the first axis of a
        matrix (on CPUs those take twice as long).
      part: of :func:`relations`.

    Returns:
      ``dq`` with this block's part, and the block's own dk and dv, in float32.
    """
    empty = zeros(columns.k), zeros(columns.v)

    def visit(i, j, carry, masked):
        dq, (dk, dv) = carry
        (q, do, lse, mean), q_ids = _pick(rows.x, i), rows.ids[i]
        kv = _pick(columns, j)
        scores = _dot("bgce,bgre->bgcr", kv.k, q)
        if masked:
            scores = scores + _bias(q_ids, kv.ids, turned=True)[:, None]
        weights = jnp.exp(scores - lse[..., 0][:, :, None])
        weights = jax.lax.optimization_barrier(weights)
        slope = _dot("bgce,bgre->bgcr", kv.v, do) - mean[..., 0][:, :, None]
        slope = (weights * slope).astype(q.dtype)
        slope = jax.lax.optimization_barrier(slope)
        more_v = _dot("bgcr,bgre->bgce", weights.astype(do.dtype), do)
        more_k = _dot("bgcr,bgre->bgce", slope, q)
        more_q = _dot("bgec,bgcr->bger", jax.lax.optimization_barrier(kv.k.swapaxes(-1, -2)), slope)
        dq = _put(dq, _pick(dq, i) + more_q, i)
        return dq, (_put(dk, _pick(dk, j) + more_k, j), _put(dv, _pick(dv, j) + more_v, j))

    dq, (dk, dv) = _over_pairs(relations(rows.ids, columns.ids, part=part), visit, (dq, empty))
    return dq, dk, dv


def zeros(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Float32 zeros of the same shape that vary over a mesh as ``x`` does, to start a loop with."""
    return jnp.zeros_like(x, dtype=jnp.float32)


def no_sums(q: Float[Array, "i b g r e"]) -> Sums:
    """Sums that have seen nothing."""
    out = zeros(q)
    return Sums(out, out[..., 0] + UNSEEN / 2, out[..., 0])


def finish(sums: Sums) -> tuple[Float[Array, "i b g r e"], Float[Array, "i b g r"]]:
    """Outputs and log-sum-exps: zero and :data:`UNSEEN` where a row has seen nothing."""
    seen = sums.total > 0
    total = jnp.where(seen, sums.total, 1.0)
    out = jnp.where(seen[..., None], sums.out / total[..., None], 0.0)
    return out, jnp.where(seen, sums.peak + jnp.log(total), UNSEEN)
