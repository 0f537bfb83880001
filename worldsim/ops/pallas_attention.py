"""The block of :mod:`worldsim.ops.tiled_attention` as fused GPU kernels, written in Pallas.

The same two functions over the same tiles. A program of the forward kernel holds one tile of queries and its
sums in registers and walks down the list of key tiles that it sees; scores never reach memory:

    ids -> relations, row by row of the batch -> lists:   tile of rows 0:   ALL 3 1 | SOME 4
                                                           tile of rows 1:   ALL     | SOME 0
        -> forward and dq: a program a tile of rows; dk and dv: a program a tile of keys, down the columns

Only GPUs compile it (through Triton); elsewhere it is interpreted, slowly, to be tested. Tiles have sides
of powers of two from 16 on, as has the width of a head. Flash attention: Dao, https://arxiv.org/abs/2307.08691.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from worldsim.ops.tiled_attention import ALL, NOTHING, Columns, Rows, Sums, relations, zeros
from worldsim.ops.visible import UNSEEN, law

Tile = Any
"""A reference to memory of a kernel, or a value in its registers."""


def block_forward(rows: Rows, columns: Columns, sums: Sums, *, part: int | None = None) -> Sums:
    """The sums with one more block of keys in them; see :func:`tiled_attention.block_forward`."""
    mine = (*rows.x, rows.ids, sums.out, sums.peak, sums.total)
    lists = _lists(_relations(rows, columns, part))
    return Sums(*_call(_forward_kernel, lists, mine, (columns.k, columns.v, columns.ids), mine[2:]))


def block_backward(
    rows: Rows, columns: Columns, dq: Float[Array, "i b g e r"], *, part: int | None = None
) -> tuple[Float[Array, "i b g e r"], Float[Array, "j b g c e"], Float[Array, "j b g c e"]]:
    """What one block of keys adds to the gradients; see :func:`tiled_attention.block_backward`."""
    q, do, lse, mean = rows.x
    queries = (q, do, lse[..., 0], mean[..., 0], rows.ids)
    keys = (columns.k, columns.v, columns.ids)
    said = _relations(rows, columns, part)
    (more,) = _call(_queries_kernel, _lists(said), queries, keys, (q,))
    dk, dv = _call(_keys_kernel, _lists(said.swapaxes(1, 2)), keys, queries, keys[:2])
    return dq + more.swapaxes(-1, -2), dk, dv


def _call(
    kernel: Callable[..., None],
    lists: tuple[Array, Array],
    mine: tuple[Array, ...],
    others: tuple[Array, ...],
    out: tuple[Array, ...],
) -> tuple[Array, ...]:
    """A program for each tile, row of the batch and key head: ``kernel(*lists, *mine, *others, *out)``.

    It gets references to its own lists, to its own tile of each of ``mine`` and to all tiles of ``others``
    for its row and head; it gives float32 arrays shaped as ``out``.
    """
    tiles, rows, heads, _, width = mine[0].shape

    def spec(own: bool, x: Array) -> pl.BlockSpec:
        shared = jnp.issubdtype(x.dtype, jnp.integer)  # ids: the same for all heads
        shape = (None if own else x.shape[0], None, x.shape[2] if shared else None, *x.shape[3:])
        rest = (0,) * (x.ndim - 3)
        return pl.BlockSpec(shape, lambda i, b, g: (i if own else 0, b, 0 if shared else g, *rest))

    one, all_of = partial(spec, True), partial(spec, False)
    listed = [pl.BlockSpec((None, None, x.shape[2]), lambda i, b, _: (b, i, 0)) for x in lists]
    return pl.pallas_call(
        kernel,
        grid=(tiles, rows, heads),
        in_specs=[*listed, *map(one, mine), *map(all_of, others)],
        out_specs=[one(x) for x in out],
        out_shape=[jax.eval_shape(zeros, x) for x in out],
        compiler_params=triton.CompilerParams(num_warps=4 if width <= 64 else 8, num_stages=2),
        interpret=_interpreted(),
    )(*lists, *mine, *others)


def _forward_kernel(chosen: Tile, count: Tile, *refs: Tile) -> None:
    """One tile of queries over the tiles of keys that it sees."""
    q, q_ids, out, peak, total, k, v, k_ids, *new = refs
    queries, own = q[...], _ids(q_ids)

    def visit(j: Tile, carry: tuple[Tile, ...], masked: bool) -> tuple[Tile, ...]:
        out, peak, total = carry
        scores = _dot(queries, k[j], trans_b=True)
        if masked:
            scores = jnp.where(_seen(own, _ids(k_ids, j)), scores, UNSEEN)
        higher = jnp.maximum(peak, scores.max(-1))
        weights, fade = jnp.exp(scores - higher[:, None]), jnp.exp(peak - higher)
        values = v[j]
        out = out * fade[:, None] + _dot(weights.astype(values.dtype), values)
        return out, higher, total * fade + weights.sum(-1)

    sums = _down(chosen, count, visit, (out[...], peak[...], total[...]))
    for ref, value in zip(new, sums, strict=True):
        ref[...] = value


def _queries_kernel(chosen: Tile, count: Tile, *refs: Tile) -> None:
    """The gradient of one tile of queries."""
    q, do, lse, mean, q_ids, k, v, k_ids, dq = refs
    queries, slopes, own = q[...], do[...], _ids(q_ids)
    level, middle = lse[...], mean[...]

    def visit(j: Tile, carry: Tile, masked: bool) -> Tile:
        keys = k[j]
        scores = _dot(queries, keys, trans_b=True)
        if masked:
            scores = jnp.where(_seen(own, _ids(k_ids, j)), scores, UNSEEN)
        slope = _dot(slopes, v[j], trans_b=True) - middle[:, None]
        slope = jnp.exp(scores - level[:, None]) * slope
        return carry + _dot(slope.astype(keys.dtype), keys)

    dq[...] = _down(chosen, count, visit, jnp.zeros(queries.shape, jnp.float32))


def _keys_kernel(chosen: Tile, count: Tile, *refs: Tile) -> None:
    """The gradients of one tile of keys and values."""
    k, v, k_ids, q, do, lse, mean, q_ids, dk, dv = refs
    keys, values, own = k[...], v[...], _ids(k_ids)

    def visit(i: Tile, carry: tuple[Tile, Tile], masked: bool) -> tuple[Tile, Tile]:
        dk, dv = carry
        queries, slopes = q[i], do[i]
        scores = _dot(keys, queries, trans_b=True)
        if masked:
            scores = jnp.where(_seen(_ids(q_ids, i), own, turned=True), scores, UNSEEN)
        weights = jnp.exp(scores - lse[i][None, :])
        slope = weights * (_dot(values, slopes, trans_b=True) - mean[i][None, :])
        dv = dv + _dot(weights.astype(slopes.dtype), slopes)
        return dk + _dot(slope.astype(queries.dtype), queries), dv

    empty = jnp.zeros(keys.shape, jnp.float32)
    dk[...], dv[...] = _down(chosen, count, visit, (empty, empty))


def _down(chosen: Tile, count: Tile, visit: Callable[..., Any], carry: Any) -> Any:
    """``visit(tile, carry, masked)`` down the list of tiles: those seen whole, then the others."""
    for at, masked in ((0, False), (1, True)):
        body = lambda n, carry, masked=masked: visit(chosen[n], carry, masked)
        carry = jax.lax.fori_loop(count[at], count[at + 1], body, carry)
    return carry


def _dot(x: Tile, y: Tile, *, trans_b: bool = False) -> Tile:
    """A product in float32, without the shortened factors that GPUs take for float32 by themselves."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return triton.dot(x, y, trans_b=trans_b, precision=precision)


