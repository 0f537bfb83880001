"""Attention as pictures: bars over chunks, shares by layer, and heat on the frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from worldsim.inspect.attention import Looked
from worldsim.inspect.findings import Bars, Section, Sheet, Table
from worldsim.types import Clip

HEAT, MARK = (255, 170, 40), (80, 170, 255)
"""Of what is looked at, and of the frame around the token that looks."""

_DRAWN, _NARROW = 8, 16
"""Chunks whose frames are drawn, those that are looked at most, and columns of a table of chunks."""


def attention_section(
    found: Looked, clip: Clip, *, layer: int | None = None, head: int | None = None
) -> tuple[Section, dict[str, Any]]:
    """What one token looks at, to be shown, and as JSON values.

    Args:
      found: of the clip.
      clip: whose frames are drawn.
      layer, head: of the bars and the heat; None is the mean over all.

    Raises:
      ValueError: a layer or head that there is not.
    """
    picked = found.chosen(layer, head)
    share = picked.sum(-1)
    own, names = found.own, [f"frame {at}" for at in found.frames]
    names[own] += ", its own"
    actions = float(picked[:, : found.lead].sum())
    heat = found.over_grid(picked)
    pairs = zip(found.frames, heat, strict=True)
    rows = np.stack([_warm(clip.frames[at], one, most=float(heat.max())) for at, one in pairs])
    rows[own] = _outlined(rows[own], found)
    columns = [f"{at}: {100 * part:.1f} %" for at, part in zip(found.frames, share, strict=True)]
    which = f"{_which('layer', layer)} and {_which('head', head)}"
    told = f", {100 * actions:.0f} % of it on tokens of actions" if found.lead else ""
    note = (
        f"Token {found.token[0]},{found.token[1]} of frame {found.frames[own]} (outlined; row and column of "
        f"a grid of {found.grid[0]} by {found.grid[1]}), while all codes of its chunk are still masked; "
        f"{which}{told}. The true codes there cost {found.nats:.2f} nats in this pass."
    )
    picks = np.sort(np.argsort(-share, kind="stable")[:_DRAWN])
    sheet = Sheet(
        [rows[picks]],
        ["attention"],
        columns=[columns[at] for at in picks],
        name="where it looks",
        side=128,
    )
    items = [Bars(names, share.tolist(), frozenset({own})), sheet, _parts(found, layer, head)]
    facts = {
        "token": list(found.token),
        "frame": int(found.frames[own]),
        "layer": layer,
        "head": head,
        "nats": found.nats,
        "on_actions": actions,
        "chunks": {str(at): float(part) for at, part in zip(found.frames, share, strict=True)},
        "weights": {str(at): one.tolist() for at, one in zip(found.frames, heat.round(6), strict=True)},
    }
    return Section("What a token looks at", items, note), facts


def _which(name: str, index: int | None) -> str:
    return f"mean over {name}s" if index is None else f"{name} {index}"


def _parts(found: Looked, layer: int | None, head: int | None) -> Table:
    """Shares of chunks in every layer, or in every head of one; of the nearest where they are many."""
    layers, heads = found.weights.shape[:2]
    if layer is None:
        parts = {f"layer {at}": found.chosen(at, head) for at in range(layers)}
    else:
        parts = {f"layer {layer}, head {at}": found.chosen(layer, at) for at in range(heads)}
    each = np.stack([part.sum(-1) for part in parts.values()])
    near = slice(max(0, found.own - _NARROW + 1), None if found.own >= _NARROW else _NARROW)
    names, each = [str(at) for at in found.frames][near], each[:, near]
    rows = [[name, *map(float, row)] for name, row in zip(parts, each, strict=True)]
    return Table(["% on frame", *names], rows, shade=True)


def _warm(
    frame: UInt8[np.ndarray, "h w c"], heat: Float[np.ndarray, "rows columns"], *, most: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The frame in grey, and the brighter in colour the more it is looked at."""
    grey = frame.astype(float).mean(-1, keepdims=True) * 0.8
    up = np.repeat(np.repeat(heat, frame.shape[0] // heat.shape[0], 0), frame.shape[1] // heat.shape[1], 1)
    share = np.sqrt(up / max(most, 1e-12))[..., None] * 0.9
    return np.round((1 - share) * grey + share * np.array(HEAT)).astype(np.uint8)


def _outlined(frame: UInt8[np.ndarray, "h w 3"], found: Looked) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with a line around the token."""
    out = frame.copy()
    high, wide = frame.shape[0] // found.grid[0], frame.shape[1] // found.grid[1]
    top, left = found.token[0] * high, found.token[1] * wide
    rows, columns = slice(top, top + high), slice(left, left + wide)
    out[[top, top + high - 1], columns] = MARK
    out[rows, left] = out[rows, left + wide - 1] = MARK
    return out
