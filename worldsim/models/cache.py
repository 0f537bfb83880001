"""The KV cache: a fixed number of chunk slots with unrotated keys and the integers that rule them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from worldsim.ops.attention import PADDING


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of committed chunks, per layer; s slots of n tokens, m in all.

    Attributes:
      keys, values: per layer ``[b k m e]``, as attention reads them; keys are normalised but not rotated.
      times: ``[b s]``, in frames.
      ids: ``[b s 3]`` (segment, order, stream); segment -1 marks an empty slot.
    """

    keys: tuple[Float[Array, "b k m e"], ...]
    values: tuple[Float[Array, "b k m e"], ...]
    times: Float[Array, "b s"]
    ids: Int[Array, "b s 3"]


def empty_cache(
    *, layers: int, batch: int, slots: int, tokens: int, heads: int, head: int, dtype=jnp.float32
) -> KVCache:
    """A cache in which every slot is empty."""
    shape = (batch, heads, slots * tokens, head)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
        values=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
        times=jnp.zeros((batch, slots), jnp.float32),
        ids=jnp.full((batch, slots, 3), PADDING, jnp.int32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entry:
    """What p chunks bring to a cache.

    Attributes:
      keys, values: per layer ``[b k n e]``, the tokens of all p chunks.
      times: ``[b p]``.
      ids: ``[b p 3]``.
    """

    keys: tuple[Float[Array, "b k n e"], ...]
    values: tuple[Float[Array, "b k n e"], ...]
    times: Float[Array, "b p"]
    ids: Int[Array, "b p 3"]


def write(cache: KVCache, entry: Entry, slots: Int[Array, "p"]) -> KVCache:
    """The cache with p chunks written to their slots; a slot number past the end is dropped.

    Slice by slice, in place where the cache is not read any more.
    """
    count = cache.times.shape[1]

    def put(old, new, axis=1):
        size = old.shape[axis] // count
        for i in range(new.shape[axis] // size):
            at = slots[i] * size
            here = jax.lax.dynamic_slice_in_dim(old, at, size, axis)
            piece = jax.lax.slice_in_dim(new, i * size, (i + 1) * size, axis=axis).astype(old.dtype)
            piece = jnp.where(slots[i] < count, piece, here)
            old = jax.lax.dynamic_update_slice_in_dim(old, piece, at, axis)
        return old

    return KVCache(
        keys=tuple(put(old, new, 2) for old, new in zip(cache.keys, entry.keys, strict=True)),
        values=tuple(put(old, new, 2) for old, new in zip(cache.values, entry.values, strict=True)),
        times=put(cache.times, entry.times),
        ids=put(cache.ids, entry.ids),
    )


def no_entry(cache: KVCache) -> Entry:
    """A chunk that says nothing, to start a loop with."""
    slots = cache.times.shape[1]
    one = lambda a: jnp.zeros_like(a[:, :, : a.shape[2] // slots])
    return Entry(
        tuple(map(one, cache.keys)), tuple(map(one, cache.values)),
        jnp.zeros_like(cache.times[:, :1]), jnp.full_like(cache.ids[:, :1], PADDING),
    )  # fmt: skip
