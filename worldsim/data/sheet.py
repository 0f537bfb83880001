"""Contact sheets: rows of frames as one picture, with labels and known or generated borders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

BACKGROUND = (24, 24, 27)
TEXT = (228, 228, 231)
KNOWN = (96, 165, 250)
GENERATED = (251, 146, 60)

_BORDER = 2
_GAP = 4
_LINE = 14


def contact_sheet(
    rows: Sequence[UInt8[np.ndarray, "_ h w _"]],
    *,
    labels: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    known: Sequence[Bool[np.ndarray, "_"] | None] | None = None,
    every: int = 1,
    scale: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Lay clips out in rows, frame beside frame.

    ::

        label 0   [frame 0] [frame 1] ...      blue border: known, orange border: generated
        label 1   [frame 0] [frame 1] ...
                      0         1     ...      columns

    Args:
      rows: uint8 clips of one frame size; rows may differ in length.
      labels: text before each row.
      columns: text under each *drawn* column; the frame's number in its row by default.
      known: for each row a bool per frame (True given, False generated), or None for no border.
      every: draw each ``every``-th frame.
      scale: whole-number enlargement; by default tiles are about 96 pixels wide or larger.
    """
    tiles, marks = _picked(rows, known, every)
    _check_texts(len(tiles), max(map(len, tiles)), labels, columns)
    scale = scale or enlargement(tiles[0].shape[1:3], 96)
    height, width = (side * scale + 2 * _BORDER for side in tiles[0].shape[1:3])
    texts = list(labels or [])
    margin = _GAP + (max(map(_text_width, texts)) + _GAP if texts else 0)
    count = max(map(len, tiles))
    sheet = np.empty(
        (_GAP + len(tiles) * (height + _GAP) + _LINE, margin + count * (width + _GAP), 3), np.uint8
    )
    sheet[:] = BACKGROUND
    for r, (row, mark) in enumerate(zip(tiles, marks, strict=True)):
        top = _GAP + r * (height + _GAP)
        for c, frame in enumerate(row):
            left = margin + c * (width + _GAP)
            if mark is not None:
                sheet[top : top + height, left : left + width] = KNOWN if mark[c] else GENERATED
            inside = sheet[top + _BORDER : top + height - _BORDER, left + _BORDER : left + width - _BORDER]
            inside[:] = upscale(frame[None], scale)[0]
    names = list(columns) if columns is not None else [str(c * every) for c in range(count)]
    at = [(_GAP, _GAP + r * (height + _GAP) + height // 2 - _LINE // 2) for r in range(len(texts))]
    below = len(tiles) * (height + _GAP) + _GAP
    at += [(margin + c * (width + _GAP) + _BORDER, below) for c in range(len(names))]
    return _write(sheet, texts + names, at)


def upscale(frames: UInt8[np.ndarray, "t h w c"], scale: int) -> UInt8[np.ndarray, "t H W c"]:
    """Each pixel as a square of ``scale`` by ``scale`` pixels."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def enlargement(shape: Sequence[int], side: int) -> int:
    """The smallest whole factor that brings the longer side of (height, width) to ``side``."""
    return max(1, -(-side // max(shape)))


def _picked(
    rows: Sequence[np.ndarray], known: Sequence[np.ndarray | None] | None, every: int
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Every ``every``-th frame of each row and of its marks, checked against each other."""
    if every < 1:
        raise ValueError(f"contact_sheet: every {every}; draw each first, second, ... frame: at least 1.")
    if not rows or min(len(row) for row in rows) == 0:
        raise ValueError(f"contact_sheet: rows of {[len(row) for row in rows]} frames; give each at least 1.")
    sizes = {tuple(row.shape[1:3]) for row in rows}
    if len(sizes) > 1:
        raise ValueError(
            f"contact_sheet: frames of different sizes {sorted(sizes)}; resize them with video.resize_clip."
        )
    marks = list(known) if known is not None else [None] * len(rows)
    wanted = [len(row) for row in rows]
    given = [length if mark is None else len(mark) for mark, length in zip(marks, wanted, strict=False)]
    if given != wanted:
        raise ValueError(
            f"contact_sheet: known marks {given} frames of rows with {wanted}; give one a frame."
        )
    return [row[::every] for row in rows], [None if mark is None else mark[::every] for mark in marks]


def _check_texts(rows: int, count: int, labels: Sequence[str] | None, columns: Sequence[str] | None) -> None:
    for name, texts, wanted in (("labels", labels, rows), ("columns", columns, count)):
        if texts is not None and len(texts) != wanted:
            raise ValueError(f"contact_sheet: {len(texts)} {name} for {wanted} drawn {name}; give one each.")


def _text_width(text: str) -> int:
    from PIL import ImageFont

    return int(np.ceil(ImageFont.load_default().getlength(text)))


def _write(sheet: np.ndarray, texts: Sequence[str], at: Sequence[tuple[int, int]]) -> np.ndarray:
    """The sheet with each text drawn at its (left, top)."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for text, place in zip(texts, at, strict=True):
        draw.text(place, text, fill=TEXT, font=font)
    return np.asarray(image)
