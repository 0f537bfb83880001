"""Values that compilers shall work out once.

XLA writes cheap arithmetic into each of its readers and works it out anew there, for every head and layer.
For a cosine or a mask that costs more than to store it. On CPUs ``jax.lax.optimization_barrier`` is gone
before XLA does so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def once(make: Callable[..., Any], *args: Any) -> Any:
    """``make(*args)`` as arrays in memory: behind a branch that is always taken.

    Args:
      make: a pure function to arrays.
      args: trees of arrays; the first has an element, above -2**30.
    """
    first = jax.tree.leaves(args)[0].reshape(-1)[0]
    leaves, tree = jax.tree.flatten(jax.eval_shape(make, *args))

    def never(*_: Any) -> Any:  # each array has a value of its own: of equal ones XLA would make copies
        return tree.unflatten([jnp.full(x.shape, i, x.dtype) for i, x in enumerate(leaves)])

    return jax.lax.cond(first > -(2**30), make, never, *args)
