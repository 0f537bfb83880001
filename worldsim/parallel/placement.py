"""Where the rows and the chunks of a batch lie on a mesh, and which of them a process feeds.

Rows are spread over the axes ``data`` and ``fsdp``. What follows the rows is spread over ``context`` where it
is a sequence of chunks; else the rows are, if they divide. Chunks are dealt out in stripes, so that each
device has early and late ones and the triangle of causal attention is the same work for all:

    chunk     0 1 2 3 4 5 6 7      place    0 1 2 3 | 4 5 6 7
    device    0 1 0 1 0 1 0 1      chunk    0 2 4 6 | 1 3 5 7
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from worldsim.parallel.sharding import LOGICAL_TO_MESH
from worldsim.plain import nearest

CONTEXT = "context"


def ways(mesh: Mesh | AbstractMesh, *axes: str) -> int:
    """Devices along some axes together."""
    return math.prod(mesh.shape[name] for name in axes)


def batch_sharding(mesh: Mesh | AbstractMesh, rows: int, *, sequence: bool = False) -> NamedSharding:
    """How a batch of so many rows lies.

    Args:
      mesh: where.
      rows: of the batch, over all processes.
      sequence: whether the second dimension is one of chunks, to be spread over ``context``.

    Raises:
      ValueError: rows that don't divide over the devices; the nearest numbers that do are named.
    """
    axes = LOGICAL_TO_MESH["batch"]
    if rows % ways(mesh, *axes):
        raise ValueError(
            f"A batch of {rows} rows does not divide over the {ways(mesh, *axes)} devices of mesh axes "
            f"{list(axes)}; {nearest(rows, ways(mesh, *axes))}."
        )
    if sequence:
        return NamedSharding(mesh, PartitionSpec(axes, *LOGICAL_TO_MESH["time"]))
    wide = (*axes, CONTEXT)
    return NamedSharding(mesh, PartitionSpec(wide if rows % ways(mesh, *wide) == 0 else axes))


def local_rows(mesh: Mesh, rows: int, *, sequence: bool = False) -> tuple[int, ...]:
    """The rows that this process feeds, ascending: those of which its devices hold a part.

    They need not be neighbours: on a torus of TPUs a host's devices are not consecutive in the mesh.
    Processes that hold parts of the same sequences feed the same rows: where ``context`` lies across hosts,
    each of them reads and plans whole rows, and :func:`place_batch` keeps its own slice of the sequence,
    which is dealt out in stripes by then (codes are small, two bytes each).
    """
    where = batch_sharding(mesh, rows, sequence=sequence)
    indices = where.addressable_devices_indices_map((rows, mesh.shape[CONTEXT])).values()
    held = {row for index in indices if index is not None for row in range(*index[0].indices(rows))}
    return tuple(sorted(held))


def place_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray], rows: int, *, sequence: bool = False
) -> dict[str, jax.Array]:
    """A host batch (the rows that this process feeds, of ``rows`` in all) as global arrays.

    Raises:
      ValueError: rows that don't divide over the devices, or another number of them than the process feeds.
    """
    where = batch_sharding(mesh, rows, sequence=sequence)
    mine = local_rows(mesh, rows, sequence=sequence)
    wrong = {name: len(local) for name, local in batch.items() if len(local) != len(mine)}
    if wrong:
        raise ValueError(f"This process feeds {len(mine)} rows of each batch of {rows}, and got {wrong}.")

    def part(local: np.ndarray, index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(rows)
        first = mine.index(start)
        return local[(slice(first, first + stop - start), *index[1:])]

    return {
        name: jax.make_array_from_callback((rows, *local.shape[1:]), where, partial(part, local))
        for name, local in batch.items()
    }


@dataclasses.dataclass(frozen=True)
class Share:
    """What a process feeds of each batch.

    Attributes:
      rows: numbers of the rows that it feeds.
      of: rows of the whole batch.
      parts: devices that a row's chunks are spread over.
    """

    rows: Sequence[int]
    of: int
    parts: int = 1


def share(mesh: Mesh | None, rows: int, *, sequence: bool = False) -> Share:
    """This process's share of batches of so many rows; without a mesh it feeds all of them.

    Raises:
      ValueError: rows that don't divide over the devices.
    """
    if mesh is None:
        return Share(range(rows), rows)
    parts = mesh.shape[CONTEXT] if sequence else 1
    return Share(local_rows(mesh, rows, sequence=sequence), rows, parts)


def stripes(count: int, parts: int) -> Int[np.ndarray, "n"]:
    """The chunk at each place: those of the first device, of the second, ... (see the module).

    Raises:
      ValueError: chunks that don't divide over the devices.
    """
    if count % parts:
        raise ValueError(
            f"{count} chunks don't divide over the {parts} devices of mesh axis {CONTEXT!r}; "
            f"{nearest(count, parts)}."
        )
    return np.arange(count).reshape(-1, parts).T.reshape(-1)
