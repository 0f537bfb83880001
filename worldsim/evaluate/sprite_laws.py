"""Whether generated sprites obey the laws of their world: places, motion, survival and permanence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from worldsim.data.sprites import MOVES, SpriteConfig, fall, reflect
from worldsim.evaluate.bands import around, band, nanmean, upto
from worldsim.evaluate.play import Answer
from worldsim.evaluate.sprites import Reading, read_sprites

HIDDEN, SHOWN = 0.5, 0.9
"""A sprite hides when less than HIDDEN of it shows and is back at SHOWN."""
BRIEF, PATIENCE = 8, 16
"""Frames that a sprite can hide and be asked for when it is back, and after which it has vanished."""

HORIZONS = (4, 8, 16, 32, 48, 64)


def axis_laws(
    config: SpriteConfig, *, upright: bool = False
) -> tuple[Bool[np.ndarray, "m m"], Bool[np.ndarray, "m m m"]]:
    """What a free sprite can do along one axis, from the world's own rules.

    Returns:
      ``reach[p, q]``: whether any velocity leads from place p to q. ``kept[p, q, r]``: whether p, q, r can be
      three places in a row with no velocity drawn anew between q and r.
    """
    span, falls = config.span, upright and config.falling
    fastest = config.throw + 2 * span if falls else config.speed

    def onward(place: int, velocity: int, *, thrown: bool) -> tuple[int, int]:
        if falls:
            return fall(place, velocity, span, thrown=thrown)
        goal, turned = reflect(np.array([place]), np.array([velocity]), span)
        return int(goal[0]), int(turned[0])

    reach = np.zeros((span + 1, span + 1), bool)
    kept = np.zeros((span + 1, span + 1, span + 1), bool)
    for place in range(span + 1):
        for velocity in range(-fastest, fastest + 1):
            if not velocity and not falls:
                continue
            for thrown in {False, falls and -config.throw <= velocity < 0}:
                middle, arrived = onward(place, velocity, thrown=thrown)
                last, _ = onward(middle, arrived, thrown=False)
                reach[place, middle] = kept[place, middle, last] = True
    return reach, kept


def motion(places: Float[np.ndarray, "n t 2"], config: SpriteConfig) -> dict[str, Float[np.ndarray, "n t"]]:
    """Judge the steps of free sprites; NaN where the places around a step are not known.

    Returns:
      ``legal`` per step into a frame: 1 where some velocity leads there. ``redrawn``: among steps that are
      legal like the one before, 1 where the velocity must have been drawn anew.
    """
    laws = axis_laws(config), axis_laws(config, upright=True)
    known = np.isfinite(places[..., 0])
    at = np.nan_to_num(places).astype(int)
    legal, redrawn = (np.full(known.shape, np.nan) for _ in range(2))
    p, q, r = at[:, :-2], at[:, 1:-1], at[:, 2:]
    pair = known[:, :-1] & known[:, 1:]
    steps = np.all([laws[i][0][at[:, :-1, i], at[:, 1:, i]] for i in (0, 1)], axis=0)
    legal[:, 1:] = np.where(pair, steps, np.nan)
    same = np.all([laws[i][1][p[..., i], q[..., i], r[..., i]] for i in (0, 1)], axis=0)
    both = pair[:, :-1] & pair[:, 1:] & steps[:, :-1] & steps[:, 1:]
    redrawn[:, 2:] = np.where(both, ~same, np.nan)
    return {"legal": legal, "redrawn": redrawn}


def obeys(
    places: Float[np.ndarray, "n t 2"], actions: Int[np.ndarray, "n t"], config: SpriteConfig
) -> Float[np.ndarray, "n t"]:
    """1 where the pushed sprite went where the action sends it, 0 where not, NaN where it is not seen."""
    out = np.full(actions.shape, np.nan)
    before, after, action = places[:, :-1], places[:, 1:], actions[:, 1:]
    goal = before + config.push * MOVES[np.maximum(action, 0)]
    blocked = np.any((goal < 0) | (goal > config.span), axis=-1)
    goal = np.where(blocked[..., None], before, goal)
    known = np.isfinite(before[..., 0]) & np.isfinite(after[..., 0]) & (action >= 0)
    out[:, 1:] = np.where(known, np.all(goal == after, axis=-1), np.nan)
    return out


def survival(reading: Reading, state: Int[np.ndarray, "k 6"], config: SpriteConfig) -> int:
    """Frames until a sprite changes its shape, vanishes, jumps, or one of another colour appears.

    A sprite that is not seen, or not certain, is excused for ``PATIENCE`` frames while another sprite is near
    enough to hide it; then it is lost since it was last seen.

    Args:
      reading: of one clip, in the order of counting.
      state: the true state just before its first frame.
    """
    place = {int(row[5]): row[:2].astype(float) for row in state}
    shape, missing = {int(row[5]): int(row[4]) for row in state}, dict.fromkeys(map(int, state[:, 5]), 0)
    fastest = {int(row[5]): (config.push if i == 0 else _fastest(config)) for i, row in enumerate(state)}
    for t in range(len(reading.seen)):
        if any(reading.seen[t, c] for c in range(reading.seen.shape[1]) if c not in shape):
            return t
        for color in shape:
            missing[color] += 1
            if reading.certain[t, color]:
                jump = np.abs(reading.place[t, color] - place[color]).max()
                if reading.shape[t, color] != shape[color] or jump > missing[color] * fastest[color]:
                    return t
                place[color], missing[color] = reading.place[t, color], 0
            else:
                room = config.side + missing[color] * fastest[color]
                others = [reading.place[t, c] for c in shape if c != color and reading.seen[t, c]]
                if missing[color] > PATIENCE:
                    return t - PATIENCE
                if not any(np.abs(other - place[color]).max() < room for other in others):
                    return t
    return len(reading.seen)


def _fastest(config: SpriteConfig) -> int:
    """The longest step of a free sprite along an axis; a fall over the whole field is the fastest."""
    fall = math.ceil((2 * config.span) ** 0.5) if config.falling else 0
    return max(config.speed, fall, config.throw if config.falling else 0)


def returns(reading: Reading, config: SpriteConfig) -> tuple[int, int]:
    """How often a sprite that hid behind another came back right, and how often it should have.

    It hides when less than ``HIDDEN`` of it shows after ``SHOWN`` did, and is back when ``SHOWN`` does again:
    right with its shape and within reach of where it was. One that is back after more than ``BRIEF`` frames
    decides nothing, nor does a clip that ends before; one that is not after ``PATIENCE`` has vanished, and
    should have come back.
    """
    right = decided = 0
    for color in range(reading.seen.shape[1]):
        since, last = None, None
        for t in range(len(reading.seen)):
            whole = reading.certain[t, color] and reading.visible[t, color] >= SHOWN
            if whole:
                if since is not None and last is not None and t - since <= BRIEF:
                    decided += 1
                    reach = (t - last[0]) * max(_fastest(config), config.push)
                    near = np.abs(reading.place[t, color] - last[1]).max() <= reach
                    right += bool(near and reading.shape[t, color] == last[2])
                since, last = None, (t, reading.place[t, color], reading.shape[t, color])
            elif last is not None and since is None and reading.visible[t, color] < HIDDEN:
                since = t
            elif since is not None and t - since >= PATIENCE:
                decided, since, last = decided + 1, None, None
    return right, decided


def over_horizon(
    answer: Answer,
    state: Int[np.ndarray, "n t k 6"],
    actions: Int[np.ndarray, "n t"] | None,
    config: SpriteConfig,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """State error, legality, survival and permanence of an answer, beside the same of the truth.

    Returns:
      Curves with bands: ``pushed_error`` and ``free_error`` (pixels, of sprites that are seen) and ``found``
      (share of sprites seen with their colour and shape). ``made`` and ``truth``: shares of ``legal`` steps,
      of ``obeyed`` actions and of ``redrawn`` velocities, median ``survival`` in frames, and how many hidden
      sprites ``returned`` of how many. ``redraw_ratio``: made over truth, 0.5 to 2 is wanted.
    """
    there = answer.of(state)
    before = state[:, answer.first - answer.step]
    readings = [[read_sprites(clip, config) for clip in row] for row in answer.frames]
    errors = np.stack([[_errors(r, s) for r, s in zip(row, there, strict=True)] for row in readings])
    found, far = nanmean(errors[:, :, 0], (0, 3)), errors[:, :, 1]
    out: dict[str, Any] = {
        "found": band(found, seed=seed),
        "pushed_error": band(nanmean(far[..., 0], 0), seed=seed),
        "free_error": band(nanmean(far[..., 1:], (0, 3)), seed=seed),
    }
    moves = None if actions is None else answer.of(actions)
    flat = [r for row in readings for r in row]
    real = [read_sprites(clip, config) for clip in answer.truth]
    for name, some in (("made", flat), ("truth", real)):
        times = len(some) // len(there)
        out[name] = laws(
            some, np.tile(before, (times, 1, 1)), None if moves is None else np.tile(moves, (times, 1)),
            config, step=answer.step,
        )  # fmt: skip
    rates = out["made"]["redrawn"], out["truth"]["redrawn"]
    out["redraw_ratio"] = rates[0] / rates[1] if rates[1] else None
    for h in (h for h in HORIZONS if h <= found.shape[1]):
        out[str(h)] = {
            "pushed_error": around(out["pushed_error"]["mean"], h),
            "free_error": around(out["free_error"]["mean"], h),
            "found": upto(out["found"]["mean"], h),
        }
    return out


def _errors(reading: Reading, state: Int[np.ndarray, "t k 6"]) -> Float[np.ndarray, "2 t k"]:
    """Per true sprite whether it is found as what it is, and how far it is from where it should be."""
    rows, colors = np.arange(len(state))[:, None], state[..., 5]
    far = np.linalg.norm(reading.place[rows, colors] - state[..., :2], axis=-1)
    return np.stack([(reading.shape[rows, colors] == state[..., 4]).astype(float), far])


def laws(
    readings: list[Reading],
    before: Int[np.ndarray, "n k 6"],
    actions: Int[np.ndarray, "n t"] | None,
    config: SpriteConfig,
    *,
    step: int,
) -> dict[str, Any]:
    """Legality, survival and permanence of readings of whole clips; motion is judged in the order of time."""
    index = np.arange(len(readings))
    colors = before[..., 5]
    certain = np.stack([r.certain for r in readings])
    places = np.where(certain[..., None], np.stack([r.place for r in readings]), np.nan)[:, ::step]
    free = [places[index, :, colors[:, k]] for k in range(1, colors.shape[1])]
    nothing = np.full((1, 1), np.nan)
    judged = motion(np.concatenate(free), config) if free else {"legal": nothing, "redrawn": nothing}
    obeyed = (
        np.nan
        if actions is None
        else nanmean(obeys(places[index, :, colors[:, 0]], actions[:, ::step], config))
    )
    lives = [survival(r, s, config) for r, s in zip(readings, before, strict=True)]
    back = np.sum([returns(r[::step], config) for r in readings], axis=0)
    return {
        "legal": float(nanmean(judged["legal"])),
        "redrawn": float(nanmean(judged["redrawn"])),
        "obeyed": float(obeyed),
        "survival": float(np.median(lives)),
        "returned": [int(back[0]), int(back[1])],
    }


def check_reader(reading: list[Reading], state: Int[np.ndarray, "n t k 6"]) -> dict[str, float]:
    """The reader against the true state of real frames: shares right, certain, and certain but wrong."""
    errors = np.stack([_errors(r, s) for r, s in zip(reading, state, strict=True)])
    certain = np.stack(
        [r.certain[np.arange(len(s))[:, None], s[..., 5]] for r, s in zip(reading, state, strict=True)]
    )
    right = (errors[:, 0] == 1) & (errors[:, 1] == 0)
    return {
        "right": float(right.mean()),
        "certain": float(certain.mean()),
        "wrong_though_certain": float((certain & ~right).mean()),
    }
