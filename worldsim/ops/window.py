"""Attention within a small window of space and of the chunks next to one's own.

Token (t, i, j) of radius 1 reads nine places of its own chunk and nine of each chunk beside it::

    before            own               after
    . . . . .         . . . . .         . . . . .
    . x x x .         . x x x .         . x x x .
    . x x x .         . x o x .         . x x x .
    . x x x .         . x x x .         . x x x .

Cost grows with the number of tokens, whatever the grid. A radius of 0 without sides is a token alone.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
