"""The chunk-local tokenizer: pixels to latents to codes, and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from worldsim.config import TokenizerConfig
from worldsim.models.conv import ResidualBlock, RMSNorm
from worldsim.ops import haar, quantize


class Encoder(nnx.Module):
    """Haar bands to latents; each stage after the first halves the grid."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs, dtype=None):
        widths = config.widths
        self.cell = 2 ** (len(widths) - 1) if config.cell_local else 0
        bands = config.channels * config.frames_per_chunk * 4**config.haar_levels
        self.stem = nnx.Linear(bands, widths[0], rngs=rngs, dtype=dtype)
        self.stages = nnx.List(
            [
                nnx.List([ResidualBlock(width, rngs=rngs, dtype=dtype) for _ in range(config.blocks)])
                for width in widths
            ]
        )
        self.downs = nnx.List(
            [
                nnx.Linear(4 * before, after, rngs=rngs, dtype=dtype)
                for before, after in zip(widths, widths[1:], strict=False)
            ]
        )
        self.norm = RMSNorm(widths[-1])
        self.out = nnx.Linear(widths[-1], config.latent, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 z"]:
        height, width = x.shape[1:3]
        if self.cell:  # the bands of one code as a picture of its own
            x = rearrange(x, "n (h i) (w j) d -> (n h w) i j d", i=self.cell, j=self.cell)
        x = self.stem(x)
        for i, blocks in enumerate(self.stages):
            if i:
                x = self.downs[i - 1](rearrange(x, "n (h i) (w j) d -> n h w (i j d)", i=2, j=2))
            for block in blocks:
                x = block(x)
        z = self.out(self.norm(x)).astype(jnp.float32)
        if self.cell:
            shape = {"h": height // self.cell, "w": width // self.cell}
            z = rearrange(z, "(n h w) 1 1 z -> n h w z", **shape)
        return z


class Decoder(nnx.Module):
    """Latents to Haar bands, the encoder turned round."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs, dtype=None):
        widths = config.widths[::-1]
        bands = config.channels * config.frames_per_chunk * 4**config.haar_levels
        self.stem = nnx.Linear(config.latent, widths[0], rngs=rngs, dtype=dtype)
        self.stages = nnx.List(
            [
                nnx.List([ResidualBlock(width, rngs=rngs, dtype=dtype) for _ in range(config.blocks)])
                for width in widths
            ]
        )
        self.ups = nnx.List(
            [
                nnx.Linear(before, 4 * after, rngs=rngs, dtype=dtype)
                for before, after in zip(widths, widths[1:], strict=False)
            ]
        )
        self.norm = RMSNorm(widths[-1])
        self.out = nnx.Linear(widths[-1], bands, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "n h2 w2 z"]) -> Float[Array, "n h w c"]:
        x = self.stem(x)
        for i, blocks in enumerate(self.stages):
            if i:
                x = rearrange(self.ups[i - 1](x), "n h w (i j d) -> n (h i) (w j) d", i=2, j=2)
            for block in blocks:
                x = block(x)
        return self.out(nnx.silu(self.norm(x))).astype(jnp.float32)


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


class Tokenizer(nnx.Module):
    """Encodes chunks of video to codes and decodes them, one chunk at a time.

    Frames are float32 in [-1, 1]. No information crosses a chunk's border.
    """

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs, dtype=None):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.quantizer = FSQ(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)

    def _levels(self) -> dict[str, int]:
        return {
            "spatial": self.config.haar_levels,
            "temporal": self.config.frames_per_chunk.bit_length() - 1,
        }

    def encode(self, frames: Float[Array, "b t H W c"]) -> Float[Array, "b p h w z"]:
        """Frames to continuous latents; t divides by ``frames_per_chunk``."""
        chunks = rearrange(frames, "b (p f) h w c -> (b p) f h w c", f=self.config.frames_per_chunk)
        latents = self.encoder(haar.fold_chunks(chunks, **self._levels()))
        return rearrange(latents, "(b p) h w z -> b p h w z", b=frames.shape[0])

    def tokenize(self, frames: Float[Array, "b t H W c"]) -> Int[Array, "b p h w"]:
        """Frames to codes."""
        return self.quantizer(self.encode(frames))[1]

    def decode(self, latents: Float[Array, "b p h w z"]) -> Float[Array, "b t H W c"]:
        """Latents, quantized or not, to frames."""
        bands = self.decoder(rearrange(latents, "b p h w z -> (b p) h w z"))
        chunks = haar.unfold_chunks(bands, **self._levels())
        return rearrange(chunks, "(b p) f h w c -> b (p f) h w c", b=latents.shape[0])

    def detokenize(self, codes: Int[Array, "b p h w"]) -> Float[Array, "b t H W c"]:
        """Codes to frames."""
        return self.decode(self.quantizer.lookup(codes))


def to_float(frames: UInt8[Array | np.ndarray, "*n c"]) -> Float[Array, "*n c"]:
    """uint8 pixels to float32 in [-1, 1]."""
    return jnp.asarray(frames).astype(jnp.float32) / 127.5 - 1.0


def to_uint8(frames: Float[Array, "*n c"]) -> UInt8[Array, "*n c"]:
    """float pixels in [-1, 1] to uint8, rounded and clipped."""
    return jnp.clip(jnp.round((frames + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
