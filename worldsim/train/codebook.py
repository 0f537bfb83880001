"""The codebook of vector quantization in training: its start, its moving average, its revivals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from worldsim.config import TrainConfig
from worldsim.models.tokenizer import Tokenizer, to_float
from worldsim.models.world import make_tokenizer
from worldsim.ops import quantize
from worldsim.train.state import Params

DEAD, REVIVE = 0.03, 0.7
"""Codes with fewer vectors a step are revived, in this first share of the steps."""

START = 8192
"""Vectors that the codebook starts from."""


def _latents(model: Tokenizer, frames: jax.Array | np.ndarray) -> jax.Array:
    """The encoder's vectors ``[n z]`` of uint8 clips ``[b t h w c]``."""
    return model.encode(to_float(frames)).reshape(-1, model.config.latent)


def first_codebook(config: TrainConfig, frames: UInt8[np.ndarray, "b t h w c"], key: jax.Array) -> Params:
    """Fresh parameters of a tokenizer whose codebook fits what its encoder makes of some frames."""
    init_key, pick_key, book_key = jax.random.split(key, 3)
    model = make_tokenizer(config.world, rngs=nnx.Rngs(init_key))
    z = _latents(model, frames)
    z = jax.random.choice(pick_key, z, (min(START, len(z)),), replace=False)
    vq: Any = model.quantizer
    vq.codebook[...] = quantize.kmeans(z, config.world.tokenizer.codebook, book_key)
    return nnx.split(model, nnx.Param)[1]


def follow_codebook(
    config: TrainConfig,
    graph: nnx.GraphDef,
    before: Params,
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    step: jax.Array,
) -> Params:
    """The parameters with the codebook moved towards this step's latents (see :class:`Stage`)."""
    old, new = nnx.merge(graph, before), nnx.merge(graph, params)
    dead = jnp.where(step < REVIVE * config.tokenizer.steps, DEAD, 0.0)
    book, usage = quantize.update_codebook(
        old.quantizer.codebook[...],
        old.quantizer.usage[...],
        _latents(old, batch["frames"]),
        jax.random.fold_in(key, 1),
        dead=dead,
    )
    new.quantizer.codebook[...] = book
    new.quantizer.usage[...] = usage
    return nnx.split(new, nnx.Param)[1]
