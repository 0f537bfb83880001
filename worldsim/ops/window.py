"""Attention within a small window of space and of the chunks next to one's own.

Token (t, i, j) of radius 1 reads nine places of its own chunk and nine of each chunk beside it::

    before            own               after
    . . . . .         . . . . .         . . . . .
    . x x x .         . x x x .         . x x x .
    . x x x .         . x o x .         . x x x .
    . x x x .         . x x x .         . x x x .

A radius of 0 without sides is a token alone. Large grids are read place by place of the window, at a cost
that grows with the number of tokens. In small ones all pairs of tokens of a chunk and of its neighbours are
scored and those outside the window hidden: more products, but matrix products, which are faster.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

ALL_PAIRS = range(16, 145)
"""Tokens of a chunk with which all pairs are scored. With more of them CPUs are slower so; with fewer there
is nothing to gain, and XLA sums such small products in an order that depends on the number of clips."""


def attend_window(
    q: Float[Array, "b p h w d"],
    own: tuple[Float[Array, "b p h w d"], Float[Array, "b p h w d"]],
    around: tuple[Float[Array, "b p h w d"], Float[Array, "b p h w d"]],
    sides: Bool[Array, "b p 2"],
    bias: Float[Array, "r k"],
    *,
    heads: int,
    radius: int,
) -> Float[Array, "b p h w d"]:
    """Multi-head attention over the window of each token.

    Args:
      q: queries.
      own: keys and values of the token's own chunk.
      around: keys and values that a chunk shows to those beside it.
      sides: which chunks see the one before them and the one after.
      bias: added to the scores, per place of the window (chunk before, own, after; then rows, columns) and
        head; ``r = 3 (2 radius + 1)^2``.
      heads: of attention.
      radius: of the window in space.

    Returns:
      What each token reads; in float32 inside, of q's dtype.
    """
    h, w = q.shape[2:4]
    attend = _all_pairs if h * w in ALL_PAIRS and radius else _by_place
    return attend(q, own, around, sides, bias, heads=heads, radius=radius)


def _all_pairs(
    q: Array,
    own: tuple[Array, Array],
    around: tuple[Array, Array],
    sides: Array,
    bias: Array,
    *,
    heads: int,
    radius: int,
) -> Array:
    """:func:`attend_window` by matrix products over whole grids."""
    b, p, h, w, d = q.shape
    split = lambda a: a.reshape(b, p, h * w, heads, d // heads).astype(jnp.float32)
    chunks = (around, own, around)
    k, v = (
        jnp.concatenate([split(jnp.roll(part[i], 1 - n, axis=1)) for n, part in enumerate(chunks)], axis=2)
        for i in (0, 1)
    )
    outside = jnp.full((1, heads), -jnp.inf, bias.dtype)
    near = jnp.moveaxis(jnp.concatenate([bias, outside])[_places(h, w, radius)], -1, 0)
    seen = jnp.stack([sides[..., 0], jnp.ones((b, p), bool), sides[..., 1]], axis=-1)
    far = jnp.where(jnp.repeat(seen, h * w, axis=-1), 0.0, -jnp.inf)[:, :, None, None]
    scores = jnp.einsum("bpnke,bpmke->bpknm", split(q) * (d // heads) ** -0.5, k)
    weights = jax.nn.softmax(scores + near + far, axis=-1)
    return jnp.einsum("bpknm,bpmke->bpnke", weights, v).reshape(b, p, h, w, d).astype(q.dtype)


def _places(h: int, w: int, radius: int) -> Int[np.ndarray, "n m"]:
    """For each token of a chunk and each of the three chunks which place of its window that is; those outside
    have the number after the last."""
    rows, columns = (axis.reshape(-1) for axis in np.mgrid[:h, :w])
    down, right = (axis[None] - axis[:, None] + radius for axis in (rows, columns))
    width = 2 * radius + 1
    inside = (down >= 0) & (down < width) & (right >= 0) & (right < width)
    parts = [chunk * width**2 + down * width + right for chunk in range(3)]
    return np.concatenate([np.where(inside, part, 3 * width**2) for part in parts], axis=1)


def _by_place(
    q: Array,
    own: tuple[Array, Array],
    around: tuple[Array, Array],
    sides: Array,
    bias: Array,
    *,
    heads: int,
    radius: int,
) -> Array:
    """:func:`attend_window` place by place."""
    b, p, h, w, d = q.shape
    split = lambda a: a.reshape(*a.shape[:-1], heads, d // heads).astype(jnp.float32)
    scaled = split(q) * (d // heads) ** -0.5
    reach = [(i, j) for i in range(2 * radius + 1) for j in range(2 * radius + 1)]
    inside = jnp.pad(jnp.ones((h, w), bool), radius)
    rim = [(0, 0), (0, 0), (radius, radius), (radius, radius), (0, 0), (0, 0)]
    scores, values = [], []
    for chunk, (k, v) in enumerate((around, own, around)):
        k, v = (jnp.pad(jnp.roll(split(a), 1 - chunk, axis=1), rim) for a in (k, v))
        seen = jnp.ones((b, p), bool) if chunk == 1 else sides[..., chunk // 2]
        for n, (i, j) in enumerate(reach):
            row = bias[chunk * len(reach) + n]
            score = (scaled * k[:, :, i : i + h, j : j + w]).sum(-1) + row
            there = inside[i : i + h, j : j + w] & seen[:, :, None, None]
            scores.append(jnp.where(there[..., None], score, -jnp.inf))
            values.append(v[:, :, i : i + h, j : j + w])
    weights = jax.nn.softmax(jnp.stack(scores), axis=0)
    mixed = reduce(add, (weight[..., None] * v for weight, v in zip(weights, values, strict=True)))
    return mixed.reshape(b, p, h, w, d).astype(q.dtype)
