"""Worlds that come with the package, and the held-out clips beside them."""

from __future__ import annotations

import numpy as np

from worldsim.checkpoint import bundled_worlds
from worldsim.types import Clip


def clips(name: str) -> list[Clip]:
    """The held-out clips that are bundled with a world, with their actions.

    Args:
      name: of a bundled world, such as ``pong``.

    Raises:
      FileNotFoundError: no such world; the bundled names are listed.
    """
    found = bundled_worlds()
    if name not in found or not (found[name] / "clips.npz").is_file():
        raise FileNotFoundError(f"No clips are bundled with {name!r}; worlds: {', '.join(found) or 'none'}.")
    with np.load(found[name] / "clips.npz", allow_pickle=False) as stored:
        actions = stored["actions"] if "actions" in stored else [None] * len(stored["frames"])
        fps = float(stored["fps"])
        return [Clip(rows, given, fps=fps) for rows, given in zip(stored["frames"], actions, strict=True)]
