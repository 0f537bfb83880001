"""What was found, before it is shown: sections of tables, curves, bars and sheets, and plain facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from worldsim.evaluate.plots import Panel


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a head.

    Attributes:
      head: of the columns; all empty where rows speak for themselves.
      rows: texts and numbers.
      digits: of floats.
      shade: floats from 0 to 1 are shown as per cent on a ground that is the darker the more they are.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: int = 2
    shade: bool = False


@dataclasses.dataclass(frozen=True)
class Bars:
    """Shares, 0 to 1, each with a label; ``marked`` ones stand out."""

    labels: Sequence[str]
    values: Sequence[float]
    marked: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Rows of frames.

    Attributes:
      rows: uint8 ``[t h w 3]`` each.
      labels: of the rows.
      known: for each row True where a frame is given and False where it is generated; None for no border.
      columns: under each frame; its number by default.
      name: what it shows, in a few words.
      side: pixels that frames are at least enlarged to on a page.
    """

    rows: Sequence[UInt8[np.ndarray, "_ h w 3"]]
    labels: Sequence[str]
    known: Sequence[Bool[np.ndarray, "_"] | None] | None = None
    columns: Sequence[str] | None = None
    name: str = "frames"
    side: int = 64


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that exists as a PNG file's bytes."""

    png: bytes
    name: str


@dataclasses.dataclass(frozen=True)
class Curves:
    """Panels; those without labels show their last line in a terminal, a running mean as a rule."""

    panels: Sequence[Panel]
    name: str = "curves"


Item = Table | Bars | Sheet | Picture | Curves


@dataclasses.dataclass(frozen=True)
class Section:
    """Items under a heading, with a sentence on what they say."""

    title: str
    items: Sequence[Item]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that is known of a thing.

    Attributes:
      title: its name.
      lead: what to know first, in a line.
      facts: everything that was counted, as plain JSON values.
      sections: to be shown, the most important first.
    """

    title: str
    lead: str
    facts: dict[str, Any]
    sections: Sequence[Section]


def size(count: float) -> str:
    """Bytes for reading."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise ValueError(f"size: {count} bytes.")


def duration(seconds: float) -> str:
    """Seconds for reading."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"
