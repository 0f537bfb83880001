"""What the world answers: held-out windows continued, preceded, filled, closed, and steered wrongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from worldsim.evaluate.held_out import HeldOut
from worldsim.generate.extend import World
from worldsim.generate.requests import Request, extend_request, infill_request, loop_request
from worldsim.generate.rollout import Dials
from worldsim.parallel.shares import in_shares
from worldsim.types import Clip

GAPS, LOOP, STEERED = (4, 16), 32, 16
"""Frames of the gaps to fill, of a loop, and made under wrong actions."""

Ask = Callable[[Clip], Request]


@dataclasses.dataclass(frozen=True)
class Answer:
    """Frames that a world made, beside the truth and the nearest known frame.

    All are counted from the known end: frame 0 of a backward answer is the one just before the known frames.

    Attributes:
      frames: ``[s n h H W c]``, s samples of n clips.
      truth, copy: ``[n h H W c]``.
      first: index in the window of what frame 0 stands for.
      step: 1 where counting goes with time, -1 where it goes against it.
    """

    frames: UInt8[np.ndarray, "s n h H W c"]
    truth: UInt8[np.ndarray, "n h H W c"]
    copy: UInt8[np.ndarray, "n h H W c"]
    first: int
    step: int = 1

    def of(self, rows: np.ndarray) -> np.ndarray:
        """What ``rows [n t ...]`` say of the answer's frames: ``[n h ...]`` in the same count."""
        stop = self.first + self.step * self.truth.shape[1]
        return rows[:, self.first : None if stop < 0 else stop : self.step]


@dataclasses.dataclass(frozen=True)
class Played:
    """All answers.

    Attributes:
      answers: by verb: ``forward``, ``backward``, ``infill_16`` and so on.
      loops: ``[n l H W c]``, or None where the horizon is too short for one.
      opening: given frames of a loop.
      steered: ``[n h H W c]``, the first sample of ``forward`` under wrong actions; None without actions.
    """

    answers: dict[str, Answer]
    loops: UInt8[np.ndarray, "n l H W c"] | None
    opening: int
    steered: UInt8[np.ndarray, "n h2 H W c"] | None


def play(
    world: World,
    held: HeldOut,
    dials: Dials,
    *,
    samples: int,
    seed: int,
    note: Callable[[str], None],
    sinks: int = 0,
) -> Played:
    """Every verb on every window, in batches of one size, so that one program serves them all.

    ``sinks`` are of what goes on forward and backward.
    The windows are spread over all processes, and every process gets all answers.
    """
    root, clips = jax.random.key(seed), [held.clip(i) for i in range(len(held))]

    def run(name: str, number: int, requests: Sequence[Request], cut: slice, sample: int = 0) -> np.ndarray:
        """The frames ``[n h H W c]`` at some places of the answers."""
        note(f"{name}, {len(requests)} clips")
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(root, number), sample), len(requests))

        def some(rows: np.ndarray) -> np.ndarray:
            made = world.run([requests[i] for i in rows], dials, keys=keys[rows])
            return np.stack([one.clip.frames[cut] for one in made])

        return in_shares(len(requests), some)

    answers: dict[str, Answer] = {}
    for number, (name, (ask, first, count)) in enumerate(_verbs(held, world, sinks).items()):
        requests = [ask(clip) for clip in clips]
        step, low = (-1, 0) if name == "backward" else (1, first)
        cut = slice(low, low + count)
        made = [run(f"{name} {s + 1}/{samples}", number, requests, cut, s) for s in range(samples)]
        frames = np.stack(made)[:, :, ::step]
        truth, copy = copies(held.frames, first, count, step, gap=name.startswith("infill"))
        answers[name] = Answer(frames, truth, copy, first, step)
    steered = None
    if held.actions is not None:
        count = _whole(min(STEERED, held.horizon), world)
        requests = _steered_requests(held, clips, world, count, seed=seed, sinks=sinks)
        steered = run("wrong actions", 0, requests, slice(held.known, None))
    loops, length = None, _whole(min(LOOP, held.known + held.horizon), world)
    opening = min(held.known, _pins(world))
    if length > opening:
        requests = [loop_request(clip[: held.known], length, world.config) for clip in clips]
        loops = run("loop", len(answers), requests, slice(None))
    return Played(answers, loops, opening, steered)


def copies(
    frames: UInt8[np.ndarray, "n t H W c"], first: int, count: int, step: int, *, gap: bool = False
) -> tuple[UInt8[np.ndarray, "n h H W c"], UInt8[np.ndarray, "n h H W c"]]:
    """Truth of ``count`` frames from ``first`` on in steps of ``step``, and the nearest known frame.

    Forward, the known frames end just before ``first``; backward, they begin just after it. Of a gap, the
    second half has the first frame after it as the nearest::

        known .. k | k k a a | a .. known after
    """
    stop = first + step * count
    truth = frames[:, first : None if stop < 0 else stop : step]
    near = np.repeat(frames[:, first - step][:, None], count, axis=1)
    if gap:
        near[:, count - count // 2 :] = frames[:, stop][:, None]
    return truth, near


def _whole(frames: int, world: World) -> int:
    """Frames in whole chunks, one at least."""
    f = world.config.tokenizer.frames_per_chunk
    return max(f, frames // f * f)


def _pins(world: World) -> int:
    """Most frames that a loop opens with."""
    dynamics = world.config.dynamics
    return min(dynamics.pinned, dynamics.context // 2) * world.config.tokenizer.frames_per_chunk


def _verbs(held: HeldOut, world: World, sinks: int) -> dict[str, tuple[Ask, int, int]]:
    """Per verb what is asked of a clip, the window's index of the first answer, and their number."""
    config, known, horizon = world.config, held.known, held.horizon
    f, total = config.tokenizer.frames_per_chunk, known + horizon

    def actions(clip: Clip, start: int, stop: int) -> Any:
        return None if clip.actions is None else clip.actions[start:stop]

    def gap(size: int) -> Ask:
        return lambda c: infill_request(
            c[:known], c[known + size :], size, config, actions=actions(c, known, known + size)
        )

    def onward(clip: Clip) -> Request:
        told = actions(clip, known, total)
        return extend_request(clip[:known], horizon, config, actions=told, sinks=sinks)

    def back(clip: Clip) -> Request:
        told = {"direction": "backward", "actions": actions(clip, 0, horizon), "sinks": sinks}
        return extend_request(clip[horizon:], horizon, config, **told)

    verbs: dict[str, tuple[Ask, int, int]]
    verbs = {"forward": (onward, known, horizon), "backward": (back, horizon - 1, horizon)}
    for size in sorted({_whole(size, world) for size in GAPS}):
        if size + f <= horizon:
            verbs[f"infill_{size}"] = (gap(size), known, size)
    return verbs


def _steered_requests(
    held: HeldOut, clips: Sequence[Clip], world: World, count: int, *, seed: int, sinks: int
) -> list[Request]:
    """Forward from the same frames under another clip's actions, in another order."""
    rng, known, requests = np.random.default_rng(seed), held.known, []
    for i, clip in enumerate(clips):
        other = clips[(i + len(clips) // 2) % len(clips)].actions
        wrong = rng.permutation(np.asarray(other)[known : known + held.horizon])[:count]
        told = {"actions": wrong, "sinks": sinks}
        requests.append(extend_request(clip[:known], count, world.config, **told))
    return requests
