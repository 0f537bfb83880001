"""Whether a long rollout stays alive: what needs no truth, stretch by stretch, and when it is over.

Truth ends with the held-out episode, and past a few dozen frames a good world has parted from it anyway. What
can still be judged is whether its frames look and move as real ones do, and whether the readers of a known
game find in them what must be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from worldsim.data.sprites import SpriteConfig
from worldsim.evaluate import pong, sprite_laws
from worldsim.evaluate.features import PIECE, SIZE, frechet, make_network, pieces, spread
from worldsim.evaluate.held_out import HeldOut
from worldsim.evaluate.pictures import high_energy
from worldsim.evaluate.sprites import read_sprites
from worldsim.generate.extend import World
from worldsim.generate.requests import extend_request
from worldsim.generate.rollout import Dials
from worldsim.ops.scores import frame_differences
from worldsim.parallel.shares import in_shares

FAR = 128
"""A horizon from which on rollouts are judged for drift; shorter ones are where episodes end before them."""

EVERY = 2
"""Frames from one judged piece to the next."""

LAST = 200
"""Frames at the end of a rollout that are judged apart, where they are half of it at most."""

BEYOND, STILL = 0.99, 0.5
"""A piece is off when it is farther from real play than this share of real pieces are, or when no step after
it is as large as this share of the largest one in the stillest real stretch."""

WINDOW, LEAST = 32, 8
"""A rollout is over at a piece that is off when most pieces of so many frames from it on are; at its end of
as many as there are, but not of fewer than the second."""

Frames = UInt8[np.ndarray, "n t H W c"]


def actions_for(held: HeldOut, frames: int) -> Shaped[np.ndarray, "n t *a"] | None:
    """Actions for so many new frames: the window's own, then those of the windows after it, over and over."""
    if held.actions is None:
        return None
    own = np.asarray(held.actions)[:, held.known :]
    turns = -(-frames // own.shape[1])
    rows = [np.concatenate([own[(i + j) % len(own)] for j in range(turns)]) for i in range(len(own))]
    return np.stack(rows)[:, :frames]


def play_far(
    world: World,
    held: HeldOut,
    dials: Dials,
    *,
    frames: int,
    seed: int,
    note: Callable[[str], None],
    sinks: int = 0,
) -> Frames:
    """New frames ``[n frames H W c]`` after each window's known ones, spread over all processes."""
    f = world.config.tokenizer.frames_per_chunk
    whole = -(-frames // f) * f
    actions = actions_for(held, whole)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), frames), len(held))
    note(f"{frames} frames onward, {len(held)} clips")

    def some(rows: np.ndarray) -> np.ndarray:
        told = [None if actions is None else actions[i] for i in rows]
        known = [held.clip(int(i))[: held.known] for i in rows]
        requests = [
            extend_request(k, whole, world.config, actions=a, sinks=sinks)
            for k, a in zip(known, told, strict=True)
        ]
        made = world.run(requests, dials, keys=keys[rows])
        return np.stack([one.clip.frames[held.known : held.known + frames] for one in made])

    return in_shares(len(held), some)


def stretches(frames: int) -> Iterator[tuple[int, int]]:
    """``0-1, 1-2, 2-4, 4-8, ...``, the last one cut."""
    start, stop = 0, 1
    while start < frames:
        yield start, min(stop, frames)
        start, stop = stop, 2 * stop


