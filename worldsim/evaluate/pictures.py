"""What the tokenizer keeps of a picture: renderings of held-out clips, from codes and from latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from worldsim.evaluate.curves import psnr_rows, ssim_rows
from worldsim.evaluate.features import PIECE, frechet, make_network, paired_distance, pieces, spread
from worldsim.generate.extend import World
from worldsim.generate.render import BLOCK, render, tokenize
from worldsim.models.tokenizer import to_float, to_uint8
from worldsim.ops import haar
from worldsim.parallel.shares import in_shares

Renderer = Callable[[UInt8[np.ndarray, "b t H W c"]], UInt8[np.ndarray, "b t H W c"]]


STEPS = (1, 2, 4, 8)
"""Of the refinement head, a row each."""

GAPS = ("sharpness", "features", "frechet")
"""Scores by which a refinement is judged: what share of the way from ``q`` to ``z`` it goes."""


@partial(jax.jit, static_argnames="graph")
def _through(graph: nnx.GraphDef, params: nnx.State, frames):
    model = nnx.merge(graph, params)
    return to_uint8(model.decode(model.encode(to_float(frames))))


def renderers(world: World, regression: World | None = None, *, seed: int = 0) -> dict[str, Renderer]:
    """By name, every way in which the world can draw frames that it has encoded, worst first.

    ``q`` decodes the codes, which is what the dynamics works with; ``n steps`` refine them; ``z`` decodes the
    latents before they were rounded, which no generated chunk has: the ceiling of any refinement. All
    processes call a way with the same clips; each draws its share of them and gets all.

    Args:
      world: to judge.
      regression: a world with the same tokenizer whose head predicts the mean detail, for a row of its own.
      seed: of the detail.

    Raises:
      ValueError: the two worlds' codes differ.
    """
    f = world.config.tokenizer.frames_per_chunk
    block = BLOCK * f

    def latents(frames: np.ndarray, _: jax.Array) -> np.ndarray:
        parts = []
        for start in range(0, frames.shape[1], block):
            part = frames[:, start : start + block]
            pad = ((0, 0), (0, block - part.shape[1]), (0, 0), (0, 0), (0, 0))
            drawn = _through(*world.tokenizer, np.pad(part, pad, mode="edge"))
            parts.append(np.asarray(drawn)[:, : part.shape[1]])
        return np.concatenate(parts, axis=1)

    def codes(frames: np.ndarray, keys: jax.Array, *, by: World, steps: int) -> np.ndarray:
        seen = tokenize(*by.tokenizer, frames, frames_per_chunk=f)
        if by is not world and (seen != tokenize(*world.tokenizer, frames, frames_per_chunk=f)).any():
            raise ValueError(
                "evaluate: the regression head belongs to another tokenizer; train it on this one."
            )
        times = np.arange(seen.shape[1], dtype=np.float32) * f
        return render(by.renderer, seen, times, keys, refine_steps=steps)

    def over_all(way: Callable[..., np.ndarray], frames: np.ndarray) -> np.ndarray:
        keys = jax.random.split(jax.random.key(seed), len(frames))
        return in_shares(len(frames), lambda rows: way(frames[rows], keys[rows]))

    def drawn(by: World, steps: int) -> Renderer:
        return partial(over_all, partial(codes, by=by, steps=steps))

    rows: dict[str, Renderer] = {"q": drawn(world, 0)}
    for one in (regression, world):
        if one is not None and one.refine is not None:
            mean = one.config.refine.kind == "regression"
            rows |= {
                "regression" if mean else f"{n} step{'s' * (n > 1)}": drawn(one, n)
                for n in ((1,) if mean else STEPS)
            }
    return rows | {"z": partial(over_all, latents)}


def shares_closed(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Per row between ``q`` and ``z``, what share of the gap between these it closes in each of ``GAPS``.

    1 is as far as ``z``, 0 as far as ``q``; beyond 1 overshoots. Gaps of nothing are left out.
    """
    out: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        if name not in ("q", "z"):
            out[name] = {
                score: (row[score] - rows["q"][score]) / gap
                for score in GAPS
                if row.get(score) is not None and (gap := rows["z"][score] - rows["q"][score])
            }
    return out


def picture_table(
    ways: Mapping[str, Renderer], frames: UInt8[np.ndarray, "b t H W c"]
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Scores of every way to draw real clips.

    Args:
      ways: by name; ``z``, if there, is the unit of flicker.
      frames: whole chunks of held-out clips.

    Returns:
      The drawn frames by name, and before them per name: ``psnr`` and ``ssim``; ``sharpness``, the energy of
      the finest Haar bands over that of the truth (1 is alike, less is smooth); ``features``, the paired
      distance from the truth, and ``frechet`` between all its pieces and the true ones, in units of the
      truth's spread (both 0 at best); ``flicker``, the energy of second differences in time over that of
      ``z``.
    """
    network, real = make_network(frames.shape[-1]), None
    drawn = {name: way(frames) for name, way in ways.items()}
    if frames.shape[1] >= PIECE:
        real = pieces(frames)
        truth = network(real)[0]
    rest = flicker_energy(drawn["z"]) if "z" in drawn else 0.0
    rows: dict[str, dict[str, Any]] = {}
    for name, made in drawn.items():
        similar = ssim_rows(made, frames)
        rows[name] = {
            "psnr": float(psnr_rows(made, frames).mean()),
            "ssim": None if similar is None else float(similar.mean()),
            "sharpness": high_energy(made) / max(1e-12, high_energy(frames)),
            "flicker": flicker_energy(made) / rest if rest else None,
        }
        if real is not None:
            mine = pieces(made)
            rows[name]["features"] = paired_distance(network, mine, real)
            rows[name]["frechet"] = frechet(network(mine)[0], truth) / spread(truth)
    return rows, drawn


def high_energy(frames: UInt8[np.ndarray, "b t H W c"]) -> float:
    """Mean energy of the finest horizontal, vertical and diagonal Haar bands of frames in [-1, 1]."""
    even = frames[:, :, : frames.shape[2] // 2 * 2, : frames.shape[3] // 2 * 2]
    return float(np.mean([_high(clip) for clip in even]))


@jax.jit
def _high(frames: Any) -> Any:
    x = to_float(frames)
    return jnp.square(haar.fold(haar.fold(x, -3, 1), -2, 1)[..., x.shape[-1] :]).mean()


def flicker_energy(frames: UInt8[np.ndarray, "b t H W c"]) -> float:
    """Mean square of second differences in time of frames in [-1, 1]; 0 for fewer than three frames."""
    if frames.shape[1] < 3:
        return 0.0
    return float(np.square(np.diff(frames.astype(np.float32) / 127.5, n=2, axis=1)).mean())
