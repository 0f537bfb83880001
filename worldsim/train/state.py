"""What a training run carries from step to step, and the record that makes a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from worldsim.config import StageConfig

Params = Any
"""A tree of arrays: an ``nnx.State`` or nested dicts."""

Leaf = Any
"""An array, or what stands for one in a tree of the same form: its shape or its sharding."""

Batch = dict[str, np.ndarray]
"""Host arrays with one row per clip."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training needs to go on; the data's position is the step.

    Attributes:
      step: int32 scalar, steps done.
      params: what is trained.
      ema: its moving average, what is shipped.
      opt_state: of the optimizer.
      key: a typed key; step ``i`` uses ``fold_in(key, i)``.
    """

    step: Leaf
    params: Params
    ema: Params
    opt_state: optax.OptState
    key: Leaf


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of the things the loop trains.

    Attributes:
      name: of its folder in the run's folder.
      config: how long, and with what optimizer.
      init: key to parameters, pure.
      loss: ``(params, frozen, batch, key, step)`` to a scalar and scalar metrics, pure.
      batches: from a step number on, that step's host batch and the next ones; the same number
        gives the same batch. What it returns may have ``close()``.
      frozen: arrays that the loss needs and that are not trained, or None.
      after: ``(before, params, batch, key, step)`` to parameters, pure: moves what no gradient moves, given
        the parameters before and after the optimizer's step; or None.
      samples: ``(ema, frozen, step, folder)`` writes something to look at, or None.
      until: the step that its part of the training ends with, where others go on from there in the same
        folder; None is the last.
      tokenizer: hash of the tokenizer that it is trained on; empty where there is none.
      sequence: whether the second dimension of its batches is one of chunks, to be spread over devices.
    """

    name: str
    config: StageConfig
    init: Callable[[jax.Array], Params]
    loss: Callable[
        [Params, Params, dict[str, jax.Array], jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
    ]
    batches: Callable[[int], Iterator[Batch]]
    frozen: Params = None
    after: Callable[[Params, Params, dict[str, jax.Array], jax.Array, jax.Array], Params] | None = None
    samples: Callable[[Params, Params, int, Path], None] | None = None
    sequence: bool = False
    until: int | None = None
    tokenizer: str = ""

    @property
    def end(self) -> int:
        """The last step of its part."""
        return self.config.steps if self.until is None else self.until
