"""The refinement head: draws the detail that the codes leave out, as a residual of the latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from worldsim.config import RefineConfig, TokenizerConfig
from worldsim.models.conv import ResidualBlock, RMSNorm
from worldsim.ops import diffusion
from worldsim.ops.window import attend_window


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """What a denoiser knows of chunks from their codes, computed once for all its steps.

    Attributes:
      tokens: of each chunk.
      shown: per block, the keys and values that a chunk shows to those beside it.
      sides: bool ``[b p 2]``: which chunks see the one before them and the one after.
    """

    tokens: Float[Array, "b p h w d"]
    shown: tuple[tuple[Array, Array], ...]
    sides: Bool[Array, "b p 2"]


class RefineBlock(nnx.Module):
    """Local space-time attention and an MLP, both modulated by the noise level, gates zero at first.

    A token reads the window around it in its own chunk's noisy stream, and in the conditions of the
    chunks before and after. Source of the modulation: Peebles and Xie, "Scalable Diffusion Models with
    Transformers" (adaLN-zero), 2022.
    """

    def __init__(self, config: RefineConfig, *, rngs: nnx.Rngs, dtype=None):
        width = config.width
        linear = lambda n, m, **options: nnx.Linear(n, m, rngs=rngs, dtype=dtype, **options)
        zeros = {"kernel_init": nnx.initializers.zeros}
        self.heads, self.radius = config.heads, config.radius
        self.modulate = linear(width, 6 * width, **zeros)
        self.attention_norm, self.context_norm, self.mlp_norm = (RMSNorm(width) for _ in range(3))
        self.read = linear(width, 3 * width, use_bias=False)
        self.around = linear(width, 2 * width, use_bias=False)
        self.out = linear(width, width, use_bias=False)
        taps = (2 * config.radius + 1) ** 2
        self.bias = nnx.Param(jnp.zeros((3 * taps, config.heads)))
        self.up = linear(width, config.mlp)
        self.down = linear(config.mlp, width)

    def show(self, tokens: Float[Array, "b p h w d"]) -> tuple[Array, Array]:
        """Keys and values of a chunk's condition, for the chunks beside it."""
        keys, values = jnp.split(self.around(self.context_norm(tokens)), 2, axis=-1)
        return keys, values

    def __call__(
        self,
        x: Float[Array, "b p h w d"],
        level: Float[Array, "b d"],
        shown: tuple[Array, Array],
        sides: Bool[Array, "b p 2"],
    ) -> Float[Array, "b p h w d"]:
        parts = jnp.split(self.modulate(level)[:, None, None, None], 6, axis=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        q, k, v = jnp.split(self.read(self.attention_norm(x) * (1 + scale) + shift), 3, axis=-1)
        mixed = attend_window(q, (k, v), shown, sides, self.bias[...], heads=self.heads, radius=self.radius)
        x = x + gate * self.out(mixed)
        hidden = nnx.gelu(self.up(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift))
        return x + mlp_gate * self.down(hidden)


class RefineHead(nnx.Module):
    """Denoises the residual ``(z - q) / scale`` of each chunk, given q of it and of its neighbours.

    Chunks don't see one another's residuals: any chunk can be drawn alone, later or again. ``scale`` is
    the residual's standard deviation per channel, set when training starts and not trained.
    """

    def __init__(
        self, config: RefineConfig, tokenizer: TokenizerConfig, *, rngs: nnx.Rngs, dtype=None
    ) -> None:
        width, latent = config.width, tokenizer.latent
        init = nnx.initializers.normal(0.02)
        self.config = config
        self.scale = nnx.Param(jnp.ones((latent,)))
        self.spread = nnx.Param(jnp.ones((latent,)))
        self.grid = nnx.Param(init(rngs.params(), (*tokenizer.grid, width)))
        self.null = nnx.Param(init(rngs.params(), (width,)))
        self.codes = nnx.Linear(latent, width, rngs=rngs, dtype=dtype)
        around = config.radius or config.neighbours  # else each code is looked at alone
        self.look = ResidualBlock(width, rngs=rngs, dtype=dtype) if around else None
        self.noisy = nnx.Linear(latent, width, rngs=rngs, dtype=dtype)
        self.level = nnx.List([nnx.Linear(n, width, rngs=rngs, dtype=dtype) for n in (32, width)])
        self.blocks = nnx.List([RefineBlock(config, rngs=rngs, dtype=dtype) for _ in range(config.layers)])
        self.norm = RMSNorm(width)
        self.out = nnx.Linear(width, latent, kernel_init=nnx.initializers.zeros, rngs=rngs, dtype=dtype)

    def condition(
        self,
        q: Float[Array, "b p h w z"],
        *,
        sides: Bool[Array, "#b p 2"] | None = None,
        null: Bool[Array, "b"] | None = None,
    ) -> Condition:
        """What is known of chunks that follow one another in time.

        Args:
          q: their quantized latents.
          sides: which chunks see the one before them and the one after; None is both, where there is one.
          null: clips of which nothing is known, for guidance.
        """
        b, p, h, w, _ = q.shape
        see = jnp.ones((1, p, 2), bool) if sides is None else sides
        see = see.at[:, 0, 0].set(False).at[:, -1, 1].set(False) & self.config.neighbours
        scaled = jax.lax.stop_gradient(q / self.spread[...])
        tokens = self.codes(scaled) + self.grid[...].astype(scaled.dtype)
        if self.look is not None:
            tokens = self.look(tokens.reshape(b * p, h, w, -1)).reshape(b, p, h, w, -1)
        if null is not None:
            tokens = jnp.where(null[:, None, None, None, None], self.null[...] + self.grid[...], tokens)
            see = see & ~null[:, None, None]
        shown = tuple(block.show(tokens) for block in self.blocks)
        return Condition(tokens, shown, jnp.broadcast_to(see, (b, p, 2)))

    def denoise(
        self, x: Float[Array, "b p h w z"], sigma: Float[Array, "b"], condition: Condition
    ) -> Float[Array, "b p h w z"]:
        """The mean of the scaled residual, given it with noise of deviation ``sigma`` added."""
        level = sigma[:, None, None, None, None]
        skip, out, inward = diffusion.precondition(level)
        phases = jnp.log(sigma)[:, None] * (2.0 ** jnp.arange(-4, 12, 1.0))
        embedded = self.level[0](jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1))
        embedded = nnx.silu(self.level[1](nnx.silu(embedded)))
        tokens = self.noisy(inward * x) + condition.tokens
        for block, shown in zip(self.blocks, condition.shown, strict=True):
            tokens = block(tokens, embedded, shown, condition.sides)
        return skip * x + out * self.out(self.norm(tokens)).astype(jnp.float32)

    def draw(
        self,
        q: Float[Array, "b p h w z"],
        noise: Float[Array, "b #p h w z"],
        steps: Int[Array, ""],
        *,
        sides: Bool[Array, "#b p 2"] | None = None,
    ) -> Float[Array, "b p h w z"]:
        """Latents with their detail: q and a drawn residual.

        Args:
          q: quantized latents of chunks that follow one another.
          noise: standard normal. The same for all chunks of a clip, a still picture keeps a still texture.
          steps: of the sampler; a regression head takes one whatever is asked.
          sides: as :meth:`condition` takes them.
        """
        known = [self.condition(q, sides=sides, null=null) for null in self._nulls(len(q))]
        return self._draw(q, noise, steps, known)

    def draw_next(
        self,
        q: Float[Array, "b 2 h w z"],
        noise: Float[Array, "b 1 h w z"],
        steps: Int[Array, ""],
        *,
        before: Bool[Array, ""],
    ) -> Float[Array, "b 1 h w z"]:
        """:meth:`draw` for the second of two chunks alone; it sees the first if ``before``."""
        known = []
        for null in self._nulls(len(q)):
            both = self.condition(q, null=null)
            # In a row of one chunk the chunk before stands in its place.
            shown = tuple((keys[:, :1], values[:, :1]) for keys, values in both.shown)
            known.append(Condition(both.tokens[:, 1:], shown, both.sides[:, 1:] & before))
        return self._draw(q[:, 1:], noise, steps, known)

    def _nulls(self, b: int) -> list[Array | None]:
        """What clips are conditioned on, for :meth:`condition`: what they have, and nothing for guidance."""
        return [None] if self.config.guidance == 1.0 else [None, jnp.ones(b, bool)]

    def _draw(self, q: Array, noise: Array, steps: Array, conditions: Sequence[Condition]) -> Array:
        """q and a residual drawn under the first condition, away from the second where there is one."""
        b, config = q.shape[0], self.config
        guidance = config.guidance
        noise = jnp.broadcast_to(noise, q.shape)

        def denoise(x: Array, sigma: Array) -> Array:
            clean = [self.denoise(x, jnp.broadcast_to(sigma, b), known) for known in conditions]
            return clean[0] if guidance == 1.0 else clean[1] + guidance * (clean[0] - clean[1])

        if config.kind == "regression":
            residual = denoise(jnp.zeros_like(q), jnp.asarray(config.high))
        else:
            residual = diffusion.sample(
                denoise, noise, steps, low=config.low, high=config.high, sampler=config.sampler
            )
        return q + residual * self.scale[...]