def _ids(ref: Tile, at: Tile | None = None) -> tuple[Tile, ...]:
    """Segment, order and stream of a tile's tokens."""
    return tuple(ref[n] if at is None else ref[at, n] for n in range(3))


def _seen(q: tuple[Tile, ...], k: tuple[Tile, ...], *, turned: bool = False) -> Tile:
    wide, tall = (lambda x: x[None, :]), (lambda x: x[:, None])
    first, second = (wide, tall) if turned else (tall, wide)
    return law(tuple(map(first, q)), tuple(map(second, k)))


def _relations(rows: Rows, columns: Columns, part: int | None) -> Int[Array, "b i j"]:
    """What tiles see of each other, for each row of the batch by itself."""
    one = partial(relations, part=part)
    return jax.vmap(one, in_axes=1)(rows.ids[:, :, None], columns.ids[:, :, None])


def _lists(said: Int[Array, "b i j"]) -> tuple[Int[Array, "b i j"], Int[Array, "b i 3"]]:
    """For each tile i the tiles that it sees, those that it sees whole first; then the others.

    Beside them where each kind ends: 0, the end of those seen whole, and that of those seen in part.
    """
    chosen = jnp.argsort(-said, axis=-1, stable=True).astype(jnp.int32)
    whole, seen = (said == ALL).sum(-1), (said != NOTHING).sum(-1)
    return chosen, jnp.stack([jnp.zeros_like(whole), whole, seen], axis=-1).astype(jnp.int32)


def _interpreted() -> bool:
    """Whether kernels are interpreted, for lack of a GPU."""
    return jax.default_backend() != "gpu"
