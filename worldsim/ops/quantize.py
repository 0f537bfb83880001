"""Finite scalar quantization, and the arithmetic of codes and their digits.

Source: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023. A code is a mixed-radix
number, first digit least significant; digit i has ``levels[i]`` values, spread evenly over [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def place_values(levels: Sequence[int]) -> np.ndarray:
    """What one step of each digit adds to the code."""
    return np.concatenate([[1], np.cumprod(levels[:-1])]).astype(np.int32)


def codes_to_digits(codes: Int[Array, "..."], levels: Sequence[int]) -> Int[Array, "... q"]:
    """The digits of each code, each in ``[0, levels[i])``."""
    return (codes[..., None] // place_values(levels)) % np.asarray(levels, np.int32)


def digits_to_codes(digits: Int[Array, "... q"], levels: Sequence[int]) -> Int[Array, "..."]:
    """The inverse of :func:`codes_to_digits`."""
    return (digits * place_values(levels)).sum(-1).astype(jnp.int32)


def digits_to_values(digits: Int[Array, "... q"], levels: Sequence[int]) -> Float[Array, "... q"]:
    """Digits as evenly spaced numbers from -1 to 1."""
    return digits * (2.0 / (np.asarray(levels, np.float32) - 1)) - 1.0


def fsq_digits(x: Float[Array, "... q"], levels: Sequence[int]) -> Int[Array, "... q"]:
    """The nearest digit of each bounded coordinate ``tanh(x)``."""
    span = np.asarray(levels, np.float32) - 1
    return jnp.round((jnp.tanh(x) + 1) * 0.5 * span).astype(jnp.int32)


def fsq(x: Float[Array, "... q"], levels: Sequence[int]) -> tuple[Float[Array, "... q"], Int[Array, "..."]]:
    """Quantize each coordinate with a straight-through gradient.

    Args:
      x: unbounded coordinates, one per digit.
      levels: values per digit.

    Returns:
      Values in [-1, 1] (their gradient is that of ``tanh(x)``), and the codes.
    """
    digits = fsq_digits(x, levels)
    bounded = jnp.tanh(x)
    values = bounded + jax.lax.stop_gradient(digits_to_values(digits, levels) - bounded)
    return values, digits_to_codes(digits, levels)


def corrupt_codes(
    codes: Int[Array, "b p h w"],
    noise: Float[Array, "b p"],
    levels: Sequence[int],
    key: Array,
) -> Int[Array, "b p h w"]:
    """Replace a share ``noise`` of each chunk's codes, so that a rollout survives its own mistakes.

    Half of the replaced codes become uniform draws; in the other half one digit moves by one
    (reflected at the ends).
    """
    hit_key, kind_key, code_key, digit_key, move_key = jax.random.split(key, 5)
    shape = codes.shape
    limits = jnp.asarray(levels, jnp.int32)
    hit = jax.random.uniform(hit_key, shape) < noise[..., None, None]
    uniform = jax.random.randint(code_key, shape, 0, int(np.prod(levels)))
    which = jax.nn.one_hot(jax.random.randint(digit_key, shape, 0, len(levels)), len(levels), dtype=jnp.int32)
    move = jnp.where(jax.random.bernoulli(move_key, shape=shape), 1, -1)[..., None] * which
    digits = codes_to_digits(codes, levels)
    moved = digits + move
    moved = jnp.where((moved < 0) | (moved >= limits), digits - move, moved)
    replaced = jnp.where(jax.random.bernoulli(kind_key, shape=shape), uniform, digits_to_codes(moved, levels))
    return jnp.where(hit, replaced, codes)
