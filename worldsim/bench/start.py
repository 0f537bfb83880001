"""``worldsim bench start``: how long until there is something to see.

Every figure is of processes of their own, from their start until they say that they are there, in seconds by
the wall, with the bytecode that installers and first imports leave behind. Programs that were compiled once
are read from JAX's compilation cache, as with ``JAX_COMPILATION_CACHE_DIR`` set; the cold figure is of the
first process, which fills it.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax

from worldsim.bench.rows import Row, machine
from worldsim.progress import Counter

BARE, IMPORT = "import worldsim", "import worldsim; worldsim.World"
FRAME = """
import numpy as np
import worldsim
from worldsim.worlds import clips
sim = worldsim.Simulator(worldsim.load("pong"))
state, frames = sim.step(sim.reset(clips("pong")[0][:16]))
assert np.asarray(frames).shape[1:] == (1, 64, 64, 3)
"""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How often each process is started."""

    rounds: int = 5


FULL, QUICK = Sizes(), Sizes(rounds=1)


def seconds(code: str, variables: Mapping[str, str]) -> float:
    """From the start of a Python process until it has run some code.

    Raises:
      RuntimeError: the process failed; it has said why on stderr.
    """
    began = time.perf_counter()
    words = [sys.executable, "-c", f"{code}\nprint('there', flush=True)"]
    with subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline() if process.stdout else ""
        took = time.perf_counter() - began
    if said.strip() != "there":
        raise RuntimeError(f"bench start: a process ended with status {process.returncode}; see above.")
    return took


def measure(sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what measured them."""
    tell = Counter("measuring")
    costs: dict[str, list[float]] = {"bare": [], "import": [], "frame": []}
    with tempfile.TemporaryDirectory(prefix="worldsim-compiled-") as folder:
        kept = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        variables |= kept
        seconds(FRAME, {**variables, "JAX_ENABLE_COMPILATION_CACHE": "0"})  # bytecode and files are there
        cold = seconds(FRAME, variables)
        for turn in range(sizes.rounds):
            tell("start", turn, sizes.rounds)
            costs["bare"].append(seconds(BARE, variables))
            costs["import"].append(seconds(IMPORT, variables))
            costs["frame"].append(seconds(FRAME, variables))
    tell("start", sizes.rounds, sizes.rounds)
    found = {name: statistics.median(values) for name, values in costs.items()}
    rows = [
        Row("import_s", found["import"], "s", floor=found["bare"],
            note="of worldsim.World, with JAX and Python; bar: at most 1.5; floor: import worldsim alone"),
        Row("first_frame_warm_s", found["frame"], "s", baseline=cold,
            note="world pong, 16 frames known, with detail; bar: at most 5; baseline: nothing compiled"),
    ]  # fmt: skip
    return rows, machine(jax.devices())
