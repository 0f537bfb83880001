"""Attention under the law of :mod:`worldsim.ops.visible`: who sees whom is three integers per token.

    attend         the attention of a model: on one device, or over a sequence spread over many
    attend_block   the same on one device, with what is needed to merge it with other blocks
    reference      all of it in six lines, with every score in memory
    weights        its weights, to be looked at

Nothing but the reference and its weights holds the scores of all pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from worldsim.ops import blocks
from worldsim.ops.ring_attention import Ring, attend_shards
from worldsim.ops.visible import KNOWN, PADDING, QUERY, UNSEEN, visible
from worldsim.plain import nearest

__all__ = ["KNOWN", "PADDING", "QUERY", "attend", "attend_block", "merge", "reference", "visible", "weights"]

STRATEGIES = ("local", "ring", "allgather")
"""Where the keys are that a query reads: on its own device, passed round, or brought to all devices."""

TILE_SCORES = 2**18
"""Scores that a pair of tiles should have over all rows and heads: large enough to keep the arithmetic busy,
small enough to stay in a cache (measured on CPUs)."""


LEAST_PART = 16
"""Tokens below which to look at the ids of parts of tiles costs more than it saves."""


def attend(
    q: Float[Array, "b n h e"],
    k: Float[Array, "b m g e"],
    v: Float[Array, "b m g e"],
    q_ids: Int[Array, "b n 3"],
    k_ids: Int[Array, "b m 3"],
    *,
    strategy: str = "local",
    tile: int | None = None,
    unit: int = 1,
) -> Float[Array, "b n h e"]:
    """Attention of queries over keys under the law; rows that see nothing give zero.

    On a mesh, rows are spread over ``data`` and ``fsdp`` and heads over ``tensor``. Where they don't divide,
    as in small batches of evaluation, each of those devices works on all of them: training refuses that
    before it begins (:func:`worldsim.train.checks.check_mesh`).

    Args:
      q: queries.
      k, v: keys and values; ``g`` divides ``h``, and consecutive query heads share a key head.
      q_ids, k_ids: int32 (segment, order, stream) per token; segment -1 is padding.
      strategy: ``local`` where each device holds whole sequences. Where they are spread over the mesh axis
        ``context``: ``ring`` passes keys and values from device to device, ``allgather`` brings all of them
        to all, which is faster while they fit.
      tile: tokens whose scores with as many others are in memory at a time. None chooses by the number of
        rows and heads. Of the pure-JAX block; others (:mod:`worldsim.ops.blocks`) have tiles of their own.
      unit: tokens of a chunk; tiles that are chosen are whole chunks, so that few of them need a mask, and
        what they see is told chunk by chunk.

    Returns:
      In the queries' dtype; sums run in float32.

    Raises:
      ValueError: sizes that don't fit one another or the mesh, or a strategy that has no mesh to run on.
      RuntimeError: a block was asked for by name that cannot serve.
    """
    _check(q, k, strategy)
    mesh = jax.sharding.get_abstract_mesh()
    if strategy != "local" and "context" not in mesh.shape:
        raise ValueError(f"attend: {strategy!r} needs a mesh with an axis 'context'; call jax.set_mesh.")
    if mesh.empty or mesh.size == 1:
        return _padded(_ring(q, k, tile, unit=unit), q, k, v, q_ids, k_ids)[0]
    spread = context_size() if strategy != "local" else 1
    ring = _ring(q, k, tile, unit=unit, spread=spread, copies=mesh.size // spread)
    if spread > 1:
        ring = dataclasses.replace(ring, axis="context", size=spread, gather=strategy == "allgather")
    tokens, ids = _specs(mesh, q, k, spread=spread > 1)
    shards = jax.shard_map(
        lambda *args: _padded(ring, *args)[0],
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, ids, ids),
        out_specs=tokens,
    )
    return shards(q, k, v, q_ids, k_ids)


def context_size() -> int:
    """Devices on the axis ``context`` of the mesh that ``jax.set_mesh`` has set; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get("context", 1)


def attend_block(
    q: Float[Array, "b n h e"],
    k: Float[Array, "b m g e"],
    v: Float[Array, "b m g e"],
    q_ids: Int[Array, "b n 3"],
    k_ids: Int[Array, "b m 3"],
) -> tuple[Float[Array, "b n h e"], Float[Array, "b n h"]]:
    """Attention over one block of keys, with what is needed to merge it with other blocks.

    Returns:
      The output in float32 (zero where a row sees nothing) and the log-sum-exp of the row's scores.
    """
    return _padded(dataclasses.replace(_ring(q, k, None), exact=True), q, k, v, q_ids, k_ids)


def merge(
    parts: Sequence[tuple[Float[Array, "b n h e"], Float[Array, "b n h"]]],
) -> Float[Array, "b n h e"]:
    """One attention from the outputs and log-sum-exps of disjoint blocks of keys (online softmax)."""
    if len(parts) == 1:
        return parts[0][0]
    peak = parts[0][1]
    for _, lse in parts[1:]:
        peak = jnp.maximum(peak, lse)
    shares = [jnp.exp(lse - peak) for _, lse in parts]
    total = sum(shares)
    weighted = (out * (share / total)[..., None] for (out, _), share in zip(parts, shares, strict=True))
    return reduce(add, weighted)


