"""Where a benchmark runs: a process of its own, whose CPU is many devices where the machine has but one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEVICES = {"ring": 8, "blocks": 8, "rollout": 1, "train": 1, "large": 1, "loader": 1, "start": 1}
"""As how many devices the CPU poses, by benchmark."""

ALONE = ("rollout", "train", "large")
"""Benchmarks that keep to one core, where the system lets a process choose."""

PATIENCE = 3600
"""Seconds that a device waits for another: where they share few cores XLA's own 40 can end a healthy run."""


def environment(given: Mapping[str, str], devices: int) -> dict[str, str]:
    """The variables of the process: those given, with simulated devices and this very package."""
    ours = {
        "--xla_force_host_platform_device_count": devices,
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds": PATIENCE,
        "--xla_cpu_collective_call_terminate_timeout_seconds": PATIENCE,
    }
    kept = [flag for flag in given.get("XLA_FLAGS", "").split() if flag.partition("=")[0] not in ours]
    flags = " ".join([*kept, *(f"{name}={value}" for name, value in ours.items())])
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [given.get("PYTHONPATH")])])
    return {**given, "XLA_FLAGS": flags, "PYTHONPATH": path}


def measure(what: str, *, quick: bool = False) -> dict[str, Any]:
    """Run a benchmark in its process.

    Args:
      what: a benchmark, of ``DEVICES``.
      quick: small sizes, to see that it runs; its figures say little.

    Returns:
      ``rows`` and ``machine``, as :func:`worldsim.bench.rows.as_json` writes them.

    Raises:
      RuntimeError: the process failed; it has said why on stderr.
    """
    command = [sys.executable, "-m", "worldsim.bench.child", what, *(["quick"] if quick else [])]
    variables = environment(os.environ, DEVICES[what])
    ran = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise RuntimeError(f"bench {what}: its process ended with status {ran.returncode}; see above.")
    return json.loads(ran.stdout)


def main(words: list[str]) -> None:
    """Measure here, and write what was found as one line of JSON to stdout."""
    if words[0] in ALONE and hasattr(os, "sched_setaffinity"):  # before JAX starts its threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from worldsim.bench.rows import as_json

    suite = importlib.import_module(f"worldsim.bench.{words[0]}")
    rows, machine = suite.measure(suite.QUICK if "quick" in words else suite.FULL)
    sys.stdout.write(as_json([row.plain() for row in rows], machine) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
