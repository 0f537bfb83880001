"""What training shows now and then: reconstructions beside the truth, rollouts beside the future."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from worldsim.config import TrainConfig
from worldsim.data.sheet import contact_sheet
from worldsim.data.source import Source
from worldsim.data.video import write_video
from worldsim.models.tokenizer import to_float, to_uint8
from worldsim.models.world import split_module
from worldsim.train.looks import fold_looks

Writer = Callable[[Any, Any, int, Path], None]
_ROWS, _FRAMES = 4, 12


def _length(source: Source, most: int, chunk: int) -> int:
    """Frames to show: ``most`` or, if no record is that long, the whole chunks of the longest."""
    return min(max(most, chunk), int(np.max(source.lengths))) // chunk * chunk


def _clips(source: Source, rows: int, frames: int) -> list[dict[str, np.ndarray]]:
    """The middle of some evenly spaced records that are long enough."""
    long = [i for i in range(len(source)) if source.lengths[i] >= frames]
    chosen = [long[i] for i in np.linspace(0, len(long) - 1, min(rows, len(long))).astype(int)]
    out = []
    for i in chosen:
        start = (int(source.lengths[i]) - frames) // 2
        out.append({name: array[start : start + frames] for name, array in source[i].items()})
    return out


def tokenizer_samples(config: TrainConfig, source: Source) -> Writer:
    """A writer of sheets with truth above reconstruction from codes."""
    graph, _ = split_module("tokenizer", config.world)

    @jax.jit
    def reconstruct(params, frames):
        model = nnx.merge(graph, params)
        return to_uint8(model.detokenize(model.tokenize(to_float(frames))))

    def write(params: Any, frozen: Any, step: int, folder: Path) -> None:
        del frozen
        frames = _length(source, _FRAMES, config.world.tokenizer.frames_per_chunk)
        if not frames:
            return
        clips = _clips(source, _ROWS, frames)
        truth = np.stack([clip["frames"] for clip in clips])
        drawn = np.asarray(reconstruct(params, truth))
        rows = [row for pair in zip(truth, drawn, strict=True) for row in pair]
        sheet = contact_sheet(rows, labels=["truth", "codes"] * len(truth))
        write_video(folder / f"{step:07d}.png", sheet[None], scale=1)

    return write


def refine_samples(config: TrainConfig, source: Source) -> Writer:
    """A writer of sheets: truth, codes alone, codes with drawn detail, unquantized latents."""
    graphs = [split_module(name, config.world)[0] for name in ("tokenizer", "refine")]

    @jax.jit
    def draw(tokenizer, params, frames, key):
        model, head = nnx.merge(graphs[0], tokenizer), nnx.merge(graphs[1], params)
        z = model.encode(to_float(frames))
        q = model.quantizer.lookup(model.quantizer(z)[1])
        noise = jax.random.normal(key, (len(frames), 1, *z.shape[2:]))
        return [to_uint8(model.decode(latents)) for latents in (q, head.draw(q, noise, jnp.int32(4)), z)]

    def write(params: Any, frozen: Any, step: int, folder: Path) -> None:
        frames = _length(source, _FRAMES, config.world.tokenizer.frames_per_chunk)
        if not frames:
            return
        truth = np.stack([clip["frames"] for clip in _clips(source, _ROWS, frames)])
        drawn = [np.asarray(part) for part in draw(frozen, params, truth, jax.random.key(step))]
        rows = [row for part in zip(truth, *drawn, strict=True) for row in part]
        sheet = contact_sheet(rows, labels=["truth", "codes", "refined", "latents"] * len(truth))
        write_video(folder / f"{step:07d}.png", sheet[None], scale=1)

    return write


def dynamics_samples(config: TrainConfig, source: Source, tokenizer: Any) -> Writer:
    """A writer of rollouts from four chunks, truth above model: a sheet and (with mediapy) a video.

    It writes nothing where no record is longer than that.
    """
    from worldsim.generate.extend import World
    from worldsim.types import Clip

    def write(params: Any, frozen: Any, step: int, folder: Path) -> None:
        del frozen
        f = config.world.tokenizer.frames_per_chunk
        known, rows = 4 * f, []
        frames = _length(source, known + _FRAMES * f, f)
        if frames <= known:
            return
        parts = {"tokenizer": tokenizer, "dynamics": fold_looks(params, config.world)}
        world = World.make(config.world, parts)
        for clip in _clips(source, _ROWS, frames):
            actions = clip.get("actions")
            given = Clip(clip["frames"][:known], None if actions is None else actions[:known])
            future = None if actions is None else actions[known:]
            out = world.extend(given, len(clip["frames"]) - known, actions=future, key=jax.random.key(step))
            rows += [clip["frames"], out.clip.frames]
        sheet = contact_sheet(rows, labels=["truth", "model"] * (len(rows) // 2))
        write_video(folder / f"{step:07d}.png", sheet[None], scale=1)
        both = np.concatenate(
            [np.concatenate(rows[0::2], axis=2), np.concatenate(rows[1::2], axis=2)], axis=1
        )
        if find_spec("mediapy") and find_spec("imageio_ffmpeg"):
            write_video(folder / f"{step:07d}.mp4", both, fps=config.world.fps)

    return write