def drift(made: Frames, held: HeldOut) -> dict[str, Any]:
    """Figures of long rollouts.

    Args:
      made: generated frames after the known ones of each window.
      held: the windows.

    Returns:
      ``stretches``: per stretch of the horizon (``1``, ``2``, ``3-4``, ``5-8``, ...) ``frechet`` from other
      real play in units of its spread, ``floor`` (as many real pieces in their place), ``motion`` and
      ``sharpness`` over those of real play, and what the game's reader finds. ``first_quarter`` and
      ``last_quarter``: the same of these. ``over``: per rollout the frames until it no longer looks or moves
      like real play for a while, with the horizon for those that always do; ``collapse``, their median,
      and ``alive``, the share that lasts. Of sprites, ``survival`` and ``survives`` say it of
      what is possible.
    """
    frames = made.shape[1]
    judge = _Judge(held)
    over = np.array([_over(row, frames) for row in judge.off(made)])
    quarter = max(1, frames // 4)
    name = lambda start, stop: str(stop) if stop == start + 1 else f"{start + 1}-{stop}"
    parts = {name(*part): part for part in stretches(frames)}
    known = held.frames[:, : held.known]
    figures = lambda start, stop: judge.look(made[:, start:stop]) | _found(made[:, start:stop], held)
    out = {
        "frames": frames,
        "stretches": {name: figures(*part) for name, part in parts.items()},
        "first_quarter": figures(0, quarter),
        "last_quarter": figures(frames - quarter, frames),
        **({f"last_{LAST}": figures(frames - LAST, frames)} if frames >= 2 * LAST else {}),
        "copy": judge.look(np.repeat(known[:, -1:], 2 * PIECE, axis=1)),
        "repeat": judge.look(np.concatenate([known, known], axis=1)),
        "over": over,
        "collapse": float(np.median(over)),
        "alive": float((over == frames).mean()),
    }
    if held.game == "sprites":
        lives = np.array(_lives(made, held))
        out |= {"survival": float(np.median(lives)), "survives": float((lives == frames).mean())}
    return out


def _over(off: Bool[np.ndarray, "m"], frames: int) -> int:
    """The frame of the first piece that is off as most after it are; ``frames`` where there is none."""
    for piece in np.flatnonzero(off):
        after = off[piece : piece + WINDOW // EVERY]
        if len(after) >= min(len(off), LEAST // EVERY) and after.mean() > 0.5:
            return int(piece) * EVERY
    return frames


def _moves(clip: UInt8[np.ndarray, "t H W c"]) -> Float[np.ndarray, "m"]:
    """The largest step in the ``WINDOW`` frames from each piece on, in as many as there are at the end."""
    steps = frame_differences(clip)
    starts = range(0, len(clip) - PIECE + 1, EVERY)
    return np.array([steps[start : start + WINDOW].max() for start in starts])


class _Judge:
    """Knows real play."""

    def __init__(self, held: HeldOut) -> None:
        self._network = make_network(held.frames.shape[-1])
        others, mine = self._features(held.others), self._features(held.frames)
        self._reference, self._truth = others.reshape(-1, SIZE), mine.reshape(-1, SIZE)
        same = np.array_equal(held.others, held.frames)  # there is no other play: a window has the rest of it
        rest = [
            np.delete(others, i, 0).reshape(-1, SIZE) if same else self._reference for i in range(len(mine))
        ]
        far = [self._distance(one, to) for one, to in zip(mine, rest, strict=True)]
        self._limit = float(np.quantile(np.concatenate(far), BEYOND)) if mine.size else np.inf
        moves = [_moves(clip)[: max(1, (len(clip) - WINDOW) // EVERY)] for clip in held.others]
        self._still = STILL * min((float(row.min()) for row in moves if len(row)), default=0.0)
        self._motion = max(1e-12, float(np.mean([frame_differences(clip).mean() for clip in held.others])))
        self._energy = max(1e-12, high_energy(held.others))

    def _features(self, frames: Frames) -> Float[np.ndarray, "n m d"]:
        """Of the pieces of each clip."""
        count = len(range(0, frames.shape[1] - PIECE + 1, EVERY))
        rows = [self._network(pieces(clip[None], every=EVERY))[0] for clip in frames] if count else []
        return np.stack(rows) if rows else np.zeros((len(frames), 0, SIZE), np.float32)

    @staticmethod
    def _distance(features: Float[np.ndarray, "m d"], to: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "m"]:
        """To the nearest of other pieces."""
        near = np.zeros(len(features))
        for i in range(0, len(features), 64):
            near[i : i + 64] = np.linalg.norm(features[i : i + 64, None] - to, axis=-1).min(1)
        return near

    def off(self, made: Frames) -> Bool[np.ndarray, "n m"]:
        """Per rollout and piece, whether it is farther from real play than real play is, or stands still."""
        far = np.stack([self._distance(row, self._reference) for row in self._features(made)]) > self._limit
        return far | (np.stack([_moves(clip) for clip in made]).reshape(far.shape) < self._still)

    def look(self, made: Frames) -> dict[str, Any]:
        """How the frames of a stretch look and move."""
        out: dict[str, Any] = {
            "motion": float(np.mean([frame_differences(clip).mean() for clip in made])) / self._motion
            if made.shape[1] > 1
            else None,
            "sharpness": high_energy(made) / self._energy,
        }
        rows = self._features(made).reshape(-1, SIZE)
        count = min(len(rows), len(self._truth))
        if count > 1:
            unit = spread(self._reference)
            some = lambda of: of[np.linspace(0, len(of) - 1, count).round().astype(int)]
            out["frechet"] = frechet(some(rows), self._reference) / unit
            out["floor"] = frechet(some(self._truth), self._reference) / unit
        return out


def _found(made: Frames, held: HeldOut) -> dict[str, Any]:
    """What the game's reader finds in the frames of a stretch."""
    if held.game == "pong":
        read = {
            "ball_seen": [pong.ball(clip, held.median)[:, 0] for clip in made],
            "own_seen": [pong.paddle(clip, "own") for clip in made],
            "enemy_seen": [pong.paddle(clip, "enemy") for clip in made],
        }
        there = {name: np.isfinite(rows) for name, rows in read.items()}
        there["all_seen"] = np.logical_and.reduce(list(there.values()))
        return {name: float(rows.mean()) for name, rows in there.items()}
    if held.game == "sprites" and held.info is not None:
        config = SpriteConfig.of(held.info.source)
        readings = [read_sprites(clip, config) for clip in made]
        colors = held.truth["state"][:, held.known - 1, :, 5]
        found = sprite_laws.laws(readings, held.truth["state"][:, held.known - 1], None, config, step=1)
        there = [one.seen[:, own] for one, own in zip(readings, colors, strict=True)]
        return {"legal": found["legal"], "redrawn": found["redrawn"], "there": float(np.mean(there))}
    return {}


def _lives(made: Frames, held: HeldOut) -> list[int]:
    """Frames until the first that no world of sprites could have, per rollout."""
    config = SpriteConfig.of(held.info.source if held.info else {})
    before = held.truth["state"][:, held.known - 1]
    return [
        sprite_laws.survival(read_sprites(clip, config), state, config)
        for clip, state in zip(made, before, strict=True)
    ]
