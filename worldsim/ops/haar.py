"""Orthonormal Haar transforms of pixels: parameter-free, exactly invertible.

One level along an axis maps each pair ``(a, b)`` to ``((a + b) / sqrt 2, (a - b) / sqrt 2)`` and stacks
the two halves in the channels, low band first. Applied again, it halves every band once more (a
packet transform), so that L levels fold ``2**L`` neighbours into channels. Source: Haar, 1910; as a
video front end, NVIDIA Cosmos tokenizer, 2025.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

_SCALE = 0.5**0.5


def fold(x: Float[Array, "..."], axis: int, levels: int) -> Float[Array, "..."]:
    """Halve ``axis`` ``levels`` times into the last axis.

    Args:
      x: array whose last axis holds channels; ``axis`` (negative, not -1) divides by ``2**levels``.
      axis: the axis to halve, counted from the end.
      levels: how often.

    Returns:
      The array with ``axis`` shorter and the last axis longer by ``2**levels``.
    """
    for _ in range(levels):
        pairs = jnp.moveaxis(x, axis, 0)
        a, b = pairs[0::2], pairs[1::2]
        bands = jnp.concatenate([(a + b) * _SCALE, (a - b) * _SCALE], axis=-1)
        x = jnp.moveaxis(bands, 0, axis)
    return x


def unfold(x: Float[Array, "..."], axis: int, levels: int) -> Float[Array, "..."]:
    """The inverse of :func:`fold`."""
    for _ in range(levels):
        low, high = jnp.split(jnp.moveaxis(x, axis, 0), 2, axis=-1)
        pairs = jnp.stack([(low + high) * _SCALE, (low - high) * _SCALE], axis=1)
        x = jnp.moveaxis(pairs.reshape(-1, *pairs.shape[2:]), 0, axis)
    return x


def fold_chunks(
    frames: Float[Array, "p f h w c"], *, spatial: int, temporal: int
) -> Float[Array, "p h2 w2 c2"]:
    """Fold chunks of ``f = 2**temporal`` frames into one grid of channels.

    Each of ``spatial`` levels halves rows and columns; ``c2 = c * f * 4**spatial``.
    """
    x = fold(fold(fold(frames, -4, temporal), -3, spatial), -2, spatial)
    return x[:, 0]


def unfold_chunks(
    bands: Float[Array, "p h2 w2 c2"], *, spatial: int, temporal: int
) -> Float[Array, "p f h w c"]:
    """The inverse of :func:`fold_chunks`."""
    return unfold(unfold(unfold(bands[:, None], -2, spatial), -3, spatial), -4, temporal)
