"""The parts of a world, built from its config: shapes first, weights after."""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import nnx

from worldsim.config import WorldConfig
from worldsim.models.dynamics import Dynamics
from worldsim.models.refine import RefineHead
from worldsim.models.tokenizer import Tokenizer
from worldsim.parallel.sharding import by_path, path_of


def make_tokenizer(config: WorldConfig, *, rngs: nnx.Rngs, dtype: Any = None) -> Tokenizer:
    """The tokenizer with fresh weights; ``dtype`` is what it computes in."""
    return Tokenizer(config.tokenizer, rngs=rngs, dtype=dtype)


def make_dynamics(config: WorldConfig, *, rngs: nnx.Rngs, dtype: Any = None) -> Dynamics:
    """The dynamics with fresh weights."""
    return Dynamics(config.dynamics, config.tokenizer, rngs=rngs, dtype=dtype)


def make_refine(config: WorldConfig, *, rngs: nnx.Rngs, dtype: Any = None) -> RefineHead:
    """The refinement head with fresh weights."""
    return RefineHead(config.refine, config.tokenizer, rngs=rngs, dtype=dtype)


MAKERS = {"tokenizer": make_tokenizer, "dynamics": make_dynamics, "refine": make_refine}
"""By stage name."""


def split_module(name: str, config: WorldConfig, *, dtype: Any = None) -> tuple[nnx.GraphDef, Any]:
    """A part's graph and the shapes of its parameters, without any array.

    Args:
      name: ``tokenizer``, ``dynamics`` or ``refine``.
      config: of the world.
      dtype: what the part computes in; parameters are float32.

    Returns:
      A graph for ``nnx.merge`` and a tree of ``jax.ShapeDtypeStruct``.
    """
    graph, shapes = _split(name, config, None if dtype is None else jax.numpy.dtype(dtype))
    return graph, jax.tree.map(lambda leaf: leaf, shapes)


@functools.lru_cache(maxsize=32)
def _split(name: str, config: WorldConfig, dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """:func:`split_module`, once: a world asks for each part several times, and tracing takes long."""
    module = nnx.eval_shape(lambda: MAKERS[name](config, rngs=nnx.Rngs(0), dtype=dtype))
    return nnx.split(module, nnx.Param)


def init_params(name: str, config: WorldConfig, key: jax.Array) -> Any:
    """Fresh parameters of a part, from a key."""
    return nnx.split(MAKERS[name](config, rngs=nnx.Rngs(key)), nnx.Param)[1]


def check_params(params: Any, template: Any) -> None:
    """Whether parameters have the names and shapes that a model expects.

    Args:
      params: what was read.
      template: what is expected: the model's parameters, or what ``jax.eval_shape`` says of them.

    Raises:
      ValueError: all that are missing, unexpected or of another shape, at once.
    """
    have = {path: tuple(leaf.shape) for path, leaf in by_path(params).items()}
    want = {path: tuple(leaf.shape) for path, leaf in by_path(template).items()}
    problems = [f"missing: {path} {list(want[path])}" for path in want if path not in have]
    problems += [f"unexpected: {path} {list(have[path])}" for path in have if path not in want]
    problems += [
        f"shape: {path} is {list(have[path])} and should be {list(want[path])}"
        for path in want
        if path in have and have[path] != want[path]
    ]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(want)} parameters don't fit the model; is this the config that they "
            "were trained with?\n" + "\n".join(problems)
        )


def fill_params(name: str, config: WorldConfig, values: Any) -> Any:
    """Stored arrays in the structure that a part's module has.

    Args:
      name: of the part.
      config: of the world.
      values: arrays as nested dicts.

    Raises:
      ValueError: names or shapes that the module doesn't have, all at once.
    """
    _, shapes = split_module(name, config)
    check_params(values, shapes)
    found = by_path(values)
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = [jax.numpy.asarray(found[path_of(keys)], leaf.dtype) for keys, leaf in flat]
    return jax.tree_util.tree_unflatten(tree, leaves)
