"""Plots of curves with their bands, readable on light and on dark ground."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORLD, OTHER, CEILING, SECOND = "#2f7fd6", "#8a8a8a", "#2e9e6b", "#d9822b"
_TEXT = "#7d7d7d"


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve, as a rule over horizon.

    Attributes:
      label: in the legend.
      values: ``[h]``, NaN where there is none.
      low, high: its band, or None.
      color, style: of the line.
      at: ``[h]``, where the values lie on the axis; None counts them from 1.
    """

    label: str
    values: Any
    low: Any = None
    high: Any = None
    color: str = WORLD
    style: str = "-"
    at: Any = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves that share an axis; ``floor`` draws from 0 on, ``log`` on a logarithmic scale, ``doubling``
    marks 1, 2, 4 ... at equal steps of the horizon."""

    title: str
    unit: str
    lines: Sequence[Line]
    floor: bool = False
    axis: str = "frames from the known end"
    log: bool = False
    doubling: bool = False


def banded(label: str, curve: dict[str, Any], color: str = WORLD, style: str = "-") -> Line:
    """A line from the mean and the band of :func:`worldsim.evaluate.bands.band`."""
    return Line(label, curve["mean"], curve["low"], curve["high"], color, style)


def draw(path: Path, panels: Sequence[Panel]) -> Path:
    """Write panels beside each other as a PNG with a clear ground; see :func:`png`.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
    """
    path.write_bytes(png(panels))
    return path


def png(panels: Sequence[Panel], *, width: float = 4.6, height: float = 3.3, dpi: int = 110) -> bytes:
    """The PNG that :func:`draw` writes; ``width`` and ``height`` of a panel in inches.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(panels) + 0.2, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for line in panel.lines:
            values = np.asarray(line.values, float)
            x = np.arange(1, len(values) + 1) if line.at is None else np.asarray(line.at, float)
            mark = "o" if len(values) < 3 else None
            axes.plot(
                x, values, line.style, color=line.color, label=line.label, linewidth=1.7, marker=mark, ms=3
            )
            if line.low is not None:
                low, high = (np.asarray(edge, float) for edge in (line.low, line.high))
                axes.fill_between(x, low, high, color=line.color, alpha=0.18, linewidth=0)
        axes.set_title(panel.title, color=_TEXT, fontsize=10)
        axes.set_xlabel(panel.axis, color=_TEXT, fontsize=9)
        axes.set_ylabel(panel.unit, color=_TEXT, fontsize=9)
        if panel.doubling:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.0f}")
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[union-attr]
        axes.tick_params(which="both", colors=_TEXT, labelsize=8)
        axes.grid(color=_TEXT, alpha=0.22, linewidth=0.6)
        axes.patch.set_alpha(0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_TEXT)
        if panel.log:
            axes.set_yscale("log")
        if panel.floor:
            axes.set_ylim(bottom=0)
        if any(line.label for line in panel.lines):
            under = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
            axes.legend(fontsize=8, frameon=False, labelcolor=_TEXT, columnspacing=1.2, **under)
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True)
    return out.getvalue()


def score_panels(name: str, scores: dict[str, Any], ceiling: float | None) -> list[Panel]:
    """PSNR and SSIM of one verb: samples, the best of them, copying, and what the tokenizer reaches."""
    copied = {"forward": "copy the last frame", "backward": "copy the first frame"}
    other, panels = copied.get(name, "copy the nearest frame"), []
    for key, unit in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if key not in scores:
            continue
        one = scores[key]
        lines = [
            banded("mean of samples", one),
            Line("best of samples", one["best"], style="--"),
            Line(other, one["copy"], one["copy_low"], one["copy_high"], OTHER),
        ]
        if key == "psnr" and ceiling is not None:
            lines.append(
                Line("tokenizer alone", np.full(len(one["mean"]), ceiling), None, None, CEILING, ":")
            )
        panels.append(Panel(name.replace("_", ", gap of "), unit, lines))
    return panels


def drift_panels(told: dict[str, Any]) -> list[Panel]:
    """Long rollouts by stretches of the horizon that double: look, motion and what is found in them."""
    ends = [int(name.split("-")[-1]) for name in told["stretches"]]
    rows = list(told["stretches"].values())

    def line(label: str, key: str, color: str = WORLD) -> Line:
        values = [np.nan if row.get(key) is None else row[key] for row in rows]
        return Line(label, values, color=color, at=ends)

    def above(row: dict[str, Any]) -> float:
        """Fréchet distance less that of as much real play; of few pieces both are large."""
        return row["frechet"] - row["floor"] if row.get("frechet") is not None else np.nan

    level = lambda key: np.full(len(ends), above(told[key]))
    look = [
        Line("world", [above(row) for row in rows], at=ends),
        Line("last frame held", level("copy"), color=OTHER, at=ends),
        Line("known frames repeated", level("repeat"), color=OTHER, style="--", at=ends),
    ]
    found = [key for key in rows[-1] if key not in ("frechet", "floor", "motion", "sharpness", "redrawn")]
    colors = (WORLD, SECOND, CEILING, OTHER)
    panels = [
        Panel("how it looks", "Fréchet above real play's", look),
        Panel(
            "how it moves",
            "of real play's",
            [line("motion", "motion"), line("sharpness", "sharpness", SECOND)],
            floor=True,
        ),
    ]
    if found:
        lines = [line(key.replace("_", " "), key, color) for key, color in zip(found, colors, strict=False)]
        panels.append(Panel("what is found in it", "share", lines, floor=True))
    return [dataclasses.replace(panel, doubling=True) for panel in panels]


def state_panels(game: str, state: dict[str, Any]) -> list[Panel]:
    """What is read from generated frames, forward and backward."""
    both = [(name, state[name], color) for name, color in (("forward", WORLD), ("backward", SECOND))]
    keys = {
        "pong": (
            ("own_error", "own paddle, where it is seen", "error, pixels"),
            ("own_recall", "own paddle is seen", "share of true paddles"),
            ("ball_recall", "ball within 3 pixels", "share of true balls"),
            ("ball_error", "ball, where one is seen", "error, pixels"),
        ),
        "sprites": (
            ("pushed_error", "pushed sprite", "error, pixels"),
            ("free_error", "free sprites", "error, pixels"),
            ("found", "right colour and shape", "share of sprites"),
        ),
    }[game]
    return [
        Panel(title, unit, [banded(name, part[key], color) for name, part, color in both], floor=True)
        for key, title, unit in keys
    ]
