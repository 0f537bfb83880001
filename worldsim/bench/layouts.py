"""Sequences as they lie on devices: ids in stripes of chunks, what sees what, and who computes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from worldsim.ops import tiled_attention as tiled
from worldsim.ops.visible import KNOWN, PADDING, QUERY
from worldsim.parallel.placement import stripes


def places(tokens: int, chunk: int, parts: int) -> Int[np.ndarray, "n"]:
    """The token at each place: chunks are dealt out to so many devices in stripes.

    Raises:
      ValueError: chunks that don't divide over the devices.
    """
    return (stripes(tokens // chunk, parts)[:, None] * chunk + np.arange(chunk)).reshape(-1)


def causal(tokens: int, *, clips: Sequence[int] = ()) -> Int[np.ndarray, "n 3"]:
    """Ids of tokens that each see those before: of one clip, or of several of these lengths."""
    lengths = np.asarray(clips or [tokens])
    segment = np.repeat(np.arange(len(lengths)), lengths)
    order = np.arange(tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.stack([segment, order, np.full(tokens, KNOWN)], axis=-1).astype(np.int32)


def two_streams(tokens: int, chunk: int, parts: int) -> Int[np.ndarray, "n 3"]:
    """Ids of training: half of the tokens known, half queries of the same chunks, both in stripes.

    Each device has its known chunks first and then its queries.
    """
    order = places(tokens // 2, chunk, parts).reshape(parts, -1) // chunk
    known, query = (np.stack([order * 0, order, order * 0 + s], axis=-1) for s in (KNOWN, QUERY))
    return np.concatenate([known, query], axis=1).reshape(-1, 3).astype(np.int32)


def visible_pairs(ids: Int[np.ndarray, "n 3"]) -> int:
    """How many pairs of tokens see each other under the law of :mod:`worldsim.ops.visible`."""
    real = ids[ids[:, 0] != PADDING].astype(np.int64)
    segment, order, stream = real.T
    wide = order.max(initial=0) + 1
    known = np.sort((segment * wide + order)[stream == KNOWN])
    earlier = np.searchsorted(known, segment * wide + order) - np.searchsorted(known, segment * wide)
    chunks = np.unique(real, axis=0, return_counts=True)[1]
    return int(earlier.sum() + (chunks.astype(np.int64) ** 2).sum())


def work(
    ids: Int[np.ndarray, "n 3"], parts: int, rows: int, columns: int, *, part: int | None = None
) -> Int[np.ndarray, "hop device"]:
    """Tiles of ``rows`` by ``columns`` tokens that each device of a ring computes at each hop.

    ``part`` is that of :func:`worldsim.ops.tiled_attention.relations`.
    """
    shards = jnp.asarray(ids).reshape(parts, 1, -1, 3)
    of_rows = [tiled.cut_ids(shard, rows) for shard in shards]
    of_columns = [tiled.cut_ids(shard, columns) for shard in shards]
    relations = jax.jit(partial(tiled.relations, part=part))
    visited = lambda i, j: int((relations(of_rows[i], of_columns[j]) != tiled.NOTHING).sum())
    return np.array([[visited(i, (i - hop) % parts) for i in range(parts)] for hop in range(parts)])


def balance(work: Int[np.ndarray, "hop device"]) -> float:
    """Which share of the time all devices work, where each hop takes as long as its slowest device."""
    return float(work.mean(1).sum() / work.max(1).sum())
