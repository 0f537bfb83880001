"""Attention of one chunk over a cache and over itself, for decoding.

What a chunk sees of a cache is whole chunks, so the law of :mod:`worldsim.ops.visible` is asked once per
slot and not per pair of tokens. Heads come before tokens, as caches hold them: products then run over
matrices as they lie. One chunk's scores over the window are in memory, ``[b h n m]``, and never those of a
sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from worldsim.ops.visible import UNSEEN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """Keys and values that queries read.

    Attributes:
      keys, values: ``[b h m e]``, keys rotated.
      bias: ``[b m]``, added to all scores of a key: :data:`worldsim.ops.visible.UNSEEN` where it is not
        visible; None where all are. With an axis before for the chunks that read, which see different ones.
    """

    keys: Float[Array, "b h m e"]
    values: Float[Array, "b h m e"]
    bias: Float[Array, "*p b m"] | None = None


def attend_parts(
    q: Float[Array, "b h n e"], parts: Sequence[Part]
) -> tuple[Float[Array, "b h n e"], Float[Array, "b h n"]]:
    """Attention of queries over all parts together.

    Args:
      q: queries, rotated. A score that is visible must not lie 80 or more below one that is not, or float32
        loses its weight; what empty slots of a cache score is 0.
      parts: what they read.

    Returns:
      The output in float32 (zero where a query sees nothing) and the log-sum-exp of its scores, for merging
      with other blocks (:func:`worldsim.ops.attention.merge`, which has heads after tokens).
    """
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    scores = [_dot("bhne,bhme->bhnm", q, part.keys) for part in parts]
    # Of hidden keys too: it spares a pass over memory.
    peak = reduce(jnp.maximum, (s.max(-1) for s in scores))
    pairs = list(zip(scores, parts, strict=True))
    weights = [jnp.exp(s + _hidden(part) - peak[..., None]) for s, part in pairs]
    total = reduce(add, (w.sum(-1) for w in weights))
    read = [_dot("bhnm,bhme->bhne", w.astype(q.dtype), p.values) for w, p in zip(weights, parts, strict=True)]
    safe = jnp.where(total > 0, total, 1.0)
    return reduce(add, read) / safe[..., None], jnp.where(total > 0, peak + jnp.log(safe), UNSEEN)


def _hidden(part: Part) -> Array | float:
    return 0.0 if part.bias is None else part.bias[:, None, None]


def _dot(pattern: str, *x: Array) -> Array:
    return jnp.einsum(pattern, *x, preferred_element_type=jnp.float32)
