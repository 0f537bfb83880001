"""What the page and the server say to each other.

The page sends JSON objects with a ``type``, :func:`read` says which. The server sends JSON objects too, and
frames as bytes: a head of ``HEAD`` and then RGB, row by row.

    kind u8 | known u8 | width u16 | height u16 | heard u32 | position i32      little-endian, 14 bytes

``heard`` is the number of the last action that the server had when it began to make the frame.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from jaxtyping import UInt8

HEAD = struct.Struct("<BBHHIi")
FRAME, PASSED, LOOPED, BRANCH = 0, 1, 2, 3
"""Kinds of frames: the present; only for the strip; of a loop; of a branch, whose position is its number."""

LONGEST = 4096
"""Bytes of a message."""

NUMBERS: dict[str, dict[str, tuple[float, float]]] = {
    "start": {},
    "act": {"heard": (0, 2**32 - 1)},
    "pace": {"fps": (0.5, 120)},
    "mode": {},
    "step": {},
    "branch": {},
    "go": {"number": (0, 2**31 - 1)},
    "dials": {},
    "loop": {"frames": (2, 128)},
}
"""The types, and for each the numbers that it must have, with their ranges."""

DIALS = {"steps": (1, 64), "temperature": (0.0, 4.0), "refine_steps": (0, 16), "seed": (0, 2**31 - 1)}
MODES = ("pause", "play", "back")


class MessageError(ValueError):
    """A message that can't be understood; it says why."""


def frame_bytes(
    frame: UInt8[np.ndarray, "h w c"],
    *,
    kind: int = FRAME,
    known: bool = False,
    heard: int = 0,
    position: int = 0,
) -> bytes:
    """A frame as it is sent."""
    height, width = frame.shape[:2]
    head = HEAD.pack(kind, known, width, height, heard, position)
    return head + np.ascontiguousarray(np.broadcast_to(frame, (height, width, 3))).tobytes()


def read(text: str) -> dict[str, Any]:
    """A message of the page, looked through.

    Raises:
      MessageError: it is too long, no JSON object, of no type, or lacks numbers or has them out of range.
    """
    if len(text) > LONGEST:
        raise MessageError(f"a message of {len(text)} characters; at most {LONGEST} are read")
    try:
        told = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MessageError("a message that is no JSON") from error
    if not isinstance(told, dict) or not isinstance(told.get("type"), str) or told["type"] not in NUMBERS:
        raise MessageError(f"a message of no type; there are {', '.join(NUMBERS)}")
    for name, (low, high) in NUMBERS[told["type"]].items():
        told[name] = number(told.get(name), name, low, high)
    if told["type"] == "mode" and told.get("mode") not in MODES:
        raise MessageError(f"mode {told.get('mode')!r}; there are {', '.join(MODES)}")
    if told["type"] in ("dials", "start"):
        given = told.get("dials", {})
        if not isinstance(given, dict) or not set(given) <= set(DIALS):
            raise MessageError(f"dials are an object of {', '.join(DIALS)}")
        whole = {name: number(value, name, *DIALS[name]) for name, value in given.items()}
        told["dials"] = {k: v if k == "temperature" else int(v) for k, v in whole.items()}
    return told


def number(value: Any, name: str, low: float, high: float) -> float:
    """A number in a range.

    Raises:
      MessageError: it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MessageError(f"{name} is no number")
    if not low <= value <= high:
        raise MessageError(f"{name} is not between {low:g} and {high:g}")
    return value


def _refuse(text: str) -> None:
    raise ValueError(text)
