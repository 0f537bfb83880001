"""Pre-norm transformer layers that leave to the caller who attends to whom."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from worldsim.config import DynamicsConfig, Remat
from worldsim.models.conv import DepthwiseConv, RMSNorm
from worldsim.ops.ring_attention import ATTENTION

Mix = Callable[
    [Float[Array, "b n k e"], Float[Array, "b n k e"], Float[Array, "b n k e"]], Float[Array, "b n k e"]
]
"""From unrotated queries, keys and values of a layer to what each token reads."""


NEAR, FAST = 4.0, 2
"""How much every query looks at its own place and time at first, by how many rotary pairs of each axis."""


def _near(_: Array, shape: tuple[int, ...], dtype=jnp.float32, *, head: int) -> Array:
    """A bias of queries and keys that points along the first axis of the pairs that turn fastest.

    Turned by their rotary phases, two such biases agree where time, row and column do, so that attention
    starts at what is near. (Su, https://kexue.fm/archives/9577, on biases beside rotary positions.)
    """
    pairs = jnp.concatenate([jnp.arange(count) < FAST for count in (head // 4, head // 8, head // 8)])
    pair = jnp.concatenate([NEAR * pairs, jnp.zeros(head // 2)])
    return jnp.tile(pair, shape[0] // head).astype(dtype)


class Attention(nnx.Module):
    """Projections and normalised queries and keys."""

    def __init__(self, config: DynamicsConfig, *, rngs: nnx.Rngs, dtype=None):
        heads, head = config.heads, config.width // config.heads
        self.heads = heads
        near = partial(_near, head=head)
        self.query = nnx.Linear(config.width, config.width, bias_init=near, rngs=rngs, dtype=dtype)
        self.key = nnx.Linear(config.width, config.width, bias_init=near, rngs=rngs, dtype=dtype)
        self.value = nnx.Linear(config.width, config.width, use_bias=False, rngs=rngs, dtype=dtype)
        self.query_norm = RMSNorm(head)
        self.key_norm = RMSNorm(head)
        self.out = nnx.Linear(
            config.width,
            config.width,
            use_bias=False,
            kernel_init=nnx.initializers.normal(0.02 / (2 * config.layers) ** 0.5),
            rngs=rngs,
            dtype=dtype,
        )

    def __call__(self, x: Float[Array, "b n d"], mix: Mix) -> Float[Array, "b n d"]:
        split = (*x.shape[:2], self.heads, -1)
        q = self.query_norm(self.query(x).reshape(split))
        k = self.key_norm(self.key(x).reshape(split))
        v = self.value(x).reshape(split)
        return self.out(mix(q, k, v).astype(x.dtype).reshape(*x.shape[:2], -1))


class MLP(nnx.Module):
    """Up, GELU, down."""

    def __init__(self, config: DynamicsConfig, *, rngs: nnx.Rngs, dtype=None):
        self.up = nnx.Linear(config.width, config.mlp, use_bias=False, rngs=rngs, dtype=dtype)
        self.down = nnx.Linear(
            config.mlp,
            config.width,
            use_bias=False,
            kernel_init=nnx.initializers.normal(0.02 / (2 * config.layers) ** 0.5),
            rngs=rngs,
            dtype=dtype,
        )

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(nnx.gelu(self.up(x)))


class Around(nnx.Module):
    """What lies around each token in its chunk's grid, by a depthwise 3x3 convolution that starts as nothing;
    tokens before the grid get nothing.

    Attention finds a thing by where it was; told of its surroundings, a token knows where a thing came from
    that moved by less than a token or over its border.
    """

    def __init__(
        self, config: DynamicsConfig, grid: tuple[int, int], lead: int, *, rngs: nnx.Rngs, dtype=None
    ):
        self.grid, self.lead = grid, lead
        self.norm = RMSNorm(config.width)
        self.conv = DepthwiseConv(config.width, zero=True, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        (rows, columns), lead = self.grid, self.lead
        chunks = self.norm(x).reshape(x.shape[0], -1, lead + rows * columns, x.shape[-1])
        grids = chunks[:, :, lead:].reshape(*chunks.shape[:2], rows, columns, x.shape[-1])
        seen = jax.vmap(self.conv)(grids)  # rows and chunks apart: each may be spread over devices
        seen = seen.reshape(*chunks.shape[:2], rows * columns, x.shape[-1])
        return jnp.pad(seen, ((0, 0), (0, 0), (lead, 0), (0, 0))).reshape(x.shape)


class Layer(nnx.Module):
    """Attention and MLP, each on a normalised copy and added."""

    def __init__(
        self, config: DynamicsConfig, grid: tuple[int, int], lead: int, *, rngs: nnx.Rngs, dtype=None
    ):
        self.around = Around(config, grid, lead, rngs=rngs, dtype=dtype) if config.around else None
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = MLP(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b n d"], mix: Mix) -> Float[Array, "b n d"]:
        if self.around is not None:
            x = x + self.around(x)
        x = x + self.attention(self.attention_norm(x), mix)
        return x + self.mlp(self.mlp_norm(x))


POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENTION),
}
"""What of a layer is kept between the passes beside its input, by the name that configs have for it."""


def _anew(layer: Layer, policy: Callable[..., bool]) -> Callable[[Array, Mix], Array]:
    """A layer of which the backward pass computes anew what the policy does not keep."""
    graph, params = nnx.split(layer)

    def run(x: Array, mix: Mix) -> Array:
        again = jax.checkpoint(lambda params, x: nnx.merge(graph, params)(x, mix), policy=policy)
        return again(params, x)

    return run


class Transformer(nnx.Module):
    """A stack of layers and a last norm, over chunks of ``lead`` tokens and a grid of them."""

    def __init__(
        self, config: DynamicsConfig, grid: tuple[int, int], lead: int, *, rngs: nnx.Rngs, dtype=None
    ):
        self.layers = nnx.List(
            [Layer(config, grid, lead, rngs=rngs, dtype=dtype) for _ in range(config.layers)]
        )
        self.norm = RMSNorm(config.width)

    def __call__(
        self, x: Float[Array, "b n d"], mix: Callable[[int], Mix], *, remat: Remat = "none"
    ) -> Float[Array, "b n d"]:
        """Run the stack; ``mix(i)`` is what layer i reads with, and pure where layers are computed anew.

        Between the passes ``none`` keeps all that the gradient reads; ``layer`` the input of each layer,
        which is computed anew in the backward pass; ``attention`` also what attention gave, so that only
        the projections and the MLP are. (Chen et al., https://arxiv.org/abs/1604.06174.)
        """
        for i, layer in enumerate(self.layers):
            run = layer if remat == "none" else _anew(layer, POLICIES[remat])
            x = run(x, mix(i))
        return self.norm(x).astype(jnp.float32)
