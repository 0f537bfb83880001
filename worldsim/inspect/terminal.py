"""Findings in a terminal: tables, sparklines, bars, and frames in coloured half blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from worldsim.evaluate.document import number
from worldsim.evaluate.plots import Line
from worldsim.inspect.findings import Bars, Curves, Findings, Item, Picture, Section, Sheet, Table

_LEVELS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_WIDE, _BAR, _FRAME, _LABEL = 60, 40, 24, 12
"""Columns of a sparkline, of a full bar, of a frame at least, and of a row's label."""

WORLD = "rgb(96,165,250)"
MADE = "rgb(251,146,60)"


def render(found: Findings, *, width: int, color: bool) -> Any:
    """What :class:`rich.console.Console` prints.

    Args:
      found: what was found.
      width: columns.
      color: whether frames can be shown, which needs colours.

    Raises:
      ModuleNotFoundError: rich is missing.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(found.title, style="bold"), Text(found.lead)]
    for section in found.sections:
        parts += _section(section, width, color)
    return Group(*parts)


def _section(section: Section, width: int, color: bool) -> list[Any]:
    """A heading and its items, or nothing where none of them can be shown."""
    from rich.text import Text

    shown = [part for item in section.items if (part := _item(item, width, color)) is not None]
    told = [Text(section.note, style="dim")] if section.note else []
    return [Text(""), Text(section.title, style="bold cyan"), *told, *shown] if shown else []


def _item(item: Item, width: int, color: bool) -> Any:
    match item:
        case Table():
            return _table(item, color)
        case Bars():
            return _bars(item)
        case Curves():
            return _curves(item)
        case Sheet():
            return _sheet(item, width) if color else None
        case Picture():
            return None


def _table(item: Table, color: bool) -> Any:
    """A table without lines; shares on a ground."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(
        box=None, pad_edge=False, show_header=any(item.head), header_style="dim", padding=(0, 2, 0, 0)
    )
    for column, name in enumerate(item.head):
        values = [row[column] for row in item.rows if column < len(row)]
        grid.add_column(Text(name), justify="right" if column and _numeric(values) else "left", no_wrap=False)
    for row in item.rows:
        cells = []
        for value in row:
            if item.shade and isinstance(value, float):
                style = f"on rgb({round(30 + 217 * value)},{round(30 + 100 * value)},30)" if color else ""
                cells.append(Text(f"{100 * value:3.0f}", style=style))
            else:
                cells.append(Text(number(value, item.digits)))
        grid.add_row(*cells)
    return grid


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) or value in (None, "") for value in values)


def _bars(item: Bars) -> Any:
    from rich.text import Text

    most, wide, text = max([*item.values, 1e-9]), max(map(len, item.labels), default=0), Text()
    for at, (label, value) in enumerate(zip(item.labels, item.values, strict=True)):
        full, part = divmod(round(8 * _BAR * value / most), 8)
        bar = _EIGHTHS[8] * full + (_EIGHTHS[part] if part else "")
        text.append(f"{label:>{wide}} ")
        text.append(f"{bar:<{_BAR + 1}}", style=MADE if at in item.marked else WORLD)
        text.append(f"{100 * value:5.1f} %" + ("\n" if at + 1 < len(item.values) else ""))
    return text


def _curves(item: Curves) -> Any:
    """A sparkline for each line, from its first to its last value."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for panel in item.panels:
        named = [line for line in panel.lines if line.label]
        for line in named or panel.lines[-1:]:
            values = np.asarray(line.values, float)
            finite = values[np.isfinite(values)]
            if finite.size:
                name = f"{panel.title}, {line.label}" if line.label else panel.title
                ends = Text(f"{finite[0]:.4g} → {finite[-1]:.4g}" + (" (log)" if panel.log else ""))
                grid.add_row(Text(name), Text(sparkline(line, log=panel.log), style=WORLD), ends)
    return grid if grid.row_count else None


def sparkline(line: Line, *, log: bool = False, columns: int = _WIDE) -> str:
    """A curve in one row of blocks: the mean of what falls into each column, lowest to highest."""
    values = np.asarray(line.values, float)
    at = np.arange(len(values)) if line.at is None else np.asarray(line.at, float)
    usable = np.isfinite(values) & (values > 0 if log else True)
    values, at = values[usable], at[usable]
    if not len(values):
        return ""
    values = np.log(values) if log else values
    span = max(at[-1] - at[0], 1e-9)
    place = np.minimum((at - at[0]) / span * columns, columns - 1).astype(int)
    means = [values[place == i].mean() for i in range(columns) if (place == i).any()]
    low, high = min(means), max(means)
    levels = [
        len(_LEVELS) - 1 if high == low else math.floor(7.999 * (v - low) / (high - low)) for v in means
    ]
    return "".join(_LEVELS[level] for level in levels)


def _sheet(item: Sheet, width: int) -> Any:
    """Some frames of each row, as many as are still to be made out, in half blocks."""
    from rich.console import Group
    from rich.text import Text

    most = max(map(len, item.rows))
    room = max(_FRAME, width - _LABEL)
    count = max(1, min(most, room // (_FRAME + 1)))
    wide = min(2 * _FRAME, room // count - 1)
    picks = np.unique(np.linspace(0, most - 1, count).round().astype(int))
    parts: list[Any] = []
    for label, row in zip(item.labels, item.rows, strict=True):
        frames = [_fitted(row[at], wide) if at < len(row) else None for at in picks]
        lines = _half_blocks([frame for frame in frames if frame is not None])
        for number_, line in enumerate(lines):
            head = Text(f"{label[: _LABEL - 1]:<{_LABEL}}" if number_ == 0 else " " * _LABEL)
            parts.append(head.append_text(line))
    names = item.columns or [str(at) for at in range(most)]
    under = "".join(f"{names[at]:<{wide + 1}}" for at in picks)
    parts.append(Text(" " * _LABEL + under, style="dim"))
    return Group(*parts)


def _fitted(frame: UInt8[np.ndarray, "h w 3"], columns: int) -> np.ndarray:
    """The frame, ``columns`` wide and of an even height."""
    from PIL import Image

    rows = max(2, round(frame.shape[0] * columns / frame.shape[1] / 2) * 2)
    return np.asarray(Image.fromarray(frame).resize((columns, rows), Image.Resampling.BOX))


def _half_blocks(frames: Sequence[np.ndarray]) -> list[Any]:
    """Frames beside each other, two of their rows a line."""
    from rich.text import Text

    lines = []
    for top in range(0, frames[0].shape[0], 2):
        text = Text(no_wrap=True)
        for frame in frames:
            for upper, lower in zip(frame[top], frame[top + 1], strict=True):
                a, b = (f"rgb({','.join(map(str, pixel))})" for pixel in (upper, lower))
                text.append("▀", style=f"{a} on {b}")
            text.append(" ")
        lines.append(text)
    return lines
