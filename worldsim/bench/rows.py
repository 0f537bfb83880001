"""Rows of a benchmark: a figure, what it is compared with, its floor; and costs measured in turns."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("name", "value", "unit", "baseline", "ratio", "floor")

SQUARE = 1024
"""Side of the matrices whose product says what the machine can do."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
      name: what is measured, and at which size.
      value: the figure; None where it could not be measured.
      unit: of the figure, the baseline and the floor.
      baseline: the same of what it is compared with; None where there is nothing, or it could not be had.
      floor: what it can't go below on this machine, or by what it must hold.
      note: what it should be, what else was seen, or why something is missing.
    """

    name: str
    value: float | None
    unit: str
    baseline: float | None = None
    floor: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Baseline over figure: how many times less this takes."""
        return self.baseline / self.value if self.baseline is not None and self.value else None

    def plain(self) -> dict[str, Any]:
        """As JSON values, to four digits; with the note where there is one."""
        values = {name: getattr(self, name) for name in COLUMNS}
        short = {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in values.items()}
        return short | ({"note": self.note} if self.note else {})


def as_json(rows: Iterable[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    """One line that any JSON reader takes: what is missing is null, and nothing is NaN."""
    return json.dumps({"rows": list(rows), "machine": dict(machine)}, allow_nan=False)


def as_table(rows: Iterable[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    """The same to read: a line a row, its note below it."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)

    found = list(rows)
    cells = [list(COLUMNS), *([cell(row[name]) for name in COLUMNS] for row in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [str.ljust if name in ("name", "unit") else str.rjust for name in COLUMNS]
    align = lambda line: "  ".join(side(x, w) for side, x, w in zip(sides, line, widths, strict=True))
    aligned = [align(line).rstrip() for line in cells]
    lines = [aligned[0]]
    for line, row in zip(aligned[1:], found, strict=True):
        lines += [line] + ([f"    {row['note']}"] if row.get("note") else [])
    return "\n".join([*lines, ", ".join(f"{k} {v}" for k, v in machine.items())])


def interleaved(
    cases: Mapping[str, Callable[[], Any]], *, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """The median cost of each case, run in turns, forth and back: A B C, C B A, A B C.

    What else goes on in the machine then falls on all of them alike.

    Args:
      cases: what to run, by name; each returns once it is done.
      rounds: how often each runs.
      clock: seconds, such as :func:`clock_of` names.
    """
    costs: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name in list(cases)[:: -1 if turn % 2 else 1]:
            began = clock()
            cases[name]()
            costs[name].append(clock() - began)
    return {name: statistics.median(seconds) for name, seconds in costs.items()}


def clock_of(kind: str) -> tuple[Callable[[], float], str]:
    """The clock for devices of a platform, and its unit.

    On ``cpu``, seconds of all of the process's threads together: they hardly depend on how many cores
    simulated devices share, nor on who else uses them. Elsewhere, seconds by the wall.
    """
    return (time.process_time, "CPU s") if kind == "cpu" else (time.perf_counter, "s")


def product(device: Any, dtype: Any = "float32", *, side: int = SQUARE) -> tuple[Callable[[], Any], float]:
    """A product of large matrices of a type, to be run beside the cases, and its flops.

    Its rate is what floors are worked out from: flops over flops per second.
    """
    import jax

    noise = jax.random.normal(jax.random.key(0), (side, side)) * side**-0.5
    square = jax.device_put(noise.astype(dtype), device)
    times = jax.jit(lambda x: jax.lax.fori_loop(0, 4, lambda _, y: x @ y, x)).lower(square).compile()
    return lambda: jax.block_until_ready(times(square)), 4 * 2.0 * side**3


def machine(devices: Iterable[Any]) -> dict[str, Any]:
    """What ran the benchmark, and what else it was doing (its load when asked)."""
    import jax

    used = list(devices)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "devices": len(used),
        "device": used[0].device_kind,
        "simulated": used[0].platform == "cpu",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
