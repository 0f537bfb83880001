"""Which keys mean which of a world's actions, from their names alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORDS = {
    "left": "left",
    "right": "right",
    "up": "up",
    "forward": "up",
    "down": "down",
    "backward": "down",
    "fire": "fire",
    "attack": "fire",
    "jump": "fire",
    "use": "fire",
}
"""Words of names, and the direction or button that each stands for."""

VERBS = ("move", "turn", "go", "look", "step", "strafe")
"""Words that say nothing of where."""

WORD = re.compile("(?:" + "|".join([*WORDS, *VERBS]) + ")+")
"""One or more of them in one word, as emulators write it: ``rightfire``."""

SIDEWAYS = {"up": "right", "down": "left"}
"""Where nothing goes up or down: Pong's paddle goes up by ``right``, as the emulator has it."""


def held_for(names: Sequence[str]) -> list[list[str]]:
    """For each action what is held for it: some of ``left right up down fire``; nothing for the idle one.

    Whole words count, ``use`` but not ``pause``. ``rightfire`` holds right and fire,
    ``move_forward+turn_left`` up and left. An action whose name says nothing has no key, and neither has one
    whose keys an earlier action has: those are clicked.
    """
    found: list[list[str]] = []
    for name in names:
        words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
        parts = {part for word in words if WORD.fullmatch(word) for part in re.findall("|".join(WORDS), word)}
        held = sorted({WORDS[part] for part in parts})
        found.append([] if held in found else held)
    return found


def idle(names: Sequence[str], size: int) -> int:
    """The action that is taken while nothing is held."""
    for i, name in enumerate(names):
        if name.lower() in ("noop", "none", "idle", "nothing", "stay"):
            return i
    return 0 if size else -1


def aliases(names: Sequence[str]) -> dict[str, str]:
    """Further directions: where no action goes up or down, these go sideways."""
    held = {key for keys in held_for(names) for key in keys}
    return {} if held & set(SIDEWAYS) else {new: old for new, old in SIDEWAYS.items() if old in held}
