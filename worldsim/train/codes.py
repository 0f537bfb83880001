"""A dataset's frames as codes: encoded once, so that the dynamics never decodes a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from worldsim.config import WorldConfig
from worldsim.data.arrays import ArraySource
from worldsim.data.source import Source
from worldsim.models.tokenizer import to_float
from worldsim.models.world import split_module
from worldsim.parallel.agreement import from_lead, meet

_BLOCK = 64


def params_hash(params: Any) -> str:
    """sha256 of a tree's arrays, leaf by leaf."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _source_hash(source: Source) -> str:
    """sha256 of the records' lengths and of the first and last record; of all, where they are in memory."""
    digest = hashlib.sha256(np.asarray(source.lengths, np.int64).tobytes())
    for i in range(len(source)) if isinstance(source, ArraySource) else (0, len(source) - 1):
        for name, array in sorted(source[i].items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def make_encoder(config: WorldConfig, params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 frames ``[t h w c]`` of any length to codes ``[p h w]``."""
    graph, _ = split_module("tokenizer", config)
    block = _BLOCK * config.tokenizer.frames_per_chunk

    @jax.jit
    def encode(params, frames):
        return nnx.merge(graph, params).tokenize(to_float(frames)[None])[0]

    def run(frames: np.ndarray) -> np.ndarray:
        count = len(frames) // config.tokenizer.frames_per_chunk
        frames = frames[: count * config.tokenizer.frames_per_chunk]
        padded = np.pad(frames, ((0, -len(frames) % block), (0, 0), (0, 0), (0, 0)))
        parts = [encode(params, padded[i : i + block]) for i in range(0, len(padded), block)]
        parts = parts or [np.zeros((0, *config.tokenizer.grid))]
        kind = np.uint16 if config.tokenizer.codebook <= 2**16 else np.int32
        return np.concatenate(parts)[:count].astype(kind)

    return run


def encode_source(
    source: Source,
    config: WorldConfig,
    params: Any,
    path: Path,
    *,
    of: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> ArraySource:
    """The source with codes in place of frames, kept at ``path`` for the next start.

    The file carries the tokenizer's config and hashes of its weights and of the source, and is made anew when
    one of them changes. Records of less than a chunk are left out. About one per cent of the frames' size: it
    stays in memory. Of several processes each encodes its share, and the first one joins them; all call this.

    Args:
      source: records with ``frames`` and per-frame arrays beside them.
      config: of the world.
      params: of the tokenizer.
      path: an ``.npz`` to write or read, where all processes see it.
      of: the hashes of what the source holds, where they are known; else the first and last record of those
        on disk stand for all.
      progress: called with records done and in all, of this process.

    Returns:
      Records with ``codes [p h w]`` and, where there are any, ``actions [p f ...]``, ``rewards [p]`` summed
      over a chunk's frames and ``ends [p]`` in any of them: one row a chunk.
    """
    digest = hashlib.sha256(f"{of} {_source_hash(source)}".encode()).hexdigest()
    mark = f"{config.tokenizer} {params_hash(params)} {digest}"
    whole = np.flatnonzero(np.asarray(source.lengths) >= config.tokenizer.frames_per_chunk).tolist()
    index, count = jax.process_index(), jax.process_count()
    # The first process alone says whether to encode: another one might look when the file is just being made.
    made = index == 0 and _is_made_from(path, mark)
    if not from_lead(np.int32(made)):
        shares = [path.with_name(f"{path.stem}.{i}-of-{count}.npz") for i in range(count)]
        mine = whole[index::count]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(shares[index], **_encode(source, config, params, mine, progress=progress))
        meet(f"encoded shares of {path}")
        if index == 0:
            _join(path, shares, records=len(whole), mark=mark)
        meet(f"encoded {path}")
    with np.load(path, allow_pickle=False) as stored:
        return ArraySource({n: stored[n] for n in stored if n != "made_from"}, keys=None)


def _is_made_from(path: Path, mark: str) -> bool:
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as stored:
        return str(stored["made_from"]) == mark


def _encode(
    source: Source,
    config: WorldConfig,
    params: Any,
    mine: list[int],
    *,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Some records of the source encoded, all padded to the length of the longest there is."""
    encode = make_encoder(config, params)
    f = config.tokenizer.frames_per_chunk
    lengths = np.asarray(source.lengths) // f
    columns: dict[str, Any] = {"lengths": lengths[mine]}
    for row, i in enumerate(mine):
        record = source[i]
        count = int(lengths[i])
        # What is no whole chunk is left out at the end, or at the beginning where ends are to be told.
        first = len(record["frames"]) % f if config.dynamics.outcomes else 0
        part = slice(first, first + count * f)
        rows = {"codes": encode(record["frames"][part])}
        for name, array in record.items():
            if name in ("actions", "rewards", "ends") or name.startswith("condition_"):
                rows[name] = chunk_rows(name, array[part].reshape(count, f, *array.shape[1:]))
        for name, array in rows.items():
            shape = (len(mine), int(lengths.max()), *array.shape[1:])
            columns.setdefault(name, np.zeros(shape, array.dtype))[row, :count] = array
        if progress is not None:
            progress(row + 1, len(mine))
    return columns


def chunk_rows(name: str, frames: np.ndarray) -> Any:
    """A row a chunk of what is known of its frames ``[p f ...]``."""
    match name:
        case "actions":
            return frames
        case "rewards":
            return frames.sum(1, dtype=np.float32)
        case "ends":
            return np.any(frames, axis=1)
    return frames[:, 0]


def _join(path: Path, shares: list[Path], *, records: int, mark: str) -> None:
    """One file, whole or not at all, of the shares, of which the i-th has every i-th record; they go."""
    columns: dict[str, Any] = {"made_from": np.asarray(mark)}
    for i, share in enumerate(shares):
        with np.load(share, allow_pickle=False) as stored:
            for name, array in stored.items():
                whole = columns.setdefault(name, np.zeros((records, *array.shape[1:]), array.dtype))
                whole[i :: len(shares)] = array
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **columns)
    part.replace(path)
    for share in shares:
        share.unlink()
