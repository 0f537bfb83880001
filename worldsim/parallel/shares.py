"""Many things shared out among processes, and what they make of them put together.

It is for work without a mesh, such as long rollouts: every process uses one of its devices, alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Int

T = TypeVar("T")


def share(count: int, *, processes: int | None = None, index: int | None = None) -> range:
    """The numbers of those of so many things that a process works on: neighbours, none twice::

        8 things, 3 processes    0 1 2 | 3 4 5 | 6 7
        1 thing,  3 processes    0     |       |

    Give what is random about thing i a key folded from i, so that it is the same in any share. A process that
    ends waits a minute for the others and then stops them: call :func:`worldsim.parallel.agreement.meet`
    before the work and after it.

    Args:
      count: of the things; may be fewer than processes.
      processes, index: how many work, and which of them is asked for; None is this one of all.

    Raises:
      ValueError: a negative number, or an index that none of the processes has.
    """
    processes = jax.process_count() if processes is None else processes
    index = jax.process_index() if index is None else index
    if count < 0 or not 0 <= index < processes:
        raise ValueError(f"share: {count} things, process {index} of {processes}; count from 0.")
    return range(-(-index * count // processes), -(-(index + 1) * count // processes))


def in_shares(count: int, work: Callable[[Int[np.ndarray, "m"]], T]) -> T:
    """What some work makes of each of many things: every process works on its share and gets the whole.

    All processes call this, and run programs of one shape: where another's share is longer, a process does
    some of its own things (or, having none, the last) twice. One process does ``work(np.arange(count))``.

    Args:
      count: of the things.
      work: from numbers of things ``[m]`` to a tree of arrays with a row ``[m ...]`` for each. What it makes
        of a thing may depend on the thing's number alone: ``keys[numbers]``, with keys for all things.

    Returns:
      The tree, its arrays ``[count ...]``, as NumPy's where there are several processes.

    Raises:
      ValueError: nothing to work on.
    """
    if count < 1:
        raise ValueError(f"in_shares: {count} things to work on; give 1 or more.")
    if jax.process_count() == 1:
        return work(np.arange(count))
    rows, order = _rows(count, processes=jax.process_count(), index=jax.process_index())
    return jax.tree.map(lambda array: _everyones(np.asarray(array))[order], work(rows))


def _rows(count: int, *, processes: int, index: int) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "n"]]:
    """The things that a process works on, in all processes as many; and where each of all things then lies
    in the rows of all processes, end to end::

        5 things, 2 processes    0 1 2 | 3 4 3     things lie at    0 1 2 3 4
        4 things, 3 processes    0 1 | 2 2 | 3 3   things lie at    0 1 2 4
    """
    shares = [share(count, processes=processes, index=i) for i in range(processes)]
    most = max(map(len, shares))
    order = np.concatenate([i * most + np.arange(len(one)) for i, one in enumerate(shares)])
    return np.resize(shares[index] or [count - 1], most), order


def _everyones(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, end to end. They travel as bytes, for JAX would make 64 bits 32."""
    from jax.experimental import multihost_utils

    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    every: Any = multihost_utils.process_allgather(flat, tiled=True)
    return np.ascontiguousarray(every).view(rows.dtype).reshape(-1, *rows.shape[1:])
