"""The chunk-local tokenizer: pixels to latents to codes, and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from worldsim.config import TokenizerConfig
from worldsim.models.conv import ResidualBlock, RMSNorm
from worldsim.models.quantizers import make_quantizer
from worldsim.ops import haar


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
        inputs = 3 * config.latent + 2 if config.neighbours else config.latent
        self.stem = nnx.Linear(inputs, widths[0], rngs=rngs, dtype=dtype)
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


class Tokenizer(nnx.Module):
    """Encodes chunks of video to codes and decodes them, one chunk at a time.

    Frames are float32 in [-1, 1]. No information crosses a chunk's border inside the codes; what is drawn
    may look at the latents of the chunks next to it.
    """

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs, dtype=None):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.quantizer = make_quantizer(config, rngs=rngs)
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

    def decode(
        self,
        latents: Float[Array, "b p h w z"],
        *,
        sides: Bool[Array, "#b p 2"] | None = None,
        cyclic: bool = False,
    ) -> Float[Array, "b t H W c"]:
        """Latents, quantized or not, to frames.

        Args:
          latents: of chunks that follow one another in time.
          sides: which chunks see the one before them and the one after; None is both, where there is one.
            ``(True, False)`` everywhere is streaming: nothing waits for what comes after.
          cyclic: the last chunk is followed by the first.
        """
        b, p = latents.shape[:2]
        if self.config.neighbours:
            see = jnp.ones((1, p, 2), bool) if sides is None else sides
            if not cyclic:
                see = see.at[:, 0, 0].set(False).at[:, -1, 1].set(False)
            see = jnp.broadcast_to(see, (b, p, 2))[:, :, None, None]
            around = [jnp.roll(latents, 1, axis=1), jnp.roll(latents, -1, axis=1)]
            parts = [jnp.where(see[..., i, None], other, 0) for i, other in enumerate(around)]
            flags = jnp.broadcast_to(see, (*latents.shape[:-1], 2)).astype(latents.dtype)
            latents = jnp.concatenate([latents, *parts, flags], axis=-1)
        bands = self.decoder(rearrange(latents, "b p h w z -> (b p) h w z"))
        chunks = haar.unfold_chunks(bands, **self._levels())
        return rearrange(chunks, "(b p) f h w c -> b (p f) h w c", b=b)

    def detokenize(self, codes: Int[Array, "b p h w"]) -> Float[Array, "b t H W c"]:
        """Codes of chunks that follow one another to frames."""
        return self.decode(self.quantizer.lookup(codes))


def to_float(frames: UInt8[Array | np.ndarray, "*n c"]) -> Float[Array, "*n c"]:
    """uint8 pixels to float32 in [-1, 1]."""
    return jnp.asarray(frames).astype(jnp.float32) / 127.5 - 1.0


def to_uint8(frames: Float[Array, "*n c"]) -> UInt8[Array, "*n c"]:
    """float pixels in [-1, 1] to uint8, rounded and clipped."""
    return jnp.clip(jnp.round((frames + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