def reference(
    q: Float[Array, "b n h e"],
    k: Float[Array, "b m g e"],
    v: Float[Array, "b m g e"],
    q_ids: Int[Array, "b n 3"],
    k_ids: Int[Array, "b m 3"],
) -> Float[Array, "b n h e"]:
    """What :func:`attend` computes, to read and to compare with: it holds all scores in memory."""
    v = jnp.repeat(v, q.shape[2] // k.shape[2], axis=2)
    return jnp.einsum("bhnm,bmhe->bnhe", weights(q, k, q_ids, k_ids), v)


def weights(
    q: Float[Array, "b n h e"],
    k: Float[Array, "b m g e"],
    q_ids: Int[Array, "b n 3"],
    k_ids: Int[Array, "b m 3"],
) -> Float[Array, "b h n m"]:
    """How much of each value a query reads: of a row 1 in all, or 0 where it sees nothing."""
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("bnhe,bmhe->bhnm", q, k) * q.shape[-1] ** -0.5
    seen = visible(q_ids, k_ids)[:, None]
    parts = jnp.where(seen, jnp.exp(scores - jnp.where(seen, scores, UNSEEN).max(-1, keepdims=True)), 0.0)
    total = parts.sum(-1, keepdims=True)
    return parts / jnp.where(total > 0, total, 1.0)


def _ring(q: Array, k: Array, tile: int | None, *, unit: int = 1, spread: int = 1, copies: int = 1) -> Ring:
    """The tiles of one shard, in the sizes that its block takes; arguments as of :func:`tile_sizes`."""
    width, group = q.shape[3], q.shape[2] // k.shape[2]
    block = blocks.chosen(q.dtype, width=width, group=group)
    if block != "jax":
        return Ring(*blocks.tiles(width, group), block=block)
    sizes = tile_sizes(q, k, tile, unit=unit, spread=spread, copies=copies)
    return Ring(*sizes, part=part_size(unit, *sizes))


def tile_sizes(
    q: Array | jax.ShapeDtypeStruct,
    k: Array | jax.ShapeDtypeStruct,
    tile: int | None,
    *,
    unit: int = 1,
    spread: int = 1,
    copies: int = 1,
) -> tuple[int, int]:
    """Queries and keys per tile: as asked for, or squares of about :data:`TILE_SCORES`.

    Few queries take many keys at once: what one tile holds needs no loop.

    Args:
      q, k: queries and keys, or their shapes.
      tile, unit: as in :func:`attend`.
      spread: devices that the tokens are spread over.
      copies: parts that rows and heads are split into.
    """
    n, m = -(-q.shape[1] // spread), -(-k.shape[1] // spread)
    if tile is not None:
        return min(tile, n), min(tile, m)
    heads = max(1, q.shape[0] * q.shape[2] // copies)
    side = 2 ** max(5, round(math.log2(TILE_SCORES / heads) / 2))
    side = max(1, round(side / unit)) * unit
    rows = min(side, n)
    wide = side if rows == side else max(side, 2 * TILE_SCORES // (heads * rows))
    return rows, min(wide, m)


def part_size(unit: int, rows: int, columns: int) -> int | None:
    """Tokens of a tile whose ids are looked at together: a chunk, where tiles are made of them."""
    part = math.gcd(unit, rows, columns)
    return part if part >= LEAST_PART else None


def _check(q: Array, k: Array, strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"attend: strategy {strategy!r}; take one of {list(STRATEGIES)}.")
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attend: {q.shape[2]} query heads don't divide by {k.shape[2]} key heads; give a divisor."
        )


def _padded(ring: Ring, q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array) -> tuple[Array, Array]:
    """Attention of shards of any length: what is missing to whole tiles is padding."""

    def fill(x: Array, tile: int, value: int = 0) -> Array:
        short = -x.shape[1] % tile
        widths = [(0, short if axis == 1 else 0) for axis in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=value) if short else x

    n = q.shape[1]
    i, j = ring.rows, ring.columns
    padded = fill(q, i), fill(k, j), fill(v, j), fill(q_ids, i, PADDING), fill(k_ids, j, PADDING)
    out, lse = attend_shards(ring, *padded)  # type: ignore[misc]
    return out[:, :n], lse[:, :n]


def _specs(mesh: AbstractMesh, q: Array, k: Array, *, spread: bool) -> tuple[PartitionSpec, PartitionSpec]:
    """How tokens and ids lie: rows and heads split where they divide, tokens where they are spread.

    Raises:
      ValueError: tokens that don't divide over the devices.
    """
    size = mesh.shape.get("context", 1)
    uneven = [x.shape[1] for x in (q, k) if x.shape[1] % size]
    if spread and uneven:
        raise ValueError(
            f"attend: {uneven[0]} tokens don't divide over the {size} devices of mesh axis 'context'; "
            f"{nearest(uneven[0], size)}."
        )
    batch = tuple(name for name in ("data", "fsdp") if name in mesh.shape)
    ways = math.prod(mesh.shape[name] for name in batch)
    heads = "tensor" if mesh.shape.get("tensor", 1) > 1 and k.shape[2] % mesh.shape["tensor"] == 0 else None
    rows = batch if q.shape[0] % ways == 0 else None
    tokens = "context" if spread else None
    return PartitionSpec(rows, tokens, heads, None), PartitionSpec(rows, tokens, None)
