"""What a run tells: JSON lines (the source of truth), TensorBoard, progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAN_FILE = "run.json"
"""In the workdir of a run: the stages it trains and its config."""


def keep_lines(path: Path, *, step: int) -> None:
    """Drop the lines after ``step``, and one that a killed run left half written.

    A run that goes on from a checkpoint writes them anew, so that its log is the log of a run that
    was never stopped.
    """
    if not path.exists():
        return
    kept = [json.dumps(values) + "\n" for values in read_lines(path) if values["step"] <= step]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(kept))
    part.replace(path)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``: ``step``, ``seconds`` and the metrics of that step.

    One that is half written, by a run that was killed or is just writing it, is left out.
    """
    lines = []
    for line in Path(path).read_text("utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


class MetricsLog:
    """Writes one stage's metrics; on a terminal it shows a progress bar, else plain lines.

    Args:
      folder: gets ``metrics.jsonl`` and ``tensorboard/`` (if tensorboardX is installed).
      name: of the stage, for people.
      total: steps of the whole run.
      start: steps done already; lines after it are dropped.
      active: False on all processes but one, which then write nothing.
    """

    def __init__(self, folder: Path, *, name: str, total: int, start: int, active: bool = True):
        self.name, self.total, self.active = name, total, active
        self._bar = self._board = self._file = None
        self._task: Any = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        keep_lines(path, step=start)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        except ImportError:
            pass
        self._start_bar(start)

    def _start_bar(self, start: int) -> None:
        if not sys.stderr.isatty():
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(self.name, total=self.total, completed=start, text="")
        self._bar.start()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def write(self, step: int, values: Mapping[str, float], *, seconds: float) -> None:
        """Write the metrics of a step; floats are kept exactly, what is not finite as null.

        Args:
          step: steps done.
          values: scalars by name.
          seconds: since this process began the stage; the only value that a resumed run does not repeat.
        """
        if self._file is None:
            return
        line = {"step": step, **{name: v if math.isfinite(v) else None for name, v in values.items()}}
        self._file.write(json.dumps({**line, "seconds": round(seconds, 3)}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{self.name}/{name}", value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=f"loss {values.get('loss', math.nan):.4g}")
        else:
            self.note(f"{step}/{self.total}  {text}  {seconds:.0f} s")

    def note(self, text: str) -> None:
        """Say something to people."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.console.print(f"{self.name}: {text}", markup=False, highlight=False)
        else:
            sys.stderr.write(f"{self.name}: {text}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Flush everything and put the terminal back."""
        for thing in (self._file, self._board):
            if thing is not None:
                thing.close()
        if self._bar is not None:
            self._bar.stop()
