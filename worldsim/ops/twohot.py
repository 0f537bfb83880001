"""A number as a distribution over bins, of which it is the mean: rewards are learned as classes are.

Hafner et al., https://arxiv.org/abs/2301.04104 (DreamerV3), section on symexp two-hot losses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LOGARITHMS = np.linspace(-10.0, 10.0, 41)
BINS = (np.sign(_LOGARITHMS) * np.expm1(np.abs(_LOGARITHMS))).astype(np.float32)
"""From -22,025 to 22,025, denser near 0, which is one of them."""


def two_hot(x: Float[Array, "*n"]) -> Float[Array, "*n v"]:
    """Weights of the two bins beside each number, of which it is the mean; beyond the bins, the last."""
    x, bins = jnp.clip(x, BINS[0], BINS[-1]), jnp.asarray(BINS)
    below = jnp.clip(jnp.searchsorted(bins, x, side="right") - 1, 0, len(BINS) - 2)
    share = (x - bins[below]) / (bins[below + 1] - bins[below])
    weight = lambda place, much: jax.nn.one_hot(place, len(BINS)) * much[..., None]
    return weight(below, 1 - share) + weight(below + 1, share)


def mean(logits: Float[Array, "*n v"]) -> Float[Array, "*n"]:
    """The number that a distribution over bins expects, summed from both ends so that evenness gives 0."""
    shares = jax.nn.softmax(logits) * BINS
    half = len(BINS) // 2
    return (shares[..., :half][..., ::-1] + shares[..., half + 1 :]).sum(-1)


def cross_entropy(logits: Float[Array, "*n v"], x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Nats of each number under a distribution over bins."""
    return -(two_hot(x) * jax.nn.log_softmax(logits)).sum(-1)
