"""From codes to frames: a pure function of codes, times and keys, a fixed block of chunks at a time."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from worldsim.models.tokenizer import to_float, to_uint8

BLOCK, HALO = 16, 2
"""Chunks per compiled call, and chunks on either side that it looks at: the detail of a chunk depends on the
codes next to it, and its pixels on the detail next to it."""

REFINE = 0x5EED
"""Folded into a clip's key for the noise of its detail."""

Module = tuple[nnx.GraphDef, Any]
Window = Literal["final", "streaming", "cyclic"]


@dataclasses.dataclass(frozen=True)
class Renderer:
    """What draws frames.

    Attributes:
      tokenizer: graph and parameters.
      refine: of the refinement head, or None.
      frames_per_chunk: of the tokenizer.
    """

    tokenizer: Module
    refine: Module | None
    frames_per_chunk: int


@partial(jax.jit, static_argnames="graphs")
def draw(
    graphs: tuple[nnx.GraphDef, nnx.GraphDef | None],
    params: tuple[Any, Any],
    codes: Int[Array, "b p h w"],
    sides: Bool[Array | np.ndarray, "p 2"],
    keys: Array,
    steps: Int[Array, ""],
) -> UInt8[Array, "b t H W c"]:
    """Frames of chunks in the order of time, as one program; arguments as of :func:`render`.

    ``graphs`` and ``params`` are those of the tokenizer and of the refinement head, None to leave it out;
    ``sides`` says which chunks see the one before them and the one after.
    """
    model = nnx.merge(graphs[0], params[0])
    latents = model.quantizer.lookup(codes)
    if graphs[1] is not None:
        head, noise = nnx.merge(graphs[1], params[1]), _noise(keys, latents.shape[2:])
        latents = head.draw(latents, noise, steps, sides=sides[None])
    return to_uint8(model.decode(latents, sides=sides[None]))


def _noise(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b 1 h w z"]:
    """The noise of clips: the same for all chunks of one."""
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, REFINE), (1, *shape))
    return jax.vmap(draw)(keys)


@partial(jax.jit, static_argnames="graphs")
def draw_next(
    graphs: tuple[nnx.GraphDef, nnx.GraphDef | None],
    params: tuple[Any, Any],
    codes: Int[Array, "b 2 h w"],
    latents: Float[Array, "b 1 h w z"] | None,
    before: Bool[Array, ""],
    keys: Array,
    steps: Int[Array, ""],
) -> tuple[UInt8[Array, "b t H W c"] | None, Float[Array, "b 1 h w z"]]:
    """The second of two chunks as :func:`render` draws it with the window ``streaming``, and it alone.

    Args:
      graphs, params: as of :func:`draw`.
      codes: of the chunk before and of this one.
      latents: of the chunk before as it was drawn; None asks for this chunk's latents and no frames.
      before: whether there is a chunk before.
      keys: ``[b]``, of the detail.
      steps: of the refinement.

    Returns:
      Its frames, or None, and its latents, for the next chunk.
    """
    model = nnx.merge(graphs[0], params[0])
    both = model.quantizer.lookup(codes)
    new = both[:, 1:]
    if graphs[1] is not None:
        head = nnx.merge(graphs[1], params[1])
        new = head.draw_next(both, _noise(keys, both.shape[2:]), steps, before=before)
    if latents is None:
        return None, new
    sides = jnp.zeros((1, 2, 2), bool).at[0, 1, 0].set(before)
    frames = to_uint8(model.decode(jnp.concatenate([latents, new], axis=1), sides=sides))
    return frames[:, frames.shape[1] // 2 :], new


@partial(jax.jit, static_argnames="graph")
def _encode(graph: nnx.GraphDef, params: nnx.State, frames):
    return nnx.merge(graph, params).tokenize(to_float(frames))


def render(
    renderer: Renderer,
    codes: Int[np.ndarray, "b p h w"],
    times: Float[np.ndarray, "p"],
    keys: Array,
    *,
    refine_steps: int = 4,
    window: Window = "final",
    only: slice = slice(None),
) -> UInt8[np.ndarray, "b t H W c"]:
    """Draw chunks, each seeing those next to it in time.

    A chunk comes out the same in any company that holds its neighbours within ``HALO`` chunks; the last
    block is padded, so that every length runs one program.

    Args:
      renderer: what draws.
      codes: of chunks in the order of time.
      times: of the chunks, in frames, increasing; where they leave a gap, there is no neighbour.
      keys: ``[b]``, of the detail: the same noise in all chunks of a clip, so that what stands still is
        drawn still.
      refine_steps: of the refinement; 0 decodes the codes alone.
      window: ``final`` sees both sides, ``streaming`` only what came before, ``cyclic`` takes the first
        chunk for what follows the last.
      only: which chunks to draw; the others are there to be seen by them.

    Returns:
      The chunks' frames, in the order of time.
    """
    refine = renderer.refine if refine_steps else None
    graphs = renderer.tokenizer[0], refine and refine[0]
    params = renderer.tokenizer[1], refine and refine[1]
    count, halo = codes.shape[1], HALO if refine else 1
    sides, parts = neighbours(times, renderer.frames_per_chunk, window), []
    first, last, _ = only.indices(count)
    for start in range(first, last, BLOCK):
        rows = np.arange(start - halo, start + BLOCK + halo)
        there = np.ones(len(rows), bool) if window == "cyclic" else (rows >= 0) & (rows < count)
        rows = rows % count if window == "cyclic" else rows.clip(0, count - 1)
        frames = draw(
            graphs,
            params,
            codes[:, rows],
            sides[rows] & there[:, None],
            keys,
            jnp.int32(refine_steps),
        )
        f = frames.shape[1] // len(rows)
        parts.append((frames, halo * f, f * min(BLOCK, last - start)))
    return np.concatenate([np.asarray(frames)[:, at : at + n] for frames, at, n in parts], axis=1)


def neighbours(times: Float[np.ndarray, "p"], step: float, window: Window) -> Bool[np.ndarray, "p 2"]:
    """Which chunks have one right before them and one right after, for this window::

    times       0  1  2     5  6        step 1
    before      .  x  x     .  x
    after       x  x  .     x  .        streaming: none
    """
    next_to = np.isclose(np.diff(times), step)
    cyclic = window == "cyclic"
    before, after = np.append(cyclic, next_to), np.append(next_to, cyclic)
    return np.stack([before, after & (window != "streaming")], axis=-1)


def tokenize(
    graph: nnx.GraphDef, params: nnx.State, frames: UInt8[np.ndarray, "b t H W c"], *, frames_per_chunk: int
) -> Int[np.ndarray, "b p h w"]:
    """Encode whole chunks of frames to codes, in padded blocks."""
    block = BLOCK * frames_per_chunk
    parts = []
    for start in range(0, frames.shape[1], block):
        piece = frames[:, start : start + block]
        padded = np.pad(piece, ((0, 0), (0, block - piece.shape[1]), (0, 0), (0, 0), (0, 0)), mode="edge")
        parts.append((_encode(graph, params, padded), piece.shape[1] // frames_per_chunk))
    return np.concatenate([np.asarray(codes)[:, :count] for codes, count in parts], axis=1)
