"""The sprite world: a toy with exact state and exactly known entropy, on an integer grid.

A sprite has a corner ``(x, y)`` in 0..L with ``L = size - side``, a velocity, a shape and a colour.
Sprites pass over one another; a later one is drawn above an earlier one and can hide it.

**Sprite 0 is pushed**, and it alone is white: the action moves it ``push`` pixels left, right, up or
down, and a push that would leave the grid does nothing.

**The others are free.** In each frame, first, with probability ``redraw``, the velocity is drawn anew
from its stationary distribution given the place, then the sprite moves. Walls reflect: unrolled, each
axis is a circle of 2L phases on which the sprite goes round at constant speed,

    x      0 1 2 3 2 1 | 0 1 ...        L = 3
    phase  0 1 2 3 4 5 | 0              a sprite at a wall always points inwards

and uniform phase with uniform speed 1..``speed`` is stationary: at a wall the sign of the velocity is
given, elsewhere both are as likely. The world looks the same played backward: the place after given
place and velocity of arrival is exactly as uncertain as the place before given place and velocity of
departure (:func:`next_entropy`, :func:`previous_entropy`).

``falling=True`` breaks that symmetry: free sprites gain one pixel a frame of downward velocity each
frame, land on the floor without bouncing and lose their upright motion there; ``redraw`` then is the
probability of being thrown upwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from worldsim.data.episode import Episode

ACTIONS = ("none", "left", "right", "up", "down")
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
SHAPES = ("square", "disc", "cross", "frame")
COLORS = np.array(
    [[230, 60, 60], [70, 190, 90], [80, 130, 250], [240, 200, 60], [200, 90, 220], [240, 240, 240]], np.uint8
)
WHITE = len(COLORS) - 1
"""The colour of the sprite that actions push, and of no other."""
BACKGROUND = np.array([24, 24, 32], np.uint8)
FIELDS = ("x", "y", "vx", "vy", "shape", "color")
"""Columns of a state; velocities are those by which the sprite came to its place."""

State = Int[np.ndarray, "k 6"]


@dataclasses.dataclass(frozen=True)
class SpriteConfig:
    """A sprite world.

    Attributes:
      size: height and width of a frame, 32 or 64 as a rule.
      sprites: 1 to 3, the pushed one included.
      side: height and width of a sprite.
      speed: fastest motion of a free sprite along an axis, in pixels a frame.
      push: pixels that an action moves the pushed sprite.
      redraw: probability per frame that a free sprite's velocity is drawn anew.
      falling: gravity and an inelastic floor.
      throw: with ``falling``, the fastest upward velocity of a throw.
    """

    size: int = 32
    sprites: int = 2
    side: int = 5
    speed: int = 2
    push: int = 2
    redraw: float = 0.05
    falling: bool = False
    throw: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.sprites <= 3 or self.side < 3 or self.span < 2:
            raise ValueError(
                f"SpriteConfig: {self.sprites} sprites of side {self.side} on {self.size}x{self.size}; take "
                f"1 to 3 sprites with a side from 3 to {self.size - 2}."
            )
        fastest = max(self.speed, self.push, self.throw if self.falling else 1)
        if min(self.speed, self.push, self.throw) < 1 or fastest > self.span or 2 * self.push > self.span + 1:
            raise ValueError(
                f"SpriteConfig: speed {self.speed}, push {self.push}, throw {self.throw}; each goes from 1 "
                f"to the free span size - side = {self.span}, push to half of it."
            )
        if not 0 <= self.redraw <= 1:
            raise ValueError(
                f"SpriteConfig: redraw {self.redraw} is a probability; take a number from 0 to 1."
            )

    @classmethod
    def of(cls, source: Mapping[str, Any]) -> SpriteConfig:
        """The config among what a dataset says of its source.

        Raises:
          KeyError: a field that is not there.
        """
        return cls(**{field.name: source[field.name] for field in dataclasses.fields(cls)})

    @property
    def span(self) -> int:
        """Largest coordinate of a sprite's corner."""
        return self.size - self.side


