"""Rollouts without an end: pieces of video, one after another, in constant memory.

While a piece is drawn from its codes, the codes of the next one are being generated. The last chunks of a
piece wait for those after them, beside which they are drawn, so that a stream has the frames that
:meth:`worldsim.generate.extend.World.extend` would have made at once.

    codes    0 .. 15 | 16 .. 31 | 32 .. 47
    frames   0 .. 13 | 14 .. 29 | 30 .. 45, and at the end 46, 47
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from worldsim.generate import requests, rollout
from worldsim.generate.answer import detail_keys, take_in
from worldsim.generate.check import check_actions, chunk_count
from worldsim.generate.options import DIALS
from worldsim.generate.render import HALO, render
from worldsim.generate.rollout import Dials, RolloutState
from worldsim.plan import make_plan
from worldsim.types import Actions, Clip

if TYPE_CHECKING:
    from worldsim.generate.extend import World

PIECE = 16
"""Chunks that are generated, and drawn, at a time."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a stream stands between two pieces: enough to go on as if it had never stopped.

    Attributes:
      state: of the rollout, after all chunks in ``codes``.
      position: of the next chunk, counted from the first one seen.
      codes: ``[q h w]`` of the latest chunks in the order of generation: up to ``HALO`` that have been shown,
        beside which others are drawn, then those that have not.
      waiting: how many of them have not been shown.
      told: ``[r f ...]``, the actions of those that have not, or None.
      made: frames that have been shown.
      direction: of the stream.
      fps: of the clip that it began with, or None.
    """

    state: RolloutState
    position: int
    codes: Int[np.ndarray, "q h w"]
    waiting: int
    told: np.ndarray | None
    made: int
    direction: requests.Direction
    fps: float | None


class Stream(Iterator[Any]):
    """An iterator over the pieces of a rollout as they are made; a piece's frames are in the order of time.

    With ``render="codes"`` pieces are the codes ``[n h w]`` of chunks, in the order of time, else clips.

    :meth:`standing` may be asked between two pieces.
    """

    def __init__(
        self,
        world: World,
        standing: Standing,
        *,
        frames: int | None,
        actions: Actions | Callable[[int], Actions] | None,
        dials: Dials,
        conditions: Callable[[int], dict[str, np.ndarray]],
        draws: bool,
    ):
        """See :meth:`worldsim.generate.extend.World.rollout`; ``conditions`` gives rows for n chunks."""
        self.draws = draws
        self.world, self.frames, self.onward = world, frames, standing.direction == "forward"
        self._actions, self._dials, self._conditions = actions, dials, conditions
        self._now = standing
        self._ahead: tuple[RolloutState, Callable[[], np.ndarray], np.ndarray | None, int] | None = None

    @property
    def _size(self) -> int:
        return self.world.config.tokenizer.frames_per_chunk

    @property
    def made(self) -> int:
        """Frames that have been shown, those before a resumption included."""
        return self._now.made

    def _left(self, now: Standing) -> int:
        """Chunks that have yet to be generated, at most a piece of them."""
        if self.frames is None:
            return PIECE
        return min(PIECE, self.frames // self._size - now.made // self._size - now.waiting)

    def standing(self) -> Standing:
        """Where the stream stands, to be given to :meth:`World.rollout` in place of a clip."""
        self._catch_up()
        return dataclasses.replace(self._now, state=rollout.fork(self._now.state))

    def _catch_up(self) -> None:
        """Take in what has been generated ahead."""
        if self._ahead is None:
            return
        (state, read, told, count), self._ahead = self._ahead, None
        now, codes = self._now, read()[0]
        kept = np.concatenate([now.codes, codes])
        more = told if now.told is None else np.concatenate([now.told, told])  # type: ignore[list-item]
        step = count if self.onward else -count
        self._now = dataclasses.replace(
            now, state=state, position=now.position + step, codes=kept, waiting=now.waiting + count, told=more
        )

    def _begin(self) -> None:
        """Start to generate the next piece, if there is one."""
        now, count = self._now, self._left(self._now)
        if self._ahead is not None or count <= 0:
            return
        config, first = self.world.config, now.made // self._size + now.waiting
        step = np.arange(count) if self.onward else -np.arange(count)
        plan = make_plan(np.zeros(0, int), now.position + step, frames_per_chunk=self._size)
        told = self._told(first, count)
        blank = np.zeros((1, count, *config.tokenizer.grid), np.int32)
        state, read = rollout.dispatch(
            self.world.dynamics, now.state, plan, codes=blank, dials=self._dials,
            actions=None if told is None else told[None], conditions=self._conditions(count),
        )  # fmt: skip
        self._ahead = state, read, told, count

    def _told(self, first: int, count: int) -> np.ndarray | None:
        """Actions ``[count f ...]`` of new chunks, in the order of generation."""
        config, f = self.world.config, self._size
        if self._actions is None:
            return requests.by_chunk(None, count, config)
        if callable(self._actions):
            rows = np.stack([np.asarray(self._actions(i)) for i in range(first * f, (first + count) * f)])
            check_actions(rows, config, frames=count * f, verb="rollout")
        else:
            rows = np.asarray(self._actions)
            rows = rows if self.onward else rows[::-1]
            rows = rows[first * f : (first + count) * f]
        told = requests.by_chunk(rows, count, config)
        return told if told is None or self.onward else told[:, ::-1]

    def __next__(self) -> Clip | Int[np.ndarray, "n h w"]:
        self._begin()
        if self._now.waiting <= HALO:
            self._catch_up()
            self._begin()
        now, last = self._now, self._ahead is None
        ready = now.waiting if last else max(0, now.waiting - HALO)
        if not ready:
            raise StopIteration
        f, shown = self._size, len(now.codes) - now.waiting
        turn = slice(None) if self.onward else slice(None, None, -1)
        first = now.position - len(now.codes) if self.onward else now.position + len(now.codes)
        away = np.arange(len(now.codes)) * (1 if self.onward else -1)
        times = ((first + away) * f).astype(np.float32)
        rest = len(now.codes) - shown - ready
        only = slice(shown, shown + ready) if self.onward else slice(rest, rest + ready)
        if self.draws:
            drawn = render(
                self.world.renderer, now.codes[turn][None], times[turn],
                detail_keys(now.state.keys, self._dials), refine_steps=int(self._dials.refine), only=only,
            )[0]  # fmt: skip
        told = None if now.told is None else now.told[:ready]
        self._now = dataclasses.replace(
            now,
            codes=now.codes[max(0, shown + ready - HALO) :],
            waiting=now.waiting - ready,
            told=None if now.told is None else now.told[ready:],
            made=now.made + ready * f,
        )
        if not self.draws:
            return now.codes[turn][only]
        told = None if told is None else told[turn].reshape(ready * f, *told.shape[2:])
        return Clip(drawn, told, fps=now.fps or self.world.config.fps)


def stream(
    world: World,
    clip: Clip | Standing,
    frames: int | None,
    *,
    direction: requests.Direction | None,
    actions: Actions | Callable[[int], Actions] | None,
    options: dict[str, Any],
) -> Stream:
    """See :meth:`worldsim.generate.extend.World.rollout`."""
    config = world.config
    if frames is not None:
        frames = int(chunk_count(frames, config, verb="rollout") * config.tokenizer.frames_per_chunk)
    if actions is not None and not callable(actions):
        if frames is None:
            raise ValueError(
                "rollout: an array of actions for frames without end; give frames, or a function."
            )
        check_actions(actions, config, frames=frames, verb="rollout")
    if callable(actions) and config.dynamics.action.kind == "none":
        raise ValueError("rollout: the world takes no actions; leave them out.")
    dials = world.dials(**{name: options[name] for name in DIALS})
    rows = lambda count: world.condition_rows(options["conditions"], 1, count)
    if isinstance(clip, Standing):  # which may be gone on from again
        if options["sinks"]:
            raise ValueError("rollout: sinks for a stream that has begun; it keeps those that it has.")
        if direction not in (None, clip.direction):
            raise ValueError(f"rollout: direction {direction!r} from a stream that ran {clip.direction}.")
        clip = dataclasses.replace(clip, state=rollout.fork(clip.state))
    else:
        clip = _given(world, clip, direction=direction or "forward", dials=dials, options=options)
    done = clip.made + clip.waiting * config.tokenizer.frames_per_chunk
    if frames is not None and frames < done:
        raise ValueError(f"rollout: {frames} frames in all, and {done} have been made; ask for more.")
    draws = options["render"] != "codes"
    return Stream(world, clip, frames=frames, actions=actions, dials=dials, conditions=rows, draws=draws)


def _given(
    world: World, clip: Clip, *, direction: requests.Direction, dials: Dials, options: dict[str, Any]
) -> Standing:
    """Where a stream stands that has seen a clip and made nothing."""
    f = world.config.tokenizer.frames_per_chunk
    told = {"direction": direction, "sinks": options["sinks"], "verb": "rollout"}
    asked = requests.extend_request(clip, f, world.config, **told)
    how = {"keys": options["key"][None], "conditions": options["conditions"]}
    codes, state = take_in(world, [asked], dials, **how)
    position = int(asked.plan.times[codes.shape[1]] // f)
    return Standing(state, position, codes[0, -HALO:], 0, None, 0, direction, clip.fps)
