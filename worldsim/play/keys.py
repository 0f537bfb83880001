"""Which keys mean which of a world's actions, from their names alone."""

from __future__ import annotations

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
"""What a name may hold, and the direction or button that it stands for."""

SIDEWAYS = {"up": "right", "down": "left"}
"""Where nothing goes up or down: Pong's paddle goes up by ``right``, as the emulator has it."""


def held_for(names: Sequence[str]) -> list[list[str]]:
    """For each action what is held for it: some of ``left right up down fire``; nothing for the idle one.

    ``rightfire`` holds right and fire, ``move_forward+turn_left`` up and left. An action whose name says
    nothing has no key, and neither has one whose keys an earlier action has: those are clicked.
    """
    found: list[list[str]] = []
    for name in names:
        held = sorted({key for word, key in WORDS.items() if word in name.lower()})
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
