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
    """Keys and values of committed chunks, per layer; s slots of n tokens.

    Attributes:
      keys, values: per layer ``[b s n k e]``; keys are normalised but not rotated.
      times: ``[b s]``, in frames.
      ids: ``[b s 3]`` (segment, order, stream); segment -1 marks an empty slot.
    """

    keys: tuple[Float[Array, "b s n k e"], ...]
    values: tuple[Float[Array, "b s n k e"], ...]
    times: Float[Array, "b s"]
    ids: Int[Array, "b s 3"]


def empty_cache(
    *, layers: int, batch: int, slots: int, tokens: int, heads: int, head: int, dtype=jnp.float32
) -> KVCache:
    """A cache in which every slot is empty."""
    shape = (batch, slots, tokens, heads, head)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
        values=tuple(jnp.zeros(shape, dtype) for _ in range(layers)),
        times=jnp.zeros((batch, slots), jnp.float32),
        ids=jnp.full((batch, slots, 3), PADDING, jnp.int32),
    )


def write(
    cache: KVCache,
    keys: tuple[Float[Array, "b p n k e"], ...],
    values: tuple[Float[Array, "b p n k e"], ...],
    times: Float[Array, "b p"],
    ids: Int[Array, "b p 3"],
    slots: Int[Array, "p"],
) -> KVCache:
    """The cache with p chunks written to their slots; a slot number past the end is dropped."""

    def put(old, new):
        return old.at[:, slots].set(new.astype(old.dtype), mode="drop")

    return KVCache(
        keys=tuple(put(old, new) for old, new in zip(cache.keys, keys, strict=True)),
        values=tuple(put(old, new) for old, new in zip(cache.values, values, strict=True)),
        times=put(cache.times, times),
        ids=put(cache.ids, ids),
    )
