"""The stages that one loop trains: tokenizer, then dynamics on the tokenizer's codes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from worldsim.config import TrainConfig
from worldsim.data.loader import Loader
from worldsim.data.source import Source
from worldsim.models.tokenizer import to_float
from worldsim.models.world import init_params, split_module
from worldsim.parallel.mesh import compute_dtype
from worldsim.train.crops import crop_batch, crop_median, rarity_map
from worldsim.train.losses import dynamics_loss, tokenizer_loss
from worldsim.train.plans import sample_plan
from worldsim.train.state import Batch, Stage


def tokenizer_stage(config: TrainConfig, source: Source, median: np.ndarray, *, samples: Any = None) -> Stage:
    """Pixels to codes and back.

    Args:
      config: of the run.
      source: records with ``frames``.
      median: uint8 ``[h w c]``, the data's median frame.
      samples: writes reconstructions to look at, or None.
    """
    graph, _ = split_module("tokenizer", config.world, dtype=compute_dtype())
    loader = Loader(
        source,
        frames=config.tokenizer.frames,
        batch=config.tokenizer.batch,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
    )

    weights, stride = config.tokenizer_loss, config.world.tokenizer.stride
    rarity = rarity_map(_some_frames(source) / 127.5, median / 127.5) if weights.crop else np.ones(())

    def batches(start: int) -> Iterator[Batch]:
        with contextlib.closing(loader.iterate(start)) as clips:
            for step, clip in enumerate(clips, start):
                seed = (config.seed, step)
                yield crop_batch(clip, median, rarity, size=weights.crop, stride=stride, seed=seed)

    def loss(params, frozen, batch, key, step):
        del step
        frames = to_float(batch["frames"])
        under = crop_median(frozen, batch["corner"], frames.shape[2:])
        return tokenizer_loss(nnx.merge(graph, params), frames, under, key, weights=weights)

    return Stage(
        name="tokenizer",
        config=config.tokenizer,
        init=lambda key: init_params("tokenizer", config.world, key),
        loss=loss,
        batches=batches,
        frozen=to_float(median),
        samples=samples,
    )


def _some_frames(source: Source, count: int = 128) -> np.ndarray:
    """Frames from evenly spaced records, every eighth of each."""
    picks = np.unique(np.linspace(0, len(source) - 1, count).astype(int))
    return np.concatenate([source[int(i)]["frames"][::8] for i in picks])


def dynamics_stage(config: TrainConfig, source: Source, *, samples: Any = None) -> Stage:
    """The next chunk from all that came before it, in every order.

    Args:
      config: of the run.
      source: records with ``codes`` and what else the world reads, a row a chunk (see
        :func:`worldsim.train.codes.encode_source`).
      samples: writes rollouts to look at, or None.
    """
    graph, _ = split_module("dynamics", config.world, dtype=compute_dtype())
    f = config.world.tokenizer.frames_per_chunk
    span = config.dynamics.frames // f
    loader = Loader(
        source,
        frames=span,
        batch=config.dynamics.batch,
        seed=config.seed + 1,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
    )

    def batches(start: int) -> Iterator[Batch]:
        with contextlib.closing(loader.iterate(start)) as clips:
            for step, clip in enumerate(clips, start):
                yield plan_batch(clip, config, step=step)

    def loss(params, frozen, batch, key, step):
        del frozen, step
        levels = config.world.tokenizer.levels
        return dynamics_loss(nnx.merge(graph, params), batch, key, levels=levels, mix=config.mix)

    return Stage(
        name="dynamics",
        config=config.dynamics,
        init=lambda key: init_params("dynamics", config.world, key),
        loss=loss,
        batches=batches,
        frozen=_fingerprint(source),
        samples=samples,
    )


def _fingerprint(source: Source) -> np.ndarray:
    """A digest of the first codes: a run that goes on with another tokenizer's codes is refused."""
    codes = np.ascontiguousarray(source[0]["codes"], np.int32)
    return np.frombuffer(hashlib.sha256(codes.tobytes()).digest(), np.uint32)


def plan_batch(clip: Batch, config: TrainConfig, *, step: int) -> Batch:
    """Clips of codes laid out in the order of generation, a plan drawn for each.

    The plan of row i depends on the seed, the step and i alone (i counted over all processes).

    Args:
      clip: arrays ``[b span ...]``, a row a chunk.
      config: of the run.
      step: of training.

    Returns:
      The same arrays gathered to ``[b p ...]``, with ``times [b p]`` in frames and ``queries [b q]``.
    """
    rows, span = clip["codes"].shape[:2]
    first = jax.process_index() * rows
    plans = [
        sample_plan(
            np.random.default_rng((config.seed, step, first + i)),
            span,
            mix=config.mix,
            pinned=config.world.dynamics.pinned,
        )
        for i in range(rows)
    ]
    out = {
        name: np.stack([a[p.positions] for a, p in zip(array, plans, strict=True)])
        for name, array in clip.items()
    }
    scale = config.world.tokenizer.frames_per_chunk
    out["times"] = np.stack([p.positions * scale for p in plans]).astype(np.float32)
    out["queries"] = np.stack([p.queries for p in plans]).astype(np.int32)
    return out
