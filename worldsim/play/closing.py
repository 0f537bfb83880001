"""A loop of the last frames that were played: they as they were, and a way back that the world makes.

play     .. 20 21 22 23 24                           the last frames, up to the present
loop           21 22 23 24  a  b  c  d  e  (21 22)   a to e lie between 24 and 21, which the world knows
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from worldsim.generate.extend import World
from worldsim.generate.requests import ALIVE, null_actions
from worldsim.ops.faults import loop_faults
from worldsim.ops.scores import frame_differences, motion_ratio, peak_ratio
from worldsim.types import Clip

JUMP = 1.5
"""Times the largest step of the play from which on a step of a loop is a jump."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop.

    Attributes:
      clip: its frames; the first follow the last.
      shown: how many of them, from the first on, are the play's last.
      holds: whether its frames go on as the play does, over the seam too.
    """

    clip: Clip
    shown: int
    holds: bool = False


def seen(world: World, frames: int) -> int:
    """How many of the last frames of a play are in a loop of so many frames: what the world can see of them
    at once, and at most half of the loop."""
    f = world.config.tokenizer.frames_per_chunk
    return min(world.config.dynamics.context, max(2, frames // f) // 2) * f


def draw(world: World, recent: Clip, frames: int, **options: Any) -> Loop:
    """Lead from the last frame of a clip back to its first, in ``frames`` frames with the clip's own.

    Args:
      world: that makes the way back; it runs free there.
      recent: in whole chunks, fewer than ``frames`` frames.
      frames: of the loop; less what is no whole chunk.
      options: see :class:`worldsim.generate.options.Options`.
    """
    config = world.config
    f = config.tokenizer.frames_per_chunk
    count = min(config.dynamics.pinned, config.dynamics.context // 2) * f
    first = recent[:count]
    null = null_actions(1, config)
    if null is not None and first.actions is not None:  # what led to it then is not what leads to it now
        first = dataclasses.replace(first, actions=np.concatenate([null, first.actions[1:]]))
    total = max(2, frames // f) * f
    made = world.infill(recent, first, total - len(recent), **options)
    return Loop(Clip(made.clip.frames[:total], fps=config.fps), len(recent))


def best(loops: Sequence[Loop], play: Shaped[np.ndarray, "t h w c"]) -> Loop:
    """The one of the smallest jump, of those that hold if any does.

    Args:
      loops: of the same play.
      play: its last frames, more of them than are in the loops if there are more.
    """
    judged = [dataclasses.replace(one, holds=holds(one, play)) for one in loops]
    return min(judged, key=lambda one: (not one.holds, peak_ratio(one.clip.frames)))


def holds(loop: Loop, play: Shaped[np.ndarray, "t h w c"]) -> bool:
    """Whether a loop is none of the known fakes, jumps no further than the play does, and moves as it does.

    The share of motion is that of the way back alone. A play of one frame says nothing of either.
    """
    frames = loop.clip.frames
    if len(frames) >= 4 and loop_faults(frames, [play]):
        return False
    if len(play) < 2:
        return True
    ring = np.concatenate([frames, frames[:1]])
    jumps = frame_differences(ring).max() > JUMP * frame_differences(play).max()
    return bool(not jumps and motion_ratio(ring[loop.shown - 1 :], [play]) >= ALIVE)
