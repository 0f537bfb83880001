"""Findings as one HTML page that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from worldsim.data.sheet import contact_sheet, enlargement
from worldsim.evaluate import plots
from worldsim.evaluate.document import document, inline, number, table
from worldsim.inspect.findings import Bars, Curves, Findings, Item, Picture, Sheet, Table

_STYLE = """
body { max-width: 74rem; } p { max-width: 60rem; } .sheet { max-width: 100%; image-rendering: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 0 1rem; }
.panels.large { grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); }
.panels img { width: 100%; margin: .2rem 0; }
.beside { display: flex; flex-wrap: wrap; gap: 0 4rem; align-items: flex-start; }
.lead { font-size: 1.05rem; margin-bottom: 1.2rem; }
.bars td { border: 0; padding-top: .08rem; padding-bottom: .08rem; }
.bars td:first-child { text-align: right; }
.bars span { display: inline-block; height: .8rem; border-radius: 2px; vertical-align: middle; }
.bars span { background: #2f7fd6; }
.bars .marked { background: #d9822b; } .bars td.bar { width: 24rem; text-align: left; }
td + td, th { white-space: nowrap; } table.plain td { white-space: normal; }
table.plain td { text-align: left; vertical-align: top; }
table.plain td:first-child { color: var(--dim); white-space: nowrap; }
td.share { padding: .22rem .5rem; }
"""


def page(found: Findings, *, refresh: float | None = None) -> str:
    """The whole page; with ``refresh`` it loads itself anew after so many seconds.

    Raises:
      ModuleNotFoundError: matplotlib is missing, and there are curves.
    """
    parts = [f"<h1>{escape(found.title)}</h1>", f'<p class="lead">{escape(found.lead)}</p>']
    for section in found.sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f'<p class="dim">{escape(section.note)}</p>'] if section.note else []
        parts += _items(section.items)
    return document(found.title, parts, style=_STYLE, refresh=refresh)


def write(path: Path, found: Findings, *, refresh: float | None = None) -> Path:
    """Write the page, whole or not at all: a browser may be reading the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page(found, refresh=refresh), "utf-8")
    part.replace(path)
    return path


def _items(items: Sequence[Item]) -> list[str]:
    """Items one under the other, tables beside each other where there is room."""
    parts = []
    for tables, some in groupby(items, lambda item: isinstance(item, Table)):
        shown = [*map(_item, some)]
        parts += [f'<div class="beside">{"".join(shown)}</div>'] if tables and len(shown) > 1 else shown
    return parts


def _item(item: Item) -> str:
    match item:
        case Table(shade=True):
            return _shaded(item)
        case Table():
            return table(item.head, item.rows, item.digits) if any(item.head) else _plain(item)
        case Bars():
            return _bars(item)
        case Sheet():
            return inline(_png(drawn(item)), item.name, "sheet")
        case Picture():
            return inline(item.png, item.name, "sheet")
        case Curves():
            return _panels(item)


def _panels(item: Curves) -> str:
    """A picture a panel, larger where lines have names."""
    named = any(line.label for panel in item.panels for line in panel.lines)
    looks = {} if named else {"width": 3.2, "height": 2.5}
    drawn_ = [inline(plots.png([one], dpi=150, **looks), f"{item.name}: {one.title}") for one in item.panels]
    return f'<div class="panels{" large" * named}">{"".join(drawn_)}</div>'


def drawn(item: Sheet) -> UInt8[np.ndarray, "H W 3"]:
    """The sheet as one picture."""
    scale = enlargement(item.rows[0].shape[1:3], item.side)
    return contact_sheet(item.rows, labels=item.labels, columns=item.columns, known=item.known, scale=scale)


def _png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def _plain(item: Table) -> str:
    """Names and what they stand for."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(number(cell, item.digits))}</td>" for cell in row) + "</tr>"
        for row in item.rows
    )
    return f'<table class="plain">{rows}</table>'


def _shaded(item: Table) -> str:
    """Shares as per cent, each on its ground."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return f"<td>{escape(number(value, item.digits))}</td>"
        ground = f"background: rgba(217, 130, 43, {min(1.0, 1.6 * value**0.7):.3f})"
        return f'<td class="share" style="{ground}">{100 * value:.0f}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in item.head)
    rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in item.rows)
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _bars(item: Bars) -> str:
    most, rows = max([*item.values, 1e-9]), []
    for at, (label, value) in enumerate(zip(item.labels, item.values, strict=True)):
        kind = ' class="marked"' if at in item.marked else ""
        bar = f'<span{kind} style="width: {100 * value / most:.1f}%"></span>'
        rows.append(
            f'<tr><td>{escape(label)}</td><td class="bar">{bar}</td><td>{100 * value:.1f} %</td></tr>'
        )
    return f'<table class="bars">{"".join(rows)}</table>'
