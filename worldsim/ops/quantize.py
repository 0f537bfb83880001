"""Finite scalar and vector quantization, and the arithmetic of codes and their digits.

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


FRESH = 0.1
"""Usage of a code that has just been started: it has some hundred steps to find vectors of its own."""


def nearest(z: Float[Array, "*n z"], codebook: Float[Array, "v z"]) -> Int[Array, "*n"]:
    """The code whose vector is nearest to each z in squared distance."""
    return (0.5 * (codebook**2).sum(-1) - z @ codebook.T).argmin(-1)


def kmeans(z: Float[Array, "n z"], codes: int, key: Array, *, rounds: int = 10) -> Float[Array, "v z"]:
    """A codebook to start from: Lloyd's rounds from vectors drawn by k-means++ (Arthur, Vassilvitskii 2007).

    Args:
      z: vectors; there may be fewer of them than codes (vectors then stand for more than one code).
      codes: size of the codebook.
      key: of the draws.
      rounds: of assignment and averaging; an empty code stays where it is.

    Returns:
      The codebook.
    """

    def draw(i, carry):
        book, distance = carry
        pick = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(distance + 1e-12))
        book = book.at[i].set(z[pick])
        return book, jnp.minimum(distance, ((z - z[pick]) ** 2).sum(-1))

    book = jnp.zeros((codes, z.shape[-1]), z.dtype)
    book, _ = jax.lax.fori_loop(0, codes, draw, (book, jnp.full(len(z), 1e12, z.dtype)))

    def refine(_, book):
        count, total = _assigned(z, nearest(z, book), codes)
        return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], book)

    return jax.lax.fori_loop(0, rounds, refine, book)


def update_codebook(
    codebook: Float[Array, "v z"],
    usage: Float[Array, "v"],
    z: Float[Array, "n z"],
    key: Array,
    *,
    decay: float = 0.99,
    dead: Float[Array, ""] | float = 0.03,
) -> tuple[Float[Array, "v z"], Float[Array, "v"]]:
    """Move each code to the running average of the vectors it stands for, and revive dead codes.

    With running counts ``N = decay N + (1 - decay) n`` and sums M likewise, the average M / N moves by
    ``(1 - decay) (sum z - n codebook) / N``: the sums need not be kept.

    Args:
      codebook: before.
      usage: running counts N of vectors a step.
      z: this step's vectors.
      key: of the revivals.
      decay: of the running averages.
      dead: codes with fewer vectors a step become vectors of this step, the likelier the farther these are
        from their codes, so that what is badly drawn gets a code of its own; 0 revives none.

    Returns:
      Codebook and usage after.
    """
    codes = nearest(z, codebook)
    count, total = _assigned(z, codes, len(codebook))
    new_usage = decay * usage + (1 - decay) * count
    step = (1 - decay) / jnp.maximum(new_usage, 1e-6)
    moved = codebook + step[:, None] * (total - count[:, None] * codebook)
    far = jnp.log(((z - codebook[codes]) ** 2).sum(-1) + 1e-12)
    picks = jax.random.categorical(key, far, shape=(len(codebook),))
    gone = new_usage < dead
    return jnp.where(gone[:, None], z[picks], moved), jnp.where(gone, FRESH, new_usage)


def _assigned(
    z: Float[Array, "n z"], codes: Int[Array, "n"], size: int
) -> tuple[Float[Array, "v"], Float[Array, "v z"]]:
    """How many vectors each code stands for, and their sum."""
    total = jnp.zeros((size, z.shape[-1]), z.dtype).at[codes].add(z)
    return jnp.zeros(size, z.dtype).at[codes].add(1.0), total
