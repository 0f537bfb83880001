"""The stages that one loop trains: tokenizer, then refinement and dynamics on what it makes of frames."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from worldsim.config import TrainConfig
from worldsim.data.loader import Loader
from worldsim.data.source import Source
from worldsim.models.tokenizer import to_float
from worldsim.models.world import init_params, split_module
from worldsim.parallel.agreement import from_lead
from worldsim.parallel.mesh import compute_dtype
from worldsim.parallel.placement import Share, share, stripes
from worldsim.train.codebook import first_codebook, follow_codebook
from worldsim.train.crops import crop_batch, crop_median, rarity_map, spaced_frames
from worldsim.train.looks import fold_looks, with_looks
from worldsim.train.losses import dynamics_loss, refine_loss, tokenizer_loss
from worldsim.train.plans import sample_plan
from worldsim.train.state import Batch, Params, Stage

StageName = Literal["tokenizer", "dynamics", "refine"]
STAGES: tuple[StageName, ...] = ("tokenizer", "dynamics", "refine")

LOOKS = 0x4C6F6F6B
"""Leads from the dynamics' key to that of its looks."""


def tokenizer_stage(
    config: TrainConfig, source: Source, median: np.ndarray, *, mesh: Mesh | None = None, samples: Any = None
) -> Stage:
    """Pixels to codes and back.

    Args:
      config: of the run.
      source: records with ``frames``.
      median: uint8 ``[h w c]``, the data's median frame.
      mesh: that it will train on; None is one device.
      samples: writes reconstructions to look at, or None.
    """
    graph, _ = split_module("tokenizer", config.world, dtype=compute_dtype())
    mine = share(mesh, config.tokenizer.batch)
    loader = _loader(config, source, "tokenizer", frames=config.tokenizer.frames, mine=mine)

    weights, stride = config.tokenizer_loss, config.world.tokenizer.stride
    seen = spaced_frames(source) if weights.crop else [np.zeros((1, *median.shape), np.uint8)]
    rarity = rarity_map(seen, median)

    def batches(start: int) -> Iterator[Batch]:
        with contextlib.closing(loader.iterate(start)) as clips:
            for step, clip in enumerate(clips, start):
                seed = (config.seed, step)
                cut = {"size": weights.crop, "stride": stride, "seed": seed, "rows": mine.rows}
                yield crop_batch(clip, median, rarity, **cut)

    def loss(params, frozen, batch, key, step):
        del step
        frames = to_float(batch["frames"])
        under = crop_median(frozen, batch["corner"], frames.shape[2:])
        return tokenizer_loss(nnx.merge(graph, params), frames, under, key, weights=weights)

    start = partial(init_params, "tokenizer", config.world)
    averaged = config.world.tokenizer.quantizer == "vq"
    return Stage(
        name="tokenizer",
        config=config.tokenizer,
        init=partial(first_codebook, config, _some_frames(source, config)) if averaged else start,
        loss=loss,
        batches=batches,
        frozen=to_float(median),
        after=partial(follow_codebook, config, graph) if averaged else None,
        samples=samples,
    )


