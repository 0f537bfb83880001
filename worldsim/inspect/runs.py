"""A training as it stands on disk: its stages, how far and how fast they are, and what they have drawn."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.inspect.curves import CAPTION, panels
from worldsim.inspect.findings import Curves, Findings, Picture, Section, Table, duration
from worldsim.inspect.kinds import STAGES
from worldsim.train.metrics import PLAN_FILE, read_lines

_RECENT = 20
"""Lines of the log from which the time of a step is taken."""

_QUIET = 5.0
"""A stage that has been silent for so many times its usual pause, and a minute at least, is said to be."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      name: of the stage.
      lines: of its log.
      total: steps it is to have; None where nothing says so.
      wanted: whether the run trains it.
      checkpoints: steps of those that are whole.
      samples: what it drew, in order.
      silent: seconds since it last wrote; None before it did.
    """

    name: str
    lines: list[dict[str, Any]]
    total: int | None
    wanted: bool
    checkpoints: list[int]
    samples: list[Path]
    silent: float | None

    @property
    def step(self) -> int:
        """The last that is known of."""
        return max([line["step"] for line in self.lines[-1:]] + self.checkpoints[-1:], default=0)

    @property
    def done(self) -> bool:
        """Whether it has all its steps, saved."""
        return self.total is not None and max(self.checkpoints, default=0) >= self.total

    @property
    def pace(self) -> float | None:
        """Seconds a step took of late; None before two lines in one go are written."""
        rows = [(line["step"], line.get("seconds")) for line in self.lines[-_RECENT:]]
        rates = [
            (later - sooner) / (after - before)
            for (before, sooner), (after, later) in zip(rows, rows[1:], strict=False)
            if sooner is not None and later is not None and after > before and later > sooner
        ]
        return float(np.median(rates)) if rates else None

    @property
    def left(self) -> float | None:
        """Seconds until it is done, at its pace."""
        if self.total is None or self.pace is None:
            return None
        return max(0, self.total - self.step) * self.pace

    def state(self) -> str:
        """In a word or two."""
        if self.done:
            return "done"
        if not self.lines and not self.checkpoints:
            return "waits" if self.wanted else "not trained"
        pause = (self.pace or 0.0) * self._between()
        if self.silent is not None and self.silent > max(60.0, _QUIET * pause):
            return f"silent for {duration(self.silent)}"
        return "runs"

    def _between(self) -> float:
        steps = [line["step"] for line in self.lines[-_RECENT:]]
        return float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir: its config, or what is known of it, and its stages."""

    folder: Path
    config: dict[str, Any] | None
    stages: list[Stage]

    @property
    def done(self) -> bool:
        """Whether all that is to be trained is, and the world written where it can be."""
        parts = [stage for stage in self.stages if stage.wanted]
        whole = bool(parts) and all(stage.done for stage in parts)
        return whole and (len(parts) < len(STAGES) or (self.folder / "world" / "config.json").is_file())


