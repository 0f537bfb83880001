"""The sprites' state read from frames: of each colour its shape, its place and how much of it shows.

A sprite of one colour is looked for at all places in all shapes. A candidate explains the pixels of its
colour that it covers; what speaks against it are pixels of its colour that it leaves out and pixels of its
stencil that show the background. Pixels of its stencil in other colours may be sprites above it::

    a a a b b       square a at (0, 0), partly under b: nothing speaks against it
    a a a b b       a frame a at (0, 0): its hole shows a, a pixel left out
    a a a b b
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from worldsim.data.sprites import BACKGROUND, COLORS, SHAPES, SpriteConfig, stencil

FEWEST = 3
"""Pixels of a colour that make a sprite; fewer are noise, or a sprite that hides."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What frames show of each colour; v colours.

    Attributes:
      seen: whether there is a sprite of the colour.
      place: its corner (x, y), NaN where not seen.
      shape: index of its shape, -1 where not seen.
      visible: share of its pixels that show, 0 where not seen.
      certain: whether one shape at one place explains the pixels best.
    """

    seen: Bool[np.ndarray, "*t v"]
    place: Float[np.ndarray, "*t v 2"]
    shape: Int[np.ndarray, "*t v"]
    visible: Float[np.ndarray, "*t v"]
    certain: Bool[np.ndarray, "*t v"]

    def __getitem__(self, index) -> Reading:
        """The reading of some of the frames."""
        return Reading(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def palette(frames: UInt8[np.ndarray, "*t h w 3"]) -> Int[np.ndarray, "*t h w"]:
    """The nearest colour of each pixel; the number after the last colour is the background."""
    known = np.concatenate([COLORS, BACKGROUND[None]]).astype(np.int32)
    pixels = frames.astype(np.int32)
    best, index = np.full(frames.shape[:-1], 2**30), np.zeros(frames.shape[:-1], np.int64)
    for i, color in enumerate(known):
        far = np.square(pixels - color).sum(-1)
        index, best = np.where(far < best, i, index), np.minimum(far, best)
    return index


def read_sprites(frames: UInt8[np.ndarray, "t h w 3"], config: SpriteConfig) -> Reading:
    """Read every colour of every frame.

    Args:
      frames: of the world of sprites, real or generated.
      config: its size and the sprites' side; how many sprites there are is not used.
    """
    colors, side = palette(frames), config.side
    count, total = len(frames), len(COLORS)
    shapes = np.stack([stencil(i, side) for i in range(len(SHAPES))]).astype(np.float32)
    area = shapes.sum((1, 2))
    bare = _covered(colors == total, shapes)
    out = Reading(
        np.zeros((count, total), bool),
        np.full((count, total, 2), np.nan),
        np.full((count, total), -1),
        np.zeros((count, total)),
        np.zeros((count, total), bool),
    )
    for color in range(total):
        mask = colors == color
        some = np.flatnonzero(mask.sum((1, 2)) >= FEWEST)
        if not len(some):
            continue
        inside = _covered(mask[some], shapes)
        outside = mask[some].sum((1, 2))[:, None, None, None] - inside
        against = (outside + bare[some]).reshape(len(some), -1)
        best = against.argmin(1)
        shape, y, x = np.unravel_index(best, inside.shape[1:])
        shown = inside.reshape(len(some), -1)[np.arange(len(some)), best]
        good = (shown >= FEWEST) & (against.min(1) <= shown)
        out.seen[some, color] = good
        out.place[some, color] = np.where(good[:, None], np.stack([x, y], -1), np.nan)
        out.shape[some, color] = np.where(good, shape, -1)
        out.visible[some, color] = np.where(good, shown / area[shape], 0)
        rivals = (against <= against.min(1, keepdims=True)).sum(1)
        out.certain[some, color] = good & (rivals == 1)
    return out


def _covered(
    mask: Bool[np.ndarray, "t h w"], shapes: Float[np.ndarray, "m side side"]
) -> Float[np.ndarray, "t m y x"]:
    """How many of a mask's pixels each shape covers with its corner at each place."""
    side, mask = shapes.shape[1], mask.astype(np.float32)
    height, width = mask.shape[1] - side + 1, mask.shape[2] - side + 1
    out = np.zeros((len(mask), len(shapes), height, width), np.float32)
    for dy in range(side):
        for dx in range(side):
            part = mask[:, dy : dy + height, dx : dx + width]
            for i in np.flatnonzero(shapes[:, dy, dx]):
                out[:, i] += part
    return out