def _some_frames(source: Source, config: TrainConfig, count: int = 128) -> np.ndarray:
    """A chunk of frames from the middle of each of some evenly spaced records, end to end ``[1 t h w c]``."""
    f = config.world.tokenizer.frames_per_chunk
    whole = np.flatnonzero(np.asarray(source.lengths) >= f)
    picks = whole[np.unique(np.linspace(0, len(whole) - 1, count).astype(int))]
    starts = [(int(source.lengths[i]) - f) // 2 for i in picks]
    chunks = [source[int(i)]["frames"][at : at + f] for i, at in zip(picks, starts, strict=True)]
    return np.concatenate(chunks)[None]


def _loader(
    config: TrainConfig, source: Source, stage: StageName, *, frames: int, mine: Share, segments: int = 1
) -> Loader:
    """This process's share of a stage's clips; each stage shuffles with a seed of its own."""
    return Loader(
        source,
        frames=frames,
        batch=mine.of,
        seed=config.seed + STAGES.index(stage),
        rows=mine.rows,
        threads=config.data.threads,
        segments=segments,
    )


def dynamics_stage(
    config: TrainConfig,
    source: Source,
    *,
    mesh: Mesh | None = None,
    strategy: str = "ring",
    vectors: np.ndarray | None = None,
    samples: Any = None,
) -> Stage:
    """The next chunk from all that came before it, in every order.

    Args:
      config: of the run.
      source: records with ``codes`` and what else the world reads, a row a chunk (see
        :func:`worldsim.train.codes.encode_source`).
      mesh: that it will train on; None is one device.
      strategy: of :func:`worldsim.ops.attention.attend`, where the mesh spreads chunks over ``context``.
      vectors: of the codes (:func:`worldsim.train.looks.code_vectors`), where ``config.looks`` asks for them.
      samples: writes rollouts to look at, or None.

    Raises:
      ValueError: ``config.looks`` without vectors.
    """
    graph, _ = split_module("dynamics", config.world, dtype=compute_dtype())
    f = config.world.tokenizer.frames_per_chunk
    span = config.dynamics.frames // f
    mine = share(mesh, config.dynamics.batch, sequence=True)
    segments = config.mix.segments
    loader = _loader(config, source, "dynamics", frames=span, mine=mine, segments=segments)
    strategy = strategy if mine.parts > 1 else "local"

    def batches(start: int) -> Iterator[Batch]:
        with contextlib.closing(loader.iterate(start)) as clips:
            for step, clip in enumerate(clips, start):
                yield plan_batch(clip, config, step=step, rows=mine.rows, parts=mine.parts)

    def loss(params, frozen, batch, key, step):
        del frozen
        how: dict[str, Any] = {"strategy": strategy, "remat": config.dynamics.remat}
        how["late"] = step >= config.mix.resampled_from * config.dynamics.steps
        digits = config.world.tokenizer.digits
        model = nnx.merge(graph, fold_looks(params, config.world))
        return dynamics_loss(model, batch, key, digits=digits, mix=config.mix, **how)

    if config.looks and vectors is None:
        raise ValueError("TrainConfig.looks needs the vectors of the codes; give them, or set looks to 0.")
    vectors = from_lead(vectors) if config.looks else None

    def init(key: jax.Array) -> Params:
        params = init_params("dynamics", config.world, key)
        if vectors is None:
            return params
        return with_looks(params, config.world, config.looks, vectors, jax.random.fold_in(key, LOOKS))

    return Stage(
        name="dynamics",
        config=config.dynamics,
        init=init,
        loss=loss,
        batches=batches,
        frozen=_fingerprint(source, vectors),
        samples=samples,
        sequence=True,
    )


def refine_stage(
    config: TrainConfig, source: Source, tokenizer: Params, *, mesh: Mesh | None = None, samples: Any = None
) -> Stage:
    """The detail of the latents that the codes leave out.

    Args:
      config: of the run.
      source: records with ``frames``.
      tokenizer: its trained parameters.
      mesh: that it will train on; None is one device.
      samples: writes renderings to look at, or None.
    """
    graph, _ = split_module("refine", config.world, dtype=compute_dtype())
    seer, _ = split_module("tokenizer", config.world)
    mine = share(mesh, config.refine.batch)
    loader = _loader(config, source, "refine", frames=config.refine.frames, mine=mine)

    def see(tokenizer: Params, frames: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(seer, tokenizer)
        z = model.encode(to_float(frames))
        return z, model.quantizer.lookup(model.quantizer(z)[1])

    @jax.jit
    def deviations(tokenizer: Params, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, q = see(tokenizer, frames)
        return (z - q).std((0, 1, 2, 3)) + 1e-4, q.std((0, 1, 2, 3)) + 1e-4

    # Constants of the program, which has to be the same to the last bit in every process.
    scale, spread = from_lead(deviations(tokenizer, _some_frames(source, config)))

    def init(key: jax.Array) -> Params:
        model = nnx.merge(graph, init_params("refine", config.world, key))
        model.scale[...], model.spread[...] = scale, spread
        return nnx.split(model, nnx.Param)[1]

    def batches(start: int) -> Iterator[Batch]:
        with contextlib.closing(loader.iterate(start)) as clips:
            for clip in clips:
                yield {"frames": clip["frames"]}

    def loss(params, frozen, batch, key, step):
        del step
        z, q = see(frozen, batch["frames"])
        return refine_loss(nnx.merge(graph, params), z, q, key, weights=config.refine_loss)

    return Stage(
        name="refine",
        config=config.refine,
        init=init,
        loss=loss,
        batches=batches,
        frozen=tokenizer,
        samples=samples,
    )


def _fingerprint(source: Source, vectors: np.ndarray | None) -> np.ndarray:
    """A digest of the first codes, and of their vectors where there are any: a run that goes on with those of
    another tokenizer is refused."""
    codes = np.ascontiguousarray(source[0]["codes"], np.int32).tobytes()
    codes += b"" if vectors is None else np.ascontiguousarray(vectors, np.float32).tobytes()
    return np.frombuffer(hashlib.sha256(codes).digest(), np.uint32)


def plan_batch(
    clip: Batch, config: TrainConfig, *, step: int, rows: Sequence[int] | None = None, parts: int = 1
) -> Batch:
    """Clips of codes laid out for a plan that is drawn for each.

    The plan of a row depends on the seed, the step and the row's number alone.

    Args:
      clip: arrays ``[b span ...]``, a row a chunk; where several clips are packed into a row, ``segments``
        says which of them each chunk is of (see :class:`worldsim.data.loader.Loader`).
      config: of the run.
      step: of training.
      rows: the rows' numbers, counted over all processes; None counts them from 0.
      parts: devices that chunks are dealt out to (:func:`worldsim.parallel.placement.stripes`); 1 leaves them
        in the order of generation.

    Returns:
      The same arrays gathered to ``[b p ...]``, with ``times [b p]`` in frames since the clip's beginning,
      ``orders [b p]`` and ``queries [b q]``, the places of the chunks that carry loss. ``segments [b p]``
      is there where it was; -1 in it is padding, and in ``queries`` nothing.

    Raises:
      ValueError: chunks or queries that don't divide over the devices.
    """
    count, span = clip["codes"].shape[:2]
    rows = range(count) if rows is None else rows
    pinned, scale = config.world.dynamics.pinned, config.world.tokenizer.frames_per_chunk
    dealt, asked = stripes(config.mix.chunks, parts), stripes(config.mix.queries, parts)
    place = np.argsort(dealt)
    packed = clip.get("segments", np.zeros((count, span), int))
    spans = [np.bincount(row[row >= 0]).tolist() for row in packed]
    plans = [
        sample_plan(np.random.default_rng((config.seed, step, row)), one, mix=config.mix, pinned=pinned)
        for row, one in zip(rows, spans, strict=True)
    ]
    begins = [np.cumsum([0, *one])[p.segments] for one, p in zip(spans, plans, strict=True)]
    out = {
        name: np.stack([a[p.positions[dealt]] for a, p in zip(array, plans, strict=True)])
        for name, array in clip.items()
    }
    times = [(p.positions - begin)[dealt] * scale for p, begin in zip(plans, begins, strict=True)]
    out["times"] = np.stack(times).astype(np.float32)
    out["orders"] = np.stack([p.orders[dealt] for p in plans]).astype(np.int32)
    if "segments" in clip:
        out["segments"] = np.stack([p.segments[dealt] for p in plans]).astype(np.int32)
    queries = np.stack([p.queries[asked] for p in plans])
    out["queries"] = np.where(queries < 0, -1, place[queries]).astype(np.int32)
    return out
