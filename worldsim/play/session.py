"""One person's stay in a world: a timeline of frames, a place on it, and steps in both directions.

    positions   -4 -3 -2 -1 | 0 .. 15 | 16 17 18 19 20
                 made, before  given    made, after    ^ the present

Going back walks over what is there, and from the first frame on the world makes what came before. Going on
from a place in the past drops what came after it; the way it had gone stays as a branch to return to.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from worldsim.generate.extend import World
from worldsim.generate.requests import Generated, null_actions
from worldsim.generate.simulate import Simulator, SimulatorState
from worldsim.play import closing
from worldsim.play.closing import Loop
from worldsim.types import Clip

MOST, STATES, BRANCHES = 1200, 24, 12
"""Frames, states and branches that are kept; the oldest go first."""

MEMORY = 512 * 2**20
"""Bytes of frames and states that a session may hold, in all branches; large worlds keep fewer."""

BEFORE, RENEW = 4, 64
"""Frames that are made at a time going back, and after how many they are begun anew from frames."""

LOOP, CANDIDATES, JUDGED = 32, 2, 96
"""Frames of a loop, how many are drawn, and last frames of the timeline that they are compared with."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """How a session draws; see :class:`worldsim.generate.options.Options`."""

    steps: int = 8
    temperature: float = 1.0
    refine_steps: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Moment:
    """A frame of the timeline.

    Attributes:
      position: counted from the first frame given.
      frame: uint8 ``[h w c]``.
      action: that led to it, or None.
      known: whether it was given.
    """

    position: int
    frame: np.ndarray
    action: Any
    known: bool


@dataclasses.dataclass(frozen=True)
class Branch:
    """A place to return to, with the timeline that led there."""

    number: int
    moments: tuple[Moment, ...]
    state: SimulatorState | None

    @property
    def last(self) -> Moment:
        """What it shows."""
        return self.moments[-1]


class Session:
    """All of one person's state; methods are called by one thread at a time.

    Attributes:
      dials: how it draws.
      branches: by number.
      present: the moment that is shown.
      looped: the loop that was made last, or None.
    """

    def __init__(self, world: World, clip: Clip, dials: Dials = Dials()) -> None:
        """Stand at the end of a clip.

        Raises:
          ValueError: a clip or dials that the world can't take.
        """
        self.world = world
        self._f = world.config.tokenizer.frames_per_chunk
        self._number = 0
        self.start(clip, dials)

    def start(self, clip: Clip, dials: Dials | None = None) -> Moment:
        """Begin anew, without branches."""
        dials = self.dials if dials is None else dials
        simulator, key = self._made(dials), jax.random.key(dials.seed)
        context = self.world.config.dynamics.context * self._f
        clip = clip[max(0, len(clip) - context) :]
        state = simulator.reset(clip, key)
        self._simulator, self.dials, self._key = simulator, dials, key
        self.branches: dict[int, Branch] = {}
        self.looped: Loop | None = None
        actions: Sequence[Any] = [None] * len(clip) if clip.actions is None else list(clip.actions)
        moments = [Moment(i, clip.frames[i], actions[i], known=True) for i in range(len(clip))]
        self._moments = collections.deque(moments)
        self._at = len(moments) - 1
        self._states = {self.present.position: state}
        least = context + self._before_count
        self._most, self._most_states = _room(self.present.frame, state, least=least)
        self._before: Generated | None = None
        return self.present

    def turn(self, dials: Dials) -> None:
        """Draw in another way, or by another seed, from here on.

        Raises:
          ValueError: dials that the world can't take; the old ones stay.
        """
        self._simulator = self._made(dials)
        self.dials, self._key, self._before = dials, jax.random.key(dials.seed), None

    def _made(self, dials: Dials) -> Simulator:
        how = {"temperature": dials.temperature, "refine_steps": dials.refine_steps}
        return Simulator(self.world, steps=dials.steps, **how)

    @property
    def present(self) -> Moment:
        """The moment that is shown."""
        return self._moments[self._at]

    @property
    def moments(self) -> list[Moment]:
        """The timeline up to the present."""
        return list(self._moments)[: self._at + 1]

    @property
    def span(self) -> tuple[int, int, int]:
        """First position, present, and last one."""
        return self._moments[0].position, self.present.position, self._moments[-1].position

    def step(self, action: Any = None) -> list[Moment]:
        """Go on under an action (None runs free): the new moments, a chunk of them."""
        if self._at + 1 < len(self._moments):
            self._leave()
        state = self._state()
        told = None if action is None else self._told(action)
        state, frames = self._simulator.step(state, told)
        first = self.present.position + 1
        new = [Moment(first + i, frame, action, known=False) for i, frame in enumerate(np.asarray(frames)[0])]
        self._moments.extend(new)
        while len(self._moments) > self._most:
            self._states.pop(self._moments.popleft().position, None)
            self._before = None
        self._at = len(self._moments) - 1
        self._keep(new[-1].position, state)
        return new

    def back(self) -> list[Moment]:
        """Go back by a frame, which is made where there is none: the moment that is now the present."""
        if self._at == 0:
            self._make_before()
        self._at -= 1
        return [self.present]

    def branch(self, *, keep: int | None = None) -> Branch:
        """Remember this place; of too many the oldest goes, but not the one to ``keep``."""
        self._number += 1
        branch = Branch(self._number, tuple(self.moments), self._states.get(self.present.position))
        self.branches[branch.number] = branch
        while len(self.branches) > BRANCHES:
            del self.branches[min(number for number in self.branches if number != keep)]
        for old in sorted(self.branches)[: -self._most_states]:  # these are read anew from their frames
            self.branches[old] = dataclasses.replace(self.branches[old], state=None)
        return branch

    def go(self, number: int) -> Moment:
        """Return to a branch; a timeline that no branch remembers becomes one.

        Raises:
          ValueError: there is none of this number.
        """
        if number not in self.branches:
            raise ValueError(f"no branch {number}; there are {sorted(self.branches)}")
        branch, last = self.branches[number], self._moments[-1]
        if not any(last is one.moments[-1] for one in self.branches.values()):
            self._at = len(self._moments) - 1
            self.branch(keep=number)
        self._moments = collections.deque(branch.moments)
        self._at = len(self._moments) - 1
        self._states = {} if branch.state is None else {self.present.position: branch.state}
        self._before = None
        return self.present

    def draw_loop(self, frames: int = LOOP, *, number: int = 0) -> Loop:
        """A loop that opens with the last frames as they were shown, and leads back from them to the first.

        Args:
          frames: of the loop.
          number: of the draw; each gives another way back.
        """
        how: dict[str, Any] = {"steps": self.dials.steps, "temperature": self.dials.temperature}
        how |= {"refine_steps": self.dials.refine_steps, "key": jax.random.fold_in(self._at_key(), number)}
        return closing.draw(self.world, self._recent(closing.seen(self.world, frames)), frames, **how)

    def keep_loop(self, drawn: Sequence[Loop]) -> Loop:
        """The best of some draws from the present, which is remembered as ``looped``."""
        play = np.stack([one.frame for one in self.moments[-JUDGED:]])
        self.looped = closing.best(drawn, play)
        return self.looped

    def clip(self) -> Clip:
        """The timeline up to the present."""
        moments = self.moments
        return Clip(
            np.stack([one.frame for one in moments]), self._actions(moments), fps=self.world.config.fps
        )

    def _told(self, action: Any) -> np.ndarray:
        """The action of a whole chunk, as the simulator reads it."""
        null = null_actions(self._f, self.world.config)
        if null is None:
            raise ValueError("this world takes no actions")
        row = np.asarray(action, null.dtype)
        if row.shape != null.shape[1:]:
            raise ValueError(f"an action has the shape {list(row.shape)}; give {list(null.shape[1:])}")
        return row[None] if self._f == 1 else np.broadcast_to(row, (1, *null.shape)).copy()

    def _actions(self, moments: Sequence[Moment]) -> np.ndarray | None:
        rows = null_actions(len(moments), self.world.config)
        for i, one in enumerate(moments):
            if rows is not None and one.action is not None:
                rows[i] = one.action
        return rows

    def _recent(self, most: int | None = None) -> Clip:
        """The last frames up to the present in whole chunks: what the world can see at once, or fewer.

        A timeline of less than a chunk stands still before its first frame.
        """
        moments, f = self.moments, self._f
        moments = moments[:1] * (f - len(moments)) + moments
        count = min(most or self.world.config.dynamics.context * f, len(moments) // f * f)
        moments = moments[-count:]
        return Clip(np.stack([one.frame for one in moments]), self._actions(moments))

    def _at_key(self) -> jax.Array:
        """A key of this place and the seed."""
        return jax.random.fold_in(self._key, self.present.position & 0x7FFFFFFF)

    def _state(self) -> SimulatorState:
        """Where the simulator stands at the present: as it stood, or read anew from the frames."""
        state = self._states.get(self.present.position)
        if state is None:
            return self._simulator.reset(self._recent(), self._key)
        return dataclasses.replace(state, keys=self._key[None])

    def _keep(self, position: int, state: SimulatorState) -> None:
        self._states[position] = state
        for old in sorted(self._states)[: max(0, len(self._states) - self._most_states)]:
            del self._states[old]

    def _leave(self) -> None:
        """Drop what comes after the present, and remember where it had led."""
        at, self._before = self._at, None
        self._at = len(self._moments) - 1
        self.branch()
        self._at = at
        while len(self._moments) > at + 1:
            gone = self._moments.pop()
            self._states.pop(gone.position, None)

    @property
    def _before_count(self) -> int:
        """How many frames are made at a time before the first one."""
        return -(-BEFORE // self._f) * self._f

    def _make_before(self) -> None:
        """Put frames that the world makes before the first one."""
        count = self._before_count
        how: dict[str, Any] = {"steps": self.dials.steps, "temperature": self.dials.temperature}
        how |= {"refine_steps": self.dials.refine_steps, "key": self._at_key()}
        start: Clip | Generated | None = self._before
        if start is None or len(start.codes) * self._f >= RENEW:
            whole = list(self._moments)[: self.world.config.dynamics.context * self._f]
            whole += whole[-1:] * (self._f - len(whole))  # of less than a chunk, the last frame stands still
            start = Clip(np.stack([one.frame for one in whole]), self._actions(whole))
        self._before = self.world.extend(start, count, direction="backward", **how)
        first = self._moments[0].position
        for i, frame in enumerate(self._before.clip.frames[:count][::-1], 1):
            self._moments.appendleft(Moment(first - i, frame, None, known=False))
        self._at += count
        while len(self._moments) > self._most:
            self._states.pop(self._moments.pop().position, None)


def _room(frame: np.ndarray, state: SimulatorState, *, least: int) -> tuple[int, int]:
    """Frames of a timeline and states that fit half of ``MEMORY`` each: timelines of all branches, and the
    states of the timeline beside those of branches; but ``least`` frames and one state in any case."""
    frames = MEMORY // 2 // (frame.nbytes * (BRANCHES + 1))
    states = MEMORY // 4 // sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return max(least, min(MOST, frames)), min(STATES, max(1, states))
