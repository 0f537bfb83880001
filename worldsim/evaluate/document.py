"""The parts of a self-contained HTML page: tables, pictures inline, and what holds them together."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --dim: #808080; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; } .dim { color: var(--dim); }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .22rem .8rem .22rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
.wide { overflow-x: auto; } .sheet { image-rendering: pixelated; max-width: none; }
"""


def number(value: Any, digits: int = 2) -> str:
    """A figure for reading; an empty cell where there is none."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 2) -> str:
    """Rows under a head."""
    line = lambda cells, tag: "".join(f"<{tag}>{escape(number(c, digits))}</{tag}>" for c in cells)
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{line(head, "th")}</tr>{body}</table></div>'


def picture(path: Path, kind: str = "") -> str:
    """A PNG inside the page."""
    return inline(path.read_bytes(), path.stem.replace("_", " "), kind)


def inline(png: bytes, alt: str, kind: str = "") -> str:
    """The same of the file's bytes; ``alt`` says what it shows."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<div class="wide"><img class="{kind}" alt="{escape(alt)}" src="{source}"></div>'


def document(title: str, parts: Sequence[str], *, style: str = "", refresh: float | None = None) -> str:
    """The page that holds the parts.

    Args:
      title: of its tab.
      parts: HTML, one after another.
      style: CSS beside that of all pages.
      refresh: seconds after which a browser loads it anew.
    """
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{max(1, round(refresh))}">'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1">{again}<title>{escape(title)}</title>'
        f"<style>{_STYLE}{style}</style></head><body>{''.join(parts)}</body></html>\n"
    )
