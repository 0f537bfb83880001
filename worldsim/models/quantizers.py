"""The two quantizers behind one interface: finite scalar, and vector with an averaged codebook.

Both take a latent z to its vector q in the same space and to an integer code, give the vector of a code
back (``lookup``), and say what q would be with nothing rounded (``soften``).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.config import TokenizerConfig
from worldsim.ops import quantize


class FSQ(nnx.Module):
    """Finite scalar quantizer between two projections, so that q lives where z lives."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        self.levels = config.levels
        self.project_in = nnx.Linear(config.latent, len(config.levels), rngs=rngs)
        self.project_out = nnx.Linear(len(config.levels), config.latent, rngs=rngs)

    def __call__(self, z: Float[Array, "*n z"]) -> tuple[Float[Array, "*n z"], Int[Array, "*n"]]:
        values, codes = quantize.fsq(self.project_in(z), self.levels)
        return self.project_out(values), codes

    def soften(self, z: Float[Array, "*n z"]) -> Float[Array, "*n z"]:
        """What q would be with nothing rounded: the same bottleneck, smooth."""
        return self.project_out(jnp.tanh(self.project_in(z)))

    def lookup(self, codes: Int[Array, "*n"]) -> Float[Array, "*n z"]:
        """The vector q of each code."""
        digits = quantize.codes_to_digits(codes, self.levels)
        return self.project_out(quantize.digits_to_values(digits, self.levels))


class VQ(nnx.Module):
    """Vector quantizer: the nearest of a table of vectors, with a straight-through gradient.

    Source: van den Oord et al., "Neural Discrete Representation Learning", 2017, with the codebook as a
    moving average of what it stands for (appendix A.1). No gradient reaches the codebook; training
    starts it by :func:`worldsim.ops.quantize.kmeans` and moves it by
    :func:`worldsim.ops.quantize.update_codebook`.
    """

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        self.codebook = nnx.Param(jax.random.normal(rngs.params(), (config.codebook, config.latent)))
        self.usage = nnx.Param(jnp.full((config.codebook,), quantize.FRESH))

    def __call__(self, z: Float[Array, "*n z"]) -> tuple[Float[Array, "*n z"], Int[Array, "*n"]]:
        codes = quantize.nearest(jax.lax.stop_gradient(z), self.codebook[...])
        return z + jax.lax.stop_gradient(self.lookup(codes) - z), codes

    def soften(self, z: Float[Array, "*n z"]) -> Float[Array, "*n z"]:
        """What q would be with nothing rounded: z itself."""
        return z

    def lookup(self, codes: Int[Array, "*n"]) -> Float[Array, "*n z"]:
        """The vector q of each code."""
        return jax.lax.stop_gradient(self.codebook[...])[codes]


def make_quantizer(config: TokenizerConfig, *, rngs: nnx.Rngs) -> FSQ | VQ:
    """The quantizer that the config names."""
    return {"fsq": FSQ, "vq": VQ}[config.quantizer](config, rngs=rngs)
