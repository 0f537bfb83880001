"""Several hosts as one program: start, and who leads."""

from __future__ import annotations

import os

import jax


def start(coordinator: str | None = None, *, processes: int | None = None, index: int | None = None) -> None:
    """Join the other hosts; call it before anything touches a device, on every host.

    Args:
      coordinator: ``address:port`` of the first host. None takes ``WORLDSIM_COORDINATOR``,
        ``WORLDSIM_PROCESSES`` and ``WORLDSIM_PROCESS`` from the environment; where they are not set
        either, this is a program on one host and nothing happens.
      processes: how many hosts there are.
      index: which of them this is, from 0.

    Raises:
      ValueError: only some of the three are given, or they don't fit.
    """
    env = os.environ
    coordinator = coordinator or env.get("WORLDSIM_COORDINATOR")
    if processes is None and "WORLDSIM_PROCESSES" in env:
        processes = int(env["WORLDSIM_PROCESSES"])
    if index is None and "WORLDSIM_PROCESS" in env:
        index = int(env["WORLDSIM_PROCESS"])
    given = {"coordinator": coordinator, "processes": processes, "index": index}
    if all(value is None for value in given.values()):
        return
    missing = [name for name, value in given.items() if value is None]
    if missing or coordinator is None or processes is None or index is None:
        raise ValueError(f"distributed.start: {missing} not given; several hosts need all of {list(given)}.")
    if not 0 <= index < processes:
        raise ValueError(f"distributed.start: process {index} of {processes}; count from 0.")
    jax.distributed.initialize(coordinator_address=coordinator, num_processes=processes, process_id=index)


def is_lead() -> bool:
    """Whether this process writes logs and samples."""
    return jax.process_index() == 0