def reset(config: SpriteConfig, rng: np.random.Generator) -> State:
    """A state drawn from the stationary distribution (with ``falling``, at rest in mid-air)."""
    state = np.zeros((config.sprites, len(FIELDS)), np.int32)
    state[:, 4] = rng.integers(len(SHAPES), size=config.sprites)
    state[0, 5], state[1:, 5] = WHITE, rng.permutation(WHITE)[: config.sprites - 1]
    state[0, :2] = rng.integers(config.span + 1, size=2)
    for sprite in state[1:]:
        phase = rng.integers(2 * config.span, size=2)
        sprite[:2] = np.minimum(phase, 2 * config.span - phase)
        sprite[2:4] = _velocity(config, sprite[:2], rng)
        if config.falling:
            sprite[3] = 0
    return state


def step(config: SpriteConfig, state: State, action: int, rng: np.random.Generator) -> State:
    """The next state under an action in 0..4 (see ``ACTIONS``)."""
    if not 0 <= action < len(ACTIONS):
        raise ValueError(f"Action {action}; sprites take 0 to {len(ACTIONS) - 1}: {', '.join(ACTIONS)}.")
    new = state.copy()
    goal = state[0, :2] + config.push * MOVES[action]
    if np.any((goal < 0) | (goal > config.span)):
        goal = state[0, :2]
    new[0, :2], new[0, 2:4] = goal, goal - state[0, :2]
    for sprite in new[1:]:
        drawn = rng.random() < config.redraw
        if drawn:
            sprite[2:4] = _velocity(config, sprite[:2], rng)
        if config.falling:
            sprite[1], sprite[3] = fall(int(sprite[1]), int(sprite[3]), config.span, thrown=drawn)
            sprite[:1], sprite[2:3] = reflect(sprite[:1], sprite[2:3], config.span)
        else:
            sprite[:2], sprite[2:4] = reflect(sprite[:2], sprite[2:4], config.span)
    return new


def reflect(
    place: Int[np.ndarray, "*n"], velocity: Int[np.ndarray, "*n"], span: int
) -> tuple[Int[np.ndarray, "*n"], Int[np.ndarray, "*n"]]:
    """Move along an axis with walls at 0 and ``span``; at a wall the velocity is turned inwards.

    A bijection of phases, undone by turning the velocity round (away from walls, where it points inwards
    already) and moving again.
    """
    goal = place + velocity
    low, high = goal <= 0, goal >= span
    turned = np.where(low, np.abs(velocity), np.where(high, -np.abs(velocity), velocity))
    return np.where(low, -goal, np.where(high, 2 * span - goal, goal)), turned


def fall(y: int, speed: int, span: int, *, thrown: bool) -> tuple[int, int]:
    """One frame of gravity: the ceiling reflects, the floor stops."""
    if y == span and not thrown:
        return span, 0
    speed = speed if thrown else speed + 1
    y = y + speed
    if y < 0:
        y, speed = -y, -speed
    return (span, 0) if y >= span else (y, speed)


def _velocity(config: SpriteConfig, place: Int[np.ndarray, "2"], rng: np.random.Generator) -> np.ndarray:
    """A velocity from the stationary distribution given the place; upwards where sprites fall."""
    sign = np.where(place == 0, 1, np.where(place == config.span, -1, rng.integers(2, size=2) * 2 - 1))
    velocity = sign * rng.integers(1, config.speed + 1, size=2)
    if config.falling:
        velocity[1] = -rng.integers(1, config.throw + 1)
    return velocity