def read_run(folder: str | Path) -> Run:
    """What lies in a workdir at this moment; nothing, where it doesn't exist or nothing was written yet."""
    folder = Path(folder).expanduser()
    plan = _json(folder / PLAN_FILE) or {}
    config = plan.get("config") or _saved_config(folder)
    asked = plan.get("stage", "all")
    return Run(folder, config, [_stage(folder / name, config, asked in ("all", name)) for name in STAGES])


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or none that is whole."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _saved_config(folder: Path) -> dict[str, Any] | None:
    """The config beside the newest checkpoint, of runs that left none in their workdir."""
    files = [path for name in STAGES for path in folder.glob(f"{name}/checkpoints/*/config/metadata")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        if config := (_json(path) or {}).get("config"):
            return config
    return None


def _stage(folder: Path, config: dict[str, Any] | None, wanted: bool) -> Stage:
    log = folder / "metrics.jsonl"
    saved = folder / "checkpoints"
    steps = [int(path.name) for path in saved.glob("*") if path.name.isdigit()] if saved.is_dir() else []
    known = (config or {}).get(folder.name)
    return Stage(
        name=folder.name,
        lines=read_lines(log) if log.is_file() else [],
        total=known.get("steps") if isinstance(known, dict) else None,
        wanted=wanted,
        checkpoints=sorted(steps),
        samples=sorted(folder.glob("samples/*.png")),
        silent=time.time() - log.stat().st_mtime if log.is_file() else None,
    )


def run_findings(run: Run) -> Findings:
    """A run to be shown."""
    last = [stage for stage in reversed(run.stages) if stage.lines]
    sections = [Section("Stages", [_table(run)])]
    sections += [
        Section(stage.name.capitalize(), _items(stage), _note(stage))
        for stage in [s for s in last if s.state() != "done"] + [s for s in last if s.state() == "done"]
    ]
    if run.config is not None:
        sections.append(Section("Config", [Table(("", ""), config_rows(run.config))]))
    name = (run.config or {}).get("name", run.folder.resolve().name)
    return Findings(f"{name}: training in {run.folder}", lead(run), facts(run), sections)


def lead(run: Run) -> str:
    """How it stands, in a line."""
    if run.done:
        world = run.folder / "world"
        return f"Done: the world is {world}." if world.is_dir() else "Done."
    if not any(stage.lines or stage.checkpoints for stage in run.stages):
        return "Nothing is written yet."
    now = next((s for s in reversed(run.stages) if s.state() not in ("done", "waits", "not trained")), None)
    if now is None:
        return "Between two stages."
    of = f" of {now.total}" if now.total else ""
    pace = f", {pace_words(now.pace)}" if now.pace else ""
    rest = f", {duration(now.left)} left of it" if now.left and now.state() == "runs" else ""
    then = [stage.name for stage in run.stages if stage.wanted and stage.state() == "waits"]
    after = f"; then {' and '.join(then)}" if then else ""
    return f"{now.name.capitalize()} {now.state()}: step {now.step}{of}{pace}{rest}{after}."


def pace_words(seconds: float) -> str:
    """The time of a step."""
    return f"{1000 * seconds:.0f} ms a step" if seconds < 1 else f"{seconds:.2f} s a step"


def _table(run: Run) -> Table:
    rows = []
    for stage in run.stages:
        share = f"{100 * min(1.0, stage.step / stage.total):.0f} %" if stage.total else "-"
        rows.append([
            stage.name, stage.state(), stage.step, "-" if stage.total is None else stage.total, share,
            "-" if stage.pace is None else pace_words(stage.pace),
            "-" if stage.left is None or stage.state() != "runs" else duration(stage.left),
            ", ".join(map(str, stage.checkpoints)) or "-", _latest(stage),
        ])  # fmt: skip
    return Table(("stage", "state", "step", "of", "done", "pace", "left", "checkpoints", "last loss"), rows)


def _latest(stage: Stage) -> str:
    loss = next((line["loss"] for line in reversed(stage.lines) if line.get("loss") is not None), None)
    return "-" if loss is None else f"{loss:.4g}"


def _note(stage: Stage) -> str:
    """What the pictures under the curves are."""
    drawn = f" Pictures: drawn at step {int(stage.samples[-1].stem)}." if stage.samples else ""
    return f"{CAPTION}{drawn}"


def _items(stage: Stage) -> list[Any]:
    items: list[Any] = [Curves(panels(stage.lines), f"{stage.name}, curves")]
    if stage.samples:
        path = stage.samples[-1]
        items.append(Picture(path.read_bytes(), f"{stage.name}, samples of step {int(path.stem)}"))
    return items


def config_rows(config: dict[str, Any]) -> list[list[Any]]:
    """What a training works with, in short."""
    data = config.get("data", {})
    rows: list[list[Any]] = [["data", f"{data.get('path')}, split {data.get('split')}"]]
    for name in STAGES:
        one = config.get(name, {})
        optim = one.get("optim", {})
        told = [f"{one.get('steps')} steps", f"batches of {one.get('batch')}"]
        told += [f"{one['frames']} frames"] if one.get("frames") else []
        told += [f"{optim.get('optimizer')}, rate {optim.get('learning_rate'):g}"] if optim else []
        rows.append([name, ", ".join(told)])
    return [*rows, ["seed", config.get("seed")]]


def facts(run: Run) -> dict[str, Any]:
    """All that is counted, as JSON values."""
    return {
        "what": "run", "folder": str(run.folder), "done": run.done,
        "name": (run.config or {}).get("name"),
        "world": str(run.folder / "world") if (run.folder / "world" / "config.json").is_file() else None,
        "stages": {
            stage.name: {
                "state": stage.state(), "step": stage.step, "steps": stage.total, "wanted": stage.wanted,
                "checkpoints": stage.checkpoints, "seconds_a_step": stage.pace, "seconds_left": stage.left,
                "last": stage.lines[-1] if stage.lines else None,
                "samples": [str(path) for path in stage.samples],
            }
            for stage in run.stages
        },
    }  # fmt: skip
