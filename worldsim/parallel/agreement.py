"""What several processes ask, tell and wait for; with one process it costs nothing.

Every function here has to be called by all processes, in the same order.
"""

from __future__ import annotations

import functools
import json
import secrets
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def meet(place: str) -> None:
    """Wait until all processes have come to this place."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(place)


def from_lead(values: Any) -> Any:
    """A tree of arrays or numbers as the first process has it, as NumPy arrays."""
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def text_from_lead(text: str | None) -> str:
    """A text as the first process has it; what the others give is of no account, and they wait for it."""
    if jax.process_count() == 1:
        return text or ""
    given = np.frombuffer((text or "").encode(), np.uint8)
    size = int(from_lead(np.uint32(len(given))))
    return bytes(from_lead(np.resize(given, size))).decode()


def gather(tree: Any) -> Any:
    """A tree of global arrays, whole in the memory of every host, one array after the other."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def compile_together(program: Any, *args: Any) -> Callable[..., Any]:
    """A jitted program that all processes have compiled for some arguments before any of them runs it.

    Hosts under unequal load take unequally long to compile, and the one that runs first meets nobody: on CPUs
    the first exchange between some devices fails after 30 seconds.
    """
    if jax.process_count() == 1:
        return program
    compiled = program.lower(*args).compile()
    meet("compiled")
    return compiled


def check_alike(parts: Mapping[str, Any], *, what: str) -> None:
    """Whether all processes were started with the same settings, before they wait for each other in vain.

    Args:
      parts: JSON values by name.
      what: they are, in words.

    Raises:
      ValueError: the parts that differ, and in which processes.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    texts = [json.dumps(part, sort_keys=True, default=str) for part in parts.values()]
    sums = multihost_utils.process_allgather(
        np.array([zlib.crc32(text.encode()) for text in texts], np.uint32)
    )
    differ = sums != sums[0]
    if differ.any():
        names = [name for name, column in zip(parts, differ.T, strict=True) if column.any()]
        raise ValueError(
            f"{what}: {', '.join(names)} of processes {np.flatnonzero(differ.any(1)).tolist()} differ from "
            "those of process 0; start all processes with the same command, environment, files and data."
        )


def check_shared(folder: Path) -> None:
    """Whether a folder, which is made if needed, is one and the same for all processes.

    Raises:
      ValueError: processes that do not see what the first one writes there.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    token = folder / f".seen_by_all_{from_lead(np.uint32(secrets.randbits(32))):08x}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    meet(f"written {token.name}")
    blind = multihost_utils.process_allgather(np.array(not token.exists()))
    if jax.process_index() == 0:
        token.unlink()
    if blind.any():
        raise ValueError(
            f"{folder} is not one folder: processes {np.flatnonzero(blind).tolist()} do not see what process "
            "0 writes there; put the workdir on a file system that all hosts share."
        )


@functools.cache
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))


def any_process(flag: bool, mesh: Mesh) -> jax.Array | bool:
    """Whether the flag is set in any process that has devices in the mesh.

    It is asked at once and answered by ``bool()`` of what comes back, the same in every process.
    """
    if jax.process_count() == 1:
        return flag
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    votes = jax.make_array_from_callback((mesh.size,), spread, lambda _: np.array([flag]))
    return _any(mesh)(votes)


def stop_requests(asked: threading.Event, mesh: Mesh) -> Iterator[bool]:
    """After each step, whether to stop: the same in every process, whichever of them was asked to.

    A process that stopped by itself would leave the others waiting in their next step. So each step is
    followed by a vote, a reduction of one bit, which is read after the next step is on its way, as metrics
    are: the hosts never wait for it, and stop one step later. (``reached_preemption_sync_point`` of JAX has
    the coordinator choose a step instead, from step numbers that begin anew with each stage, and takes
    SIGTERM away from Python.) One process looks at its own flag and stops at once.
    """
    if jax.process_count() == 1:
        while True:
            yield asked.is_set()
    before: jax.Array | bool = False
    while True:
        now = any_process(asked.is_set(), mesh)
        yield bool(before)
        before = now