def stencil(shape: int, side: int) -> Bool[np.ndarray, "side side"]:
    """The pixels of a shape."""
    row, column = np.mgrid[:side, :side]
    centre = (side - 1) / 2
    match SHAPES[shape]:
        case "square":
            return np.ones((side, side), bool)
        case "disc":
            return (row - centre) ** 2 + (column - centre) ** 2 <= (side / 2) ** 2
        case "cross":
            return (np.abs(row - centre) <= side / 6) | (np.abs(column - centre) <= side / 6)
        case _:
            edge = max(1, side // 5)
            return np.minimum(np.minimum(row, side - 1 - row), np.minimum(column, side - 1 - column)) < edge


def draw(config: SpriteConfig, state: State) -> UInt8[np.ndarray, "h w 3"]:
    """The frame of a state, sprites in order, later ones above."""
    frame = np.empty((config.size, config.size, 3), np.uint8)
    frame[:] = BACKGROUND
    for x, y, _, _, shape, color in state:
        frame[y : y + config.side, x : x + config.side][stencil(int(shape), config.side)] = COLORS[color]
    return frame


def episodes(
    config: SpriteConfig, *, count: int, length: int, seed: int, hold: float = 1.0
) -> Iterator[Episode]:
    """Episodes with ``state`` int32 ``[t k 6]``; actions are uniform and held ``hold`` frames on average."""
    for index in range(count):
        key = seed * 1_000_003 + index
        rng = np.random.default_rng(key)
        states, actions = [reset(config, rng)], [-1]
        action = int(rng.integers(len(ACTIONS)))
        for _ in range(length - 1):
            if rng.random() < 1 / hold:
                action = int(rng.integers(len(ACTIONS)))
            states.append(step(config, states[-1], action, rng))
            actions.append(action)
        frames = np.stack([draw(config, state) for state in states])
        policy = "random" if hold == 1 else f"sticky(hold={hold:g})"
        yield Episode(
            frames, np.array(actions, np.int32), {"state": np.stack(states)}, seed=key, policy=policy
        )


def next_entropy(config: SpriteConfig) -> float:
    """Entropy in nats of all places in the next frame, given the state and the action.

    Averaged over the stationary distribution. It is that of the next *frame* wherever no sprite is
    hidden. With redraw p and Q the stationary choice of the next place, a free sprite's next place is
    ``(1 - p) [as before] + p Q``; the pushed sprite's is certain.

    Raises:
      ValueError: with ``falling`` there is no closed form.
    """
    if config.falling:
        raise ValueError("next_entropy: known in closed form for falling=False only; count it from samples.")
    keep, entropy, weight = _axis(config)
    p = config.redraw
    q = keep[:, None] * keep[None, :]
    own = 1 - p + p * q
    total = -_xlogx(own)
    if p > 0:
        total += -(p * (math.log(p) - entropy[:, None] - entropy[None, :]) - _xlogx(p * q))
    return float((config.sprites - 1) * np.sum(total * weight[:, None] * weight[None, :]))


def previous_entropy(config: SpriteConfig) -> float:
    """Entropy in nats of all places in the frame before, given the places, the velocities with which the
    free sprites *leave*, and the action that led here.

    For free sprites it equals :func:`next_entropy` (given the velocity of arrival, as states store it,
    the place before is certain). A push ends within ``push`` of the wall that it points to either by
    moving or by being blocked, under uniform independent actions equally likely: ln 2 for a share
    ``2 push / (L + 1)`` of the four pushes.
    """
    blocked = 0.8 * 2 * config.push / (config.span + 1) * math.log(2)
    return next_entropy(config) + blocked


def _axis(
    config: SpriteConfig,
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Per (place, velocity) of one axis: the chance that a redraw leads to the same next place, the
    entropy of the next place after a redraw, and the stationary weight."""
    span, speeds = config.span, np.arange(1, config.speed + 1)
    keep, entropy, weight = [], [], []
    for place in range(span + 1):
        signs = [1] if place == 0 else [-1] if place == span else [-1, 1]
        velocities = np.concatenate([sign * speeds for sign in signs])
        goals = reflect(np.full(len(velocities), place), velocities, span)[0]
        chance = np.bincount(goals, minlength=span + 1) / len(goals)
        keep.extend(chance[goals])
        entropy.extend([-_xlogx(chance).sum()] * len(goals))
        weight.extend([1 / (2 * span * len(speeds))] * len(goals))
    return np.array(keep), np.array(entropy), np.array(weight)


def _xlogx(value: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return value * np.log(np.where(value > 0, value, 1))
