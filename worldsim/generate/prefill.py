"""Known chunks into the cache: a fixed block of plan rows at a time, padded rows dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from worldsim.models.cache import KVCache
from worldsim.models.dynamics import Chunks
from worldsim.ops.attention import KNOWN, PADDING
from worldsim.plan import Plan

BLOCK = 8
"""Plan rows per compiled call."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A block of r plan rows with what each brings; rows past the plan have segment -1.

    Attributes:
      codes: ``[b r h w]``; of generated rows, anything.
      times: ``[r]`` frames.
      orders: ``[r]``.
      slots: ``[r]`` cache slots; past the end for padded rows.
      real: ``[r]`` bool.
      actions: ``[b r f ...]`` or None.
      conditions: per name ``[b r ...]``.
    """

    codes: Int[Array | np.ndarray, "b r h w"]
    times: Float[Array | np.ndarray, "r"]
    orders: Int[Array | np.ndarray, "r"]
    slots: Int[Array | np.ndarray, "r"]
    real: Array | np.ndarray
    actions: Array | np.ndarray | None
    conditions: dict[str, Array | np.ndarray]

    def chunks(self, *, stream: int) -> Chunks:
        """The rows as the model reads them."""
        b, r = self.codes.shape[:2]
        segment = jnp.where(self.real, 0, PADDING)
        ids = jnp.stack([segment, self.orders, jnp.full((r,), stream)], axis=-1).astype(jnp.int32)
        return Chunks(
            codes=jnp.asarray(self.codes),
            times=jnp.broadcast_to(self.times, (b, r)),
            ids=jnp.broadcast_to(ids, (b, r, 3)),
            noise=jnp.zeros((b, r), jnp.float32),
            actions=None if self.actions is None else jnp.asarray(self.actions),
            conditions={name: jnp.asarray(rows) for name, rows in self.conditions.items()},
        )


def blocks(
    plan: Plan,
    slots: Int[np.ndarray, "p"],
    which: np.ndarray,
    *,
    codes: Int[np.ndarray, "b p h w"],
    actions: np.ndarray | None,
    conditions: Mapping[str, np.ndarray],
    context: int,
    most: int = BLOCK,
) -> Iterator[tuple[np.ndarray, Rows]]:
    """Cut chosen plan rows into padded blocks.

    Args:
      plan: rows in the order of generation.
      slots: of each row.
      which: indices of the rows to cut, ascending.
      codes, actions, conditions: a row per plan row.
      context: slots in the cache; padded rows point past it.
      most: real rows in a block.

    Yields:
      The plan's indices of a block's real rows, and the block.
    """
    for start in range(0, len(which), most):
        index = which[start : start + most]
        pad = BLOCK - len(index)
        take = np.concatenate([index, np.repeat(index[-1:], pad)])
        real = np.arange(BLOCK) < len(index)
        yield (
            index,
            Rows(
                codes=codes[:, take],
                times=plan.times[take],
                orders=plan.orders[take].astype(np.int32),
                slots=np.where(real, slots[take], context).astype(np.int32),
                real=real,
                actions=None if actions is None else actions[:, take],
                conditions={name: rows[:, take] for name, rows in conditions.items()},
            ),
        )


@partial(jax.jit, static_argnames="graph", donate_argnames="cache")
def prefill(
    graph: nnx.GraphDef, params: nnx.State, cache: KVCache, rows: Rows, sight: Float[Array, ""]
) -> KVCache:
    """The cache with a block of known rows committed, each reading those of lower order.

    Of what the cache had before, none sees what lies more than ``sight`` frames away; of the block, all.
    """
    model = nnx.merge(graph, params)
    return model.commit(rows.chunks(stream=KNOWN), cache, rows.slots, sight=sight)
