"""The recall world: a colour is shown once beside a glyph and asked for later, at every distance.

A frame is four cells of ``cell x cell`` pixels: a glyph at the top left, a colour at the bottom right,
nothing elsewhere, and nothing at all in most frames. Each glyph of an episode has a colour and is seen three
times:

    frame     ..  12 ..  80  81 ..
    event        cue    ask  answer           distance 69: from the cue to the answer
    glyph         A      A    A
    colour       red     ?   red              ``?`` is grey

Cues and questions come at random; the answer is certain to whoever remembers the cue and a guess among the
colours to anybody else. No colour is shown a third time before its answer, and other glyphs come in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8

from worldsim.data.episode import Episode
from worldsim.data.sprites import BACKGROUND

COLORS = np.array(
    [
        [230, 60, 60], [70, 190, 90], [80, 130, 250], [240, 200, 60], [200, 90, 220], [240, 140, 40],
        [60, 210, 220], [250, 170, 190],
    ],
    np.uint8,
)  # fmt: skip
INK, ASKED = np.array([240, 240, 240], np.uint8), np.array([120, 120, 120], np.uint8)
GLYPHS = 30
"""The Walsh patterns of sixteen pixels, upright and inverted, any two of which differ in eight or more."""
NOTHING, CUE, ASK, ANSWER = range(4)
NEAREST = 2
"""Frames from a cue to an answer at least: the question lies between them."""


@dataclasses.dataclass(frozen=True)
class RecallConfig:
    """A recall world.

    Attributes:
      length: frames of the longest episodes; in any, a colour shown at its start is asked for at its end.
      pairs: colours shown and asked for in those, each beside another glyph; shorter ones have their share.
      shortest: frames of the shortest episodes. An eighth of them is of full length; of the others, there are
        as many frames in those from 12 to 24 frames as from 24 to 48, and so on: to look a colour up is
        learnt among few, and packing fills the rows.
      cell: pixels along each side of a cell, a multiple of 4.
    """

    length: int = 288
    pairs: int = 24
    shortest: int = 12
    cell: int = 4

    def __post_init__(self) -> None:
        most = min(GLYPHS, self.length // 6)
        if not 1 <= self.pairs <= most:
            raise ValueError(
                f"RecallConfig: {self.pairs} pairs in {self.length} frames; take from 1 to {GLYPHS} pairs "
                "and 6 frames or more for each."
            )
        if not 2 * NEAREST < self.shortest <= self.length:
            raise ValueError(
                f"RecallConfig: shortest {self.shortest}; take from {2 * NEAREST + 1} to the length "
                f"{self.length}."
            )
        if self.cell < 4 or self.cell % 4:
            raise ValueError(f"RecallConfig: cells of {self.cell} pixels; take a multiple of 4.")

    @property
    def size(self) -> int:
        """Height and width of a frame."""
        return 2 * self.cell


@dataclasses.dataclass(frozen=True)
class Script:
    """What an episode shows, frame by frame.

    Attributes:
      event: ``[t]``: nothing, cue, ask or answer.
      glyph, color: ``[t]``, -1 where there is none; ``color`` of a question is the one asked for.
      cue_time, ask_time: ``[t]``, the frames in which its colour was shown and is asked for; -1 as above.
    """

    event: Int[np.ndarray, "t"]
    glyph: Int[np.ndarray, "t"]
    color: Int[np.ndarray, "t"]
    cue_time: Int[np.ndarray, "t"]
    ask_time: Int[np.ndarray, "t"]


def write_script(config: RecallConfig, rng: np.random.Generator) -> Script:
    """Draw an episode: one pair spans it, the others lie where there is room.

    Half of the distances are uniform and half of them log-uniform, so that near and far questions are common.
    """
    length = config.length
    if rng.random() > 1 / 8:
        length = round(1 / rng.uniform(1 / config.length, 1 / config.shortest))
    rows = {field.name: np.full(length, -1, np.int32) for field in dataclasses.fields(Script)}
    rows["event"][:] = NOTHING
    glyphs = rng.permutation(GLYPHS)[: max(1, config.pairs * length // config.length)]
    for number, glyph in enumerate(glyphs):
        free = rows["event"] == NOTHING
        cue, distance = (0, length - 1) if number == 0 else _room(free, rng)
        times = cue, cue + distance - 1, cue + distance
        color = rng.integers(len(COLORS))
        for event, time in zip((CUE, ASK, ANSWER), times, strict=True):
            told = {"event": event, "glyph": glyph, "color": color, "cue_time": cue, "ask_time": times[1]}
            for name, value in told.items():
                rows[name][time] = value
    return Script(**rows)


def _room(free: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A frame for a cue and a distance to its answer, with free frames for both and the question."""
    longest = len(free) - 1
    while True:
        near = np.exp(rng.uniform(np.log(NEAREST), np.log(longest + 1)))
        distance = int(near if rng.random() < 0.5 else rng.integers(NEAREST, longest + 1))
        starts = free[: len(free) - distance] & free[distance - 1 : -1] & free[distance:]
        if starts.any():
            return int(rng.choice(np.flatnonzero(starts))), distance


def pattern(glyph: int, cell: int) -> np.ndarray:
    """The pixels of a glyph: where row 1 to 15 of a Walsh matrix is odd, or from 15 on where it is even."""
    row, inverted = glyph % 15 + 1, glyph // 15
    odd = np.array([(row & pixel).bit_count() % 2 for pixel in range(16)]).reshape(4, 4)
    return np.kron(odd ^ inverted, np.ones((cell // 4, cell // 4), int)).astype(bool)


def draw(config: RecallConfig, script: Script) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of an episode."""
    cell, size = config.cell, config.size
    frames = np.empty((len(script.event), size, size, 3), np.uint8)
    frames[:] = BACKGROUND
    for time in np.flatnonzero(script.event != NOTHING):
        frames[time, :cell, :cell][pattern(int(script.glyph[time]), cell)] = INK
        asked = script.event[time] == ASK
        frames[time, cell:, cell:] = ASKED if asked else COLORS[script.color[time]]
    return frames


def episodes(config: RecallConfig, *, count: int, seed: int) -> Iterator[Episode]:
    """Episodes without actions, with what :class:`Script` says of each frame."""
    for index in range(count):
        key = seed * 1_000_003 + index
        script = write_script(config, np.random.default_rng(key))
        truth = {field.name: getattr(script, field.name) for field in dataclasses.fields(script)}
        yield Episode(draw(config, script), None, truth, seed=key, policy="script")
