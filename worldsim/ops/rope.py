"""Rotary phases over time, row and column; keys are cached before rotation and rotated when read.

Source: Su et al., "RoFormer", 2021, with the head split in three: half for time, a quarter each for
row and column. Only differences of time matter, so all times may be shifted, negative or fractional;
subtracting the reader's own time first keeps the phases small on any horizon.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_SPACE_BASE = 100.0

Turns = tuple[Float[Array, "b n r"], Float[Array, "b n r"]]
"""Cosine and sine of each angle of each token."""


def frequencies(head: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Radians per frame and per code: ``[head / 4]`` for time, ``[head / 8]`` for each side."""
    time, space = head // 4, head // 8
    return (
        (base ** -(np.arange(time) / time)).astype(np.float32),
        (_SPACE_BASE ** -(np.arange(space) / space)).astype(np.float32),
    )


def phases(
    times: Float[Array, "*n"],
    rows: Float[Array, "*n"],
    columns: Float[Array, "*n"],
    *,
    head: int,
    base: float,
) -> Float[Array, "*n r"]:
    """The angle of each rotated pair: ``r = head / 2`` angles a token."""
    in_time, in_space = frequencies(head, base)
    return jnp.concatenate(
        [times[..., None] * in_time, rows[..., None] * in_space, columns[..., None] * in_space], axis=-1
    )


def turns(angles: Float[Array, "b n r"]) -> Turns:
    """Cosines and sines."""
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b n k e"], by: Turns) -> Float[Array, "b n k e"]:
    """Turn the pairs ``(x[i], x[i + e/2])`` by their angles."""
    return turn(x, (by[0][:, :, None], by[1][:, :, None]))


def turn(x: Float[Array, "*n e"], by: tuple[Array, Array]) -> Float[Array, "*n e"]:
    """The same where cosines and sines broadcast against the pairs."""
    cos, sin = by
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
