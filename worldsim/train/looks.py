"""Codes read and told by what they look like, while the dynamics trains.

A code's number says nothing of its look, so a rare code, such as one where two things meet, is learned from
the few times that it is seen. Here a small network of the codes' vectors, which are close where codes look
alike, adds to a code's embedding and, times what the head makes of a token, to its logit: what is learned of
common codes serves rare ones. Both sums are linear in what the transformer takes and gives, so they are
folded into the parameters that :class:`worldsim.models.dynamics.Dynamics` has, anew in every step of training
and once for good in the world that comes of it, which is as one without looks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange
from flax import nnx
from jaxtyping import Array, Float

from worldsim.config import WorldConfig
from worldsim.models.world import fill_params, split_module
from worldsim.parallel.sharding import by_path

TOLD = 32
"""Features of a code that the head of a new run tells."""

SCALE = 0.3
"""Of what looks add to embeddings, beside the network's own weights: part of what a checkpoint means."""


class Looks(nnx.Module):
    """Features of codes from their vectors.

    Attributes:
      vectors: ``[v z]``, what no gradient moves and no weight decays.
      up, down: from a vector to what it adds to the code's embedding, and to the features that it answers to.
      told: from a token to the features of each of its codes.
    """

    def __init__(self, vectors: Float[np.ndarray, "v z"], config: WorldConfig, size: int, *, rngs: nnx.Rngs):
        width, codes = config.dynamics.width, config.dynamics.patch**2
        self.vectors = nnx.Param(jnp.asarray(vectors, jnp.float32))
        self.up = nnx.Linear(vectors.shape[1], size, rngs=rngs)
        self.down = nnx.Linear(size, width // codes + TOLD, rngs=rngs)
        init = nnx.initializers.normal(0.02)
        self.told = nnx.Linear(width, codes * TOLD, kernel_init=init, rngs=rngs)


def code_vectors(config: WorldConfig, tokenizer: Any) -> np.ndarray:
    """What each code stands for ``[v z]``, each channel with mean 0 and deviation 1 over the codes.

    Args:
      config: of the world.
      tokenizer: its trained parameters.
    """
    graph, _ = split_module("tokenizer", config)
    codes = jnp.arange(config.tokenizer.codebook)
    quantizer = nnx.merge(graph, jax.tree.map(jnp.asarray, tokenizer)).quantizer
    found = np.asarray(quantizer.lookup(codes), np.float32)
    return (found - found.mean(0)) / (found.std(0) + 1e-6)


def with_looks(params: nnx.State, config: WorldConfig, size: int, vectors: np.ndarray, key: jax.Array) -> Any:
    """Parameters of the dynamics beside fresh ones of looks, as ``looks/...``.

    Args:
      params: of the dynamics.
      config: of the world.
      size: hidden channels of the network.
      vectors: ``[v z]``, see :func:`code_vectors`.
      key: draws its weights.

    Raises:
      ValueError: not a vector for each code.
    """
    if len(vectors) != config.tokenizer.codebook:
        count = config.tokenizer.codebook
        raise ValueError(f"{len(vectors)} vectors for a codebook of {count}; give one each.")
    looks = nnx.Dict({"looks": Looks(vectors, config, size, rngs=nnx.Rngs(key))})
    return nnx.merge_state(params, nnx.split(looks, nnx.Param)[1])


def fold_looks(params: Any, config: WorldConfig) -> Any:
    """The parameters of the dynamics with all that looks add to them; those without looks as they are.

    Args:
      params: a tree with the paths of the dynamics and, where it has them, of ``looks``.
      config: of the world.

    Returns:
      Parameters as the dynamics has them.

    Raises:
      ValueError: others than those.
    """
    found = {path: jnp.asarray(leaf) for path, leaf in by_path(params).items()}
    mine = {path: leaf for path, leaf in found.items() if not path.startswith("looks/")}
    if len(mine) < len(found):
        embed, told = _features(found, mine["codes"].shape[1])
        mine["codes"] = mine["codes"].at[:-1].add(SCALE * embed)
        for name, shape in (("kernel", "d"), ("bias", "")):
            part = rearrange(found[f"looks/told/{name}"], f"{shape} (c n) -> {shape} c n", n=told.shape[1])
            add = einsum(part, told, f"{shape} c n, v n -> {shape} c v")
            mine[f"head/{name}"] += add.reshape(mine[f"head/{name}"].shape)
    return fill_params("dynamics", config, mine)


def _features(found: dict[str, Array], width: int) -> tuple[Float[Array, "v n"], Float[Array, "v t"]]:
    """What codes add to embeddings of this width, and what they answer to in the head."""
    vectors = jax.lax.stop_gradient(found["looks/vectors"])
    hidden = nnx.gelu(vectors @ found["looks/up/kernel"] + found["looks/up/bias"])
    out = hidden @ found["looks/down/kernel"] + found["looks/down/bias"]
    out = _whole(out)  # columns spread as the embeddings' are would move between devices when they are parted
    return _whole(out[:, :width]), _whole(out[:, width:])


def _whole(features: Float[Array, "v n"]) -> Float[Array, "v n"]:
    """The same on every device of the mesh that is set, and so are their gradients."""
    if jax.sharding.get_abstract_mesh().empty:
        return features
    return jax.lax.with_sharding_constraint(features, jax.sharding.PartitionSpec())
