"""What travels between the layers: the Clip, array aliases and the dimension key.

Dimension key, used in every shape annotation of the package:

    b batch   t frames   h w c pixels or grid   n tokens   m tokens attended to   d width
    k heads   e head width   v codebook size   a action size   l layers   p chunks in a plan
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt8

Frames = UInt8[np.ndarray, "t h w c"]
"""Video as people store it: uint8 RGB, 0 to 255."""

Codes = Int[Array, "b p h w"]
"""Integers in [0, v): one grid per chunk."""

Actions = Shaped[np.ndarray, "t *a"]
"""Per frame: ``actions[t]`` leads from frame t-1 to frame t; integers ``[t]`` or floats ``[t a]``."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """A piece of video on the host, with the actions that led to its frames.

    Attributes:
      frames: uint8 ``[t h w c]``, RGB 0 to 255.
      actions: int32 ``[t]`` (discrete) or float32 ``[t a]`` (continuous), or None. ``actions[i]``
        leads from frame i-1 to frame i; that of a clip's first frame may be null (-1 or NaN).
      mask: bool ``[t]``, False where a frame is padding, or None when all are real.
      fps: frames per second for display, or None.
    """

    frames: Frames
    actions: Actions | None = None
    mask: Bool[np.ndarray, "t"] | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        frames = self.frames
        if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[-1] not in (1, 3):
            raise ValueError(
                "Clip.frames must be uint8 [t, height, width, 1 or 3]; got "
                f"{frames.dtype} {list(frames.shape)}. Scale floats by 255 and add a frame axis."
            )
        for name, rows in (("actions", self.actions), ("mask", self.mask)):
            if rows is not None and len(rows) != len(frames):
                raise ValueError(
                    f"Clip.{name} has {len(rows)} rows for {len(frames)} frames; give one row a frame."
                )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: slice) -> Clip:
        """The frames of a slice, with their actions and mask."""
        if not isinstance(index, slice):
            raise TypeError(f"Clip takes a slice, such as clip[:8]; got {type(index).__name__}.")
        return Clip(
            self.frames[index],
            None if self.actions is None else self.actions[index],
            None if self.mask is None else self.mask[index],
            self.fps,
        )
