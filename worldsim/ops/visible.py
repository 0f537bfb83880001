"""Who sees whom: the one law of attention, a function of three integers per token.

Token i sees token j iff their segments are equal, and either j is in the known stream with
``order[j] < order[i]``, or both lie in the same chunk (equal order) and the same stream. The
integers travel with keys and values, so any layout and any generation order are right by
construction:

    order of the chunk    0   1   2      token of the query stream, order 2:
    known stream          K0  K1  K2       sees K0 K1 (earlier, known) and Q2 (itself),
    query stream              Q1  Q2       not K2 (its own answer) and not Q1 (a query).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

KNOWN, QUERY = 0, 1
PADDING = -1
"""The segment of tokens that see nothing and that nobody sees."""

UNSEEN = -1e30
"""The score of a pair that is not visible: finite, so that a row which sees nothing gives no NaN."""


def visible(q_ids: Int[Array, "b n 3"], k_ids: Int[Array, "b m 3"]) -> Bool[Array, "b n m"]:
    """The law in the module's docstring, with ids (segment, order, stream)."""
    return sees(jnp.moveaxis(q_ids[:, :, None], -1, 0), jnp.moveaxis(k_ids[:, None], -1, 0))


def sees(q: Int[Array, "3 ..."], k: Int[Array, "3 ..."]) -> Bool[Array, "..."]:
    """The law for segments, orders and streams that broadcast against one another."""
    return law(tuple(q), tuple(k))


def law(q: tuple[Any, ...], k: tuple[Any, ...]) -> Any:
    """The same for segments, orders and streams in arrays of their own."""
    (q_segment, q_order, q_stream), (k_segment, k_order, k_stream) = q, k
    earlier = (k_stream == KNOWN) & (k_order < q_order)
    own = (k_order == q_order) & (k_stream == q_stream)
    return (q_segment == k_segment) & (k_segment != PADDING) & (earlier | own)
