"""Attention whose mask is a function of three integers per token: segment, order and stream.

Token i sees token j iff their segments are equal, and either j is in the known stream with
``order[j] < order[i]``, or both lie in the same chunk (equal order) and the same stream. The
integers travel with keys and values, so any layout and any generation order are right by
construction:

    order of the chunk    0   1   2      token of the query stream, order 2:
    known stream          K0  K1  K2       sees K0 K1 (earlier, known) and Q2 (itself),
    query stream              Q1  Q2       not K2 (its own answer) and not Q1 (a query).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

KNOWN, QUERY = 0, 1
PADDING = -1
_UNSEEN = -1e30


def visible(q_ids: Int[Array, "b n 3"], k_ids: Int[Array, "b m 3"]) -> Bool[Array, "b n m"]:
    """Who sees whom: the law in the module's docstring, with segment -1 seen by nobody."""
    q, k = q_ids[:, :, None], k_ids[:, None, :]
    same_segment = (q[..., 0] == k[..., 0]) & (k[..., 0] != PADDING)
    earlier = (k[..., 2] == KNOWN) & (k[..., 1] < q[..., 1])
    own = (k[..., 1] == q[..., 1]) & (k[..., 2] == q[..., 2])
    return same_segment & (earlier | own)


def attend_block(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    q_ids: Int[Array, "b n 3"],
    k_ids: Int[Array, "b m 3"],
) -> tuple[Float[Array, "b n k e"], Float[Array, "b n k"]]:
    """Attention over one block of keys, with what is needed to merge it with other blocks.

    The readable reference: it holds the block's scores in memory.

    Returns:
      The output in float32 (zero where a row sees nothing) and the log-sum-exp of the row's scores.
    """
    scores = jnp.einsum("bnke,bmke->bknm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    seen = visible(q_ids, k_ids)[:, None]
    scores = jnp.where(seen, scores, _UNSEEN)
    peak = jnp.maximum(scores.max(-1, keepdims=True), _UNSEEN / 2)
    weights = jnp.exp(scores - peak)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bknm,bmke->bnke", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    safe = jnp.where(total > 0, total, 1.0)
    lse = jnp.where(total > 0, peak + jnp.log(safe), _UNSEEN)[..., 0]
    return out / jnp.moveaxis(safe, 1, 2), jnp.moveaxis(lse, 1, 2)


def merge(
    parts: Sequence[tuple[Float[Array, "b n k e"], Float[Array, "b n k"]]],
) -> Float[Array, "b n k e"]:
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


def attend(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    q_ids: Int[Array, "b n 3"],
    k_ids: Int[Array, "b m 3"],
) -> Float[Array, "b n k e"]:
    """Attention of queries over keys under :func:`visible`; rows that see nothing give zero."""
    return attend_block(q, k, v, q_ids, k_ids)[0].astype(q.dtype)
