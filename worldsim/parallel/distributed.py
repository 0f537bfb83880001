"""Several processes as one program: start from flags, variables or what launched them, and who leads.

``jax.distributed.initialize()`` finds its own way under Slurm, Open MPI, on Cloud TPU and in indexed jobs of
Kubernetes. What it does not do is leave a program alone that is one process there: it fails or waits for
others that never come. So the launcher is looked for here first, by the variables that JAX looks at.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import jax

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
"""What ``srun`` leaves in the environment of each task, and JAX needs all of."""

TPU = "Cloud TPU"

PATIENCE = 60
"""Seconds that a process which ends waits for the others. JAX's own 300 are how long the rest hangs, and pays
for its devices, once one of them has failed."""

ADVICE = (
    "Give --coordinator HOST:PORT --processes N --process I to each process (or WORLDSIM_COORDINATOR, "
    "WORLDSIM_PROCESSES and WORLDSIM_PROCESS), or --processes 1 to a process that works alone."
)


def start(coordinator: str | None = None, *, processes: int | None = None, index: int | None = None) -> None:
    """Join the other processes; call it in each of them before anything touches a device.

    What is not given is taken from ``WORLDSIM_COORDINATOR``, ``WORLDSIM_PROCESSES`` and ``WORLDSIM_PROCESS``;
    where those are not set either, from the launcher (:func:`launcher`), which under Slurm and Open MPI means
    a process for each GPU. A process that nothing says to be one of several is left alone. So is one of
    ``processes=1``, and one that has joined already.

    Args:
      coordinator: ``host:port`` of process 0, where it listens and the others reach it; the port is free.
      processes: how many there are.
      index: which of them this is, from 0.

    Raises:
      ValueError: only some of the three are given, they don't fit, or a launcher that JAX can't join by.
      RuntimeError: the others were not found.
    """
    coordinator = coordinator or os.environ.get("WORLDSIM_COORDINATOR")
    processes = _number("WORLDSIM_PROCESSES") if processes is None else processes
    index = _number("WORLDSIM_PROCESS") if index is None else index
    given = {"coordinator": coordinator, "processes": processes, "process": index}
    if jax.distributed.is_initialized() or (processes == 1 and not index):
        return
    if all(value is None for value in given.values()):
        found = launcher(os.environ)
        if found is not None:
            _join(found)
        return
    missing = [name for name, value in given.items() if value is None]
    if coordinator is None or processes is None or index is None:
        raise ValueError(f"distributed.start: {missing} not given; give all of {list(given)}.")
    if not 0 <= index < processes:
        raise ValueError(f"distributed.start: process {index} of {processes}; count from 0.")
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"distributed.start: coordinator {coordinator!r} is no HOST:PORT, like node1:1234.")
    _join("you", coordinator=coordinator, processes=processes, index=index)


def launcher(env: Mapping[str, str]) -> str | None:
    """What started this process as one of several, in words; None if nothing says so.

    Raises:
      ValueError: Open MPI did, in a version that does not tell JAX where process 0 is.
    """

    def count(name: str) -> int:
        return int(env[name]) if env.get(name, "").isdigit() else 0

    if count("OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_MCA_orte_hnp_uri" in env:
        return "Open MPI"
    tasks = count("SLURM_STEP_NUM_TASKS") or count("SLURM_NTASKS")
    if all(name in env for name in SLURM) and tasks > 1:
        return "Slurm"
    if count("OMPI_COMM_WORLD_SIZE") > 1:
        raise ValueError(
            f"Open MPI started this as one of {env['OMPI_COMM_WORLD_SIZE']} processes, and JAX finds the "
            f"first of them only by OMPI_MCA_orte_hnp_uri, which Open MPI 5 no longer sets. {ADVICE}"
        )
    if _has_tpu(env):
        hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES"))
        alone = hosts is not None and "," not in hosts and count("MEGASCALE_NUM_SLICES") < 2
        return None if alone else TPU
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "an indexed job of Kubernetes"
    return None


def _has_tpu(env: Mapping[str, str]) -> bool:
    """Whether JAX will use TPUs: it has libtpu and their devices, and no order to the contrary."""
    wanted = env.get("JAX_PLATFORMS", "").split(",")
    library = "TPU_LIBRARY_PATH" in env or importlib.util.find_spec("libtpu") is not None
    if not library or ("tpu" not in wanted and wanted != [""]):
        return False
    return any(next(Path("/dev").glob(pattern), None) for pattern in ("accel*", "vfio/[0-9]*"))


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdigit():
        raise ValueError(f"{name}={text!r} is no number; {ADVICE}")
    return None if text is None else int(text)


def _join(
    who: str, *, coordinator: str | None = None, processes: int | None = None, index: int | None = None
) -> None:
    # The training loop asks all processes itself whether to stop. JAX's own service would take SIGTERM away
    # from Python, also between the stages, where nobody listens to it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=index,
            cluster_detection_method=None if coordinator is None else "deactivate",
            shutdown_timeout_seconds=PATIENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        if who == TPU and isinstance(error, ValueError):  # no word of other hosts, as in a notebook
            return
        raise RuntimeError(
            f"This is one of several processes, as {who} said, and JAX could not join them: {error} {ADVICE}"
        ) from error


def is_lead() -> bool:
    """Whether this process writes what is written once: logs, samples, the world."""
    return jax.process_index() == 0
