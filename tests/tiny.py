"""Worlds small enough to test every law on: 16x16 frames, 2x2 codes a chunk, random weights that matter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from worldsim.config import (
    ActionConfig,
    ConditionConfig,
    DynamicsConfig,
    RefineConfig,
    TokenizerConfig,
    WorldConfig,
)
from worldsim.generate.extend import World
from worldsim.models.world import split_module
from worldsim.parallel.sharding import path_of
from worldsim.types import Clip

ACTIONS = ActionConfig("discrete", 3, ("noop", "left", "right"))
CONDITIONS = (ConditionConfig("class", "class", 4), ConditionConfig("speed", "vector", 2))


def config(*, frames_per_chunk=1, patch=1, context=6, action=ACTIONS, conditions=(), **dynamics):
    """A world of 16x16 frames: 2x2 codes of a codebook of 9."""
    tokenizer = {"widths": (8, 16), "blocks": 1, "latent": 4, "levels": (3, 3)}
    sizes = {"width": 32, "layers": 2, "heads": 2, "mlp": 64, "pinned": 2} | dynamics
    return WorldConfig(
        TokenizerConfig(height=16, width=16, frames_per_chunk=frames_per_chunk, **tokenizer),
        DynamicsConfig(patch=patch, context=context, action=action, conditions=conditions, **sizes),
        RefineConfig(width=16, layers=1, heads=2, mlp=16),
        fps=10.0,
    )


def params(name, world, *, seed=0):
    """Random weights of the size of trained ones, so that every input changes the answer."""

    scales = {"attention/out/kernel": 12.0, "head/kernel": 1.5, "codes": 1.0, "table": 1.0}

    def draw(keys, leaf):
        path = path_of(keys)
        noise = np.random.default_rng((seed, *path.encode())).normal(size=leaf.shape)
        if path.endswith("norm/scale"):
            noise = (4.0 if "query" in path else 1.0) + 0.1 * noise
        else:
            usual = 1.0 if path.endswith("kernel") else 0.2
            noise *= next((scale for end, scale in scales.items() if path.endswith(end)), usual)
            if path.endswith("kernel"):
                noise *= np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, split_module(name, world)[1])


@functools.cache
def model(name, world, *, seed=0):
    """The tokenizer or the dynamics of a world, with such weights."""
    return nnx.merge(split_module(name, world)[0], params(name, world, seed=seed))


def make_world(world, *, seed=0, parts=("tokenizer", "dynamics", "refine")):
    """A whole world with such weights."""
    return World.make(world, {name: params(name, world, seed=seed) for name in parts})


def make_clip(frames, *, seed=0, actions=True):
    """Noise, which no two chunks of have the same codes, with actions."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
    return Clip(pixels, rng.integers(0, 3, frames).astype(np.int32) if actions else None)


def chunk_ids(segments, orders, stream):
    """``[b p 3]`` from what may be broadcast to ``[b p]``."""
    parts = np.broadcast_arrays(segments, orders, stream)
    return jnp.asarray(np.stack(parts, -1), jnp.int32)
