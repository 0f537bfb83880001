"""From codes to frames: a pure function of the codes, a fixed block of chunks at a time."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int, UInt8

from worldsim.models.tokenizer import to_float, to_uint8

BLOCK = 16
"""Chunks per compiled call."""


@partial(jax.jit, static_argnames="graph")
def _decode(graph: nnx.GraphDef, params: nnx.State, codes):
    return to_uint8(nnx.merge(graph, params).detokenize(codes))


@partial(jax.jit, static_argnames="graph")
def _encode(graph: nnx.GraphDef, params: nnx.State, frames):
    return nnx.merge(graph, params).tokenize(to_float(frames))


def render(
    graph: nnx.GraphDef, params: nnx.State, codes: Int[np.ndarray, "b p h w"]
) -> UInt8[np.ndarray, "b t H W c"]:
    """Decode codes to frames; the last block is padded, so that every length runs one program."""
    parts = []
    for start in range(0, codes.shape[1], BLOCK):
        block = codes[:, start : start + BLOCK]
        pad = BLOCK - block.shape[1]
        frames = _decode(graph, params, np.pad(block, ((0, 0), (0, pad), (0, 0), (0, 0)), mode="edge"))
        parts.append((frames, block.shape[1] * frames.shape[1] // BLOCK))
    return np.concatenate([np.asarray(frames)[:, :count] for frames, count in parts], axis=1)


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
