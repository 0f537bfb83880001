"""Exact attention over a sequence whose tokens lie on many devices, and its gradient.

Each device holds one shard of queries, keys, values and ids. Keys and values go round a ring; each device
merges what it sees of them into its own sums:

    forward    hop 0    device 0: K0   device 1: K1   device 2: K2      n - 1 hops of K, V and ids,
               hop 1    device 0: K2   device 1: K0   device 2: K1      each sent while the one before
               hop 2    device 0: K1   device 1: K2   device 2: K0      is computed
    backward   the same, and the gradients of K and V follow one hop behind: what has been added up
               elsewhere arrives while the own part is computed, so that no hop waits

Ring attention: Liu, Zaharia and Abbeel, https://arxiv.org/abs/2310.01889.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from worldsim.ops import blocks
from worldsim.ops import tiled_attention as tiled
from worldsim.ops.tiled_attention import Columns, Rows
from worldsim.ops.visible import UNSEEN

ATTENTION = "attention"
"""What policies of recomputation know outputs and log-sum-exps by: who keeps them need not run it again."""


@dataclasses.dataclass(frozen=True)
class Ring:
    """Where the shards of a sequence lie.

    Attributes:
      rows, columns: queries and keys per tile; shards divide by them.
      axis: name of the mesh axis they are spread over; None for one shard.
      size: devices on that axis.
      gather: bring all keys and values to every device at once instead of passing them round.
      exact: give outputs in float32, for merging, and not in the queries' dtype.
      part: tokens whose ids are looked at together to see which tiles can be left out; they divide a tile.
      block: what computes a pair of shards; see :mod:`worldsim.ops.blocks`.
    """

    rows: int
    columns: int
    axis: str | None = None
    size: int = 1
    gather: bool = False
    exact: bool = False
    part: int | None = None
    block: str = "jax"

    def pass_on(self, x: Any) -> Any:
        """Each device's arrays, now with its right neighbour."""
        around = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axis, around), x)

    def collect(self, x: Any) -> Any:
        """All devices' tiles, everywhere."""
        return jax.tree.map(lambda a: jax.lax.all_gather(a, self.axis, axis=0, tiled=True), x)

    def hand_back(self, x: Any) -> Any:
        """Each device's own tiles of the sum over devices."""
        scatter = lambda a: jax.lax.psum_scatter(a, self.axis, scatter_dimension=0, tiled=True)
        return jax.tree.map(scatter, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_shards(
    ring: Ring,
    q: Float[Array, "b n h e"],
    k: Float[Array, "b m g e"],
    v: Float[Array, "b m g e"],
    q_ids: Int[Array, "b n 3"],
    k_ids: Int[Array, "b m 3"],
) -> tuple[Float[Array, "b n h e"], Float[Array, "b n h"]]:
    """Outputs of this device's queries over the keys of all devices of the ring, and their log-sum-exps.

    Run it inside ``shard_map`` where the ring has an axis. The log-sum-exp is for merging with other blocks,
    and both are differentiable.
    """
    return _forward(ring, q, k, v, q_ids, k_ids)[0]


def scaled(q: Float[Array, "*n e"]) -> Float[Array, "*n e"]:
    """Queries by the root of their width, so that no tile of scores has to be."""
    return q * q.shape[-1] ** -0.5


def _columns(ring: Ring, k, v, k_ids) -> Columns:
    cut = lambda x: tiled.cut_columns(x, ring.columns)
    columns = Columns(cut(k), cut(v), tiled.cut_ids(k_ids, ring.columns))
    return ring.collect(columns) if ring.gather and ring.size > 1 else columns


def _forward(ring: Ring, q, k, v, q_ids, k_ids):
    groups = k.shape[2]
    forward = blocks.module(ring.block).block_forward
    rows = tiled.cut_rows(scaled(q), groups, ring.rows)
    ids = tiled.cut_ids(q_ids, ring.rows, repeat=q.shape[2] // groups)
    rows, columns = Rows((rows,), ids), _columns(ring, k, v, k_ids)
    sums = tiled.no_sums(rows.x[0])
    if ring.size > 1 and not ring.gather:

        def hop(carry, _):
            columns, sums = carry
            coming = ring.pass_on(columns)
            return (coming, forward(rows, columns, sums, part=ring.part)), None

        (columns, sums), _ = jax.lax.scan(hop, (columns, sums), length=ring.size - 1)
    out, lse = tiled.finish(forward(rows, columns, sums, part=ring.part))
    out = tiled.join_rows(out, ring.rows)
    out = out if ring.exact else out.astype(q.dtype)
    lse = tiled.join_rows(lse[..., None], ring.rows)[..., 0]
    out, lse = checkpoint_name(out, ATTENTION), checkpoint_name(lse, ATTENTION)
    return (out, lse), (q, k, v, q_ids, k_ids, out, lse)


def _backward(ring: Ring, kept, cotangents):
    q, k, v, q_ids, k_ids, out, lse = kept
    do, dlse = cotangents
    groups = k.shape[2]
    cut = lambda x: tiled.cut_rows(x, groups, ring.rows)
    lse = jnp.where(lse > UNSEEN / 2, lse, 0.0)
    mean = (do.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - dlse
    ids = tiled.cut_ids(q_ids, ring.rows, repeat=q.shape[2] // groups)
    rows = Rows((cut(scaled(q)), cut(do.astype(q.dtype)), cut(lse[..., None]), cut(mean[..., None])), ids)
    columns = _columns(ring, k, v, k_ids)
    dq = tiled.no_sums(rows.x[0]).out.swapaxes(-1, -2)
    dq, dkv = _around(ring, rows, columns, dq)
    dq = scaled(tiled.join_rows(dq.swapaxes(-1, -2), ring.rows)).astype(q.dtype)
    dk, dv = (tiled.join_columns(x) for x in dkv)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


def _around(ring: Ring, rows: Rows, columns: Columns, dq):
    """The gradients of queries, and those of this device's own keys and values."""
    backward = blocks.module(ring.block).block_backward
    if ring.size == 1 or ring.gather:
        dq, *dkv = backward(rows, columns, dq, part=ring.part)
        return dq, ring.hand_back(dkv) if ring.size > 1 else dkv

    def hop(carry, _):
        columns, dq, late = carry
        arrived = ring.pass_on(late)
        dq, *dkv = backward(rows, columns, dq, part=ring.part)
        return (ring.pass_on(columns), dq, jax.tree.map(jnp.add, arrived, dkv)), None

    late = [tiled.zeros(columns.k), tiled.zeros(columns.v)]
    (columns, dq, late), _ = jax.lax.scan(hop, (columns, dq, late), length=ring.size - 1)
    arrived = ring.pass_on(late)
    dq, *dkv = backward(rows, columns, dq, part=ring.part)
    return dq, ring.pass_on(jax.tree.map(jnp.add, arrived, dkv))


attend_shards.defvjp(_forward, _backward)
