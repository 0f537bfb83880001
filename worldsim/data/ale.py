"""Atari games as a source of episodes: policies, resizing, and the emulator's RAM as truth.

The Arcade Learning Environment (extra ``atari``, GPL-2.0, never a core dependency) runs under
Gymnasium with frame skip 4 and without sticky actions, so a game is a function of its actions; all
variety comes from the policy's random generator.

Frames of 210x160 become 64x64. An area average would dim Pong's ball (2x4 pixels, while a cell is
2.5x3.3) to as little as a quarter of its contrast, and nearest-neighbour drops it in every fifth
column. ``resize="rarest"`` therefore takes from each cell the source pixel whose colour is the rarest
in the game (counted once in a short random probe), so small things keep their full colour, their place
to within a cell, and a size that tells where between cells they lie; ``"area"`` is the plain average.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt8

from worldsim.data.episode import Episode

PONG_BALL_X, PONG_BALL_Y, PONG_PLAYER_Y = 49, 54, 51
PONG_TOP, PONG_BOTTOM = 44, 206
PONG_PLAYER_X = 186


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who plays.

    Attributes:
      kind: ``random`` (a new action each frame), ``sticky`` (an action is held for ``hold`` frames on
        average) or ``follower`` (Pong only: goes where the ball will arrive, reading RAM).
      noise: share of the follower's frames that start a short random move.
      aim: standard deviation of where on its paddle (half height 8) the follower wants the ball, in
        emulator pixels, drawn anew for each return; large values miss.
      hold: mean number of frames for which ``sticky`` and the follower's random moves last.
    """

    kind: Literal["random", "sticky", "follower"] = "random"
    noise: float = 0.0
    aim: float = 6.0
    hold: float = 6.0

    @property
    def name(self) -> str:
        """The policy in words, as published with a dataset."""
        match self.kind:
            case "follower":
                return f"follower(noise={self.noise:g}, aim={self.aim:g})"
            case "sticky":
                return f"sticky(hold={self.hold:g})"
            case _:
                return "random"


Mix = tuple[tuple[Policy, float], ...]
"""Policies with their shares of the episodes."""

PONG_TRAIN: Mix = (
    (Policy("follower", noise=0.0, aim=4), 0.2),
    (Policy("follower", noise=0.02, aim=6), 0.3),
    (Policy("follower", noise=0.06, aim=9), 0.25),
    (Policy("sticky", hold=6), 0.15),
    (Policy("random"), 0.1),
)
PONG_TEST: Mix = (
    (Policy("follower", noise=0.01, aim=5), 0.4),
    (Policy("follower", noise=0.04, aim=7), 0.3),
    (Policy("sticky", hold=4), 0.2),
    (Policy("random"), 0.1),
)
OTHER_TRAIN: Mix = ((Policy("sticky", hold=6), 0.6), (Policy("random"), 0.4))
OTHER_TEST: Mix = ((Policy("sticky", hold=4), 0.5), (Policy("random"), 0.5))


def default_mix(game: str, split: str) -> Mix:
    """The policies of a split: training and held-out data differ in both seed and mix."""
    if game == "pong":
        return PONG_TRAIN if split == "train" else PONG_TEST
    return OTHER_TRAIN if split == "train" else OTHER_TEST


@dataclasses.dataclass(frozen=True)
class AleConfig:
    """A game and how it is recorded.

    Attributes:
      game: name as the emulator has it, in snake case, such as ``pong`` or ``space_invaders``.
      size: height and width of a frame.
      frame_skip: emulator frames per recorded frame; 60 / ``frame_skip`` frames a second.
      resize: ``rarest`` or ``area``, see above.
      max_frames: episodes are cut here.
    """

    game: str = "pong"
    size: int = 64
    frame_skip: int = 4
    resize: Literal["rarest", "area"] = "rarest"
    max_frames: int = 1000

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 160 or self.frame_skip < 1 or self.max_frames < 2:
            raise ValueError(
                f"AleConfig: size {self.size}, frame_skip {self.frame_skip}, max_frames {self.max_frames}; "
                "size goes from 8 to 160, the others from 1 and 2."
            )

    @property
    def fps(self) -> float:
        """Recorded frames per second of play."""
        return 60 / self.frame_skip


def open_game(config: AleConfig) -> Any:
    """The Gymnasium environment of the game, minimal action set, RGB, deterministic.

    Raises:
      ModuleNotFoundError: the ``atari`` extra is missing.
      ValueError: the emulator has no such game; similar names are listed.
    """
    try:
        import ale_py
        import gymnasium
        from ale_py import roms
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Atari games need gymnasium and ale-py ({error}); install them with: "
            "pip install 'ale-py<0.13' gymnasium"
        ) from error
    games = roms.get_all_rom_ids()
    if config.game not in games:
        import difflib

        near = difflib.get_close_matches(config.game, games) or sorted(games)[:8]
        raise ValueError(
            f"No game {config.game!r} among the emulator's {len(games)}; perhaps {', '.join(near)}."
        )
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    title = "".join(word.capitalize() for word in config.game.split("_"))
    return gymnasium.make(
        f"ALE/{title}-v5",
        frameskip=config.frame_skip,
        repeat_action_probability=0.0,
        full_action_space=False,
        obs_type="rgb",
    )


def action_names(config: AleConfig) -> tuple[str, ...]:
    """Names of the game's minimal action set, lower case, in the order of their integers."""
    env = open_game(config)
    names = tuple(name.lower() for name in env.unwrapped.get_action_meanings())
    env.close()
    return names


def color_ranks(config: AleConfig, frames: int = 400) -> Int[np.ndarray, "256"]:
    """Rank of each palette entry by how many pixels it fills in a short random probe with a fixed seed.

    Entries that the probe does not show rank 0 (rarest).
    """
    env = open_game(config)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    counts = np.zeros(256, np.int64)
    for _ in range(frames):
        _, _, over, cut, _ = env.step(int(rng.integers(env.action_space.n)))
        counts += np.bincount(env.unwrapped.ale.getScreen().reshape(-1), minlength=256)
        if over or cut:
            env.reset()
    env.close()
    return np.unique(counts, return_inverse=True)[1].reshape(-1).astype(np.int16)


def rarest(ranks: Int[np.ndarray, "height width"], size: int) -> Int[np.ndarray, "size size"]:
    """For each cell of a ``size`` x ``size`` grid, the flat index of its lowest-ranked pixel.

    Every source pixel belongs to one cell; on a tie the first one is taken. Three columns to two::

        0 1 2        cells {0, 1} and {2}
    """
    cells = _cells(*ranks.shape, size)
    choice = ranks.reshape(-1)[cells].argmin(-1)
    return np.take_along_axis(cells, choice[..., None], -1)[..., 0]


@functools.lru_cache(maxsize=4)
def _cells(height: int, width: int, size: int) -> Int[np.ndarray, "size size n"]:
    """Flat indices of each cell's pixels, the last one repeated where a cell has fewer."""

    def groups(length: int) -> np.ndarray:
        edges = -(-np.arange(size + 1) * length // size)
        step = np.arange(np.diff(edges).max())
        return np.minimum(edges[:-1, None] + step, edges[1:, None] - 1)

    rows, columns = groups(height), groups(width)
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(size, size, -1)


def grabber(config: AleConfig) -> Callable[[Any, np.ndarray], UInt8[np.ndarray, "h w 3"]]:
    """A function of the environment and its full frame that returns the small frame."""
    if config.resize == "area":
        from PIL import Image

        box, shape = Image.Resampling.BOX, (config.size, config.size)
        return lambda _, frame: np.asarray(Image.fromarray(frame).resize(shape, box))
    ranks = color_ranks(config)

    def grab(env: Any, frame: np.ndarray) -> np.ndarray:
        pick = rarest(ranks[env.unwrapped.ale.getScreen()], config.size)
        return frame.reshape(-1, 3)[pick]

    return grab


def _arrival(x: int, y: int, dx: int, dy: int) -> float:
    """Where Pong's ball will be, in RAM rows, when it reaches the player's column, walls reflecting."""
    if dx <= 0:
        return float(y)
    path = y + dy * (PONG_PLAYER_X - x) / dx - PONG_TOP
    span = PONG_BOTTOM - PONG_TOP
    path = path % (2 * span)
    return PONG_TOP + (path if path <= span else 2 * span - path)


class Player:
    """A policy at play: chooses actions from RAM and its own random generator."""

    def __init__(self, policy: Policy, actions: tuple[str, ...], rng: np.random.Generator) -> None:
        self._policy, self._actions, self._rng = policy, actions, rng
        self._held, self._left = 0, 0
        self._last = np.zeros(128, np.uint8)
        self._away, self._goal = True, 0.0

    def act(self, ram: UInt8[np.ndarray, "128"]) -> int:
        """The next action, given the RAM of the present frame."""
        last, self._last = self._last, ram.copy()
        policy, rng = self._policy, self._rng
        count = len(self._actions)
        if policy.kind == "random":
            return int(rng.integers(count))
        start = policy.kind == "sticky" or rng.random() < policy.noise
        if self._left == 0 and start:
            self._held, self._left = int(rng.integers(count)), int(rng.geometric(1 / policy.hold))
        if self._left:
            self._left -= 1
            return self._held
        return self._follow(ram.astype(int), last.astype(int))

    def _follow(self, ram: np.ndarray, last: np.ndarray) -> int:
        """Go towards where the ball arrives, less an aim drawn once per return."""
        cells = [PONG_BALL_X, PONG_BALL_Y, PONG_PLAYER_Y]
        x, y, paddle = ram[cells].tolist()
        dx, dy, speed = (ram - last)[cells].tolist()
        if (dx <= 0) != self._away:
            self._away = dx <= 0
            self._goal = self._rng.normal(0, self._policy.aim)
        target = _arrival(x, y, dx, dy) if not self._away else (y + 125) / 2
        gap = target + self._goal - (paddle + 0.8 * speed)
        if abs(gap) <= 8:
            return self._actions.index("noop")
        return self._actions.index("left" if gap > 0 else "right")


def episodes(
    config: AleConfig,
    mix: Mix,
    *,
    frames: int,
    seed: int,
) -> Iterator[Episode]:
    """Play until ``frames`` frames are recorded (the last episode is cut there).

    The policy whose frames lag most behind its share plays next.

    Yields:
      Episodes with ``rewards`` float32 ``[t]`` (the reward of arriving at the frame), ``ram`` uint8
      ``[t 128]`` and ``ends`` bool ``[t]`` (True on the frame that ended the game, never on a cut one).
    """
    if config.game != "pong" and any(policy.kind == "follower" for policy, _ in mix):
        raise ValueError(
            f"The policy 'follower' plays pong only; take 'random' or 'sticky' for {config.game}."
        )
    env = open_game(config)
    names = tuple(name.lower() for name in env.unwrapped.get_action_meanings())
    shares = np.array([share for _, share in mix]) / sum(share for _, share in mix)
    played = np.zeros(len(mix))
    grab = grabber(config)
    left, index = frames, 0
    while left >= 2:
        key = seed * 1_000_003 + index
        rng = np.random.default_rng(key)
        turn = int(np.argmax(shares * (played.sum() + config.max_frames) - played))
        policy = mix[turn][0]
        limit = min(left, config.max_frames)
        episode = _play(env, config.game, Player(policy, names, rng), rng, limit, grab)
        played[turn] += len(episode["frames"])
        left, index = left - len(episode["frames"]), index + 1
        extra = {name: episode[name] for name in ("rewards", "ram", "ends")}
        yield Episode(episode["frames"], episode["actions"], extra, seed=key, policy=policy.name)
    env.close()


def _play(
    env: Any,
    game: str,
    player: Player,
    rng: np.random.Generator,
    limit: int,
    grab: Callable[[Any, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """One episode of at most ``limit`` frames; its waiting start is played but not recorded."""
    image, _ = env.reset(seed=int(rng.integers(2**31)))
    for left in range(int(rng.integers(30)) + 60, -1, -1):
        ball = game != "pong" or env.unwrapped.ale.getRAM()[PONG_BALL_X] > 0
        if ball and left <= 60:  # Pong serves within 60 frames
            break
        image, _, over, cut, _ = env.step(int(rng.integers(env.action_space.n)))
        if over or cut:
            image, _ = env.reset()
    ram = env.unwrapped.ale.getRAM()
    frames, actions, rewards, rams, ends = [grab(env, image)], [-1], [0.0], [ram], [False]
    while len(frames) < limit and not ends[-1]:
        action = player.act(rams[-1])
        image, reward, over, cut, _ = env.step(action)
        frames.append(grab(env, image))
        actions.append(action)
        rewards.append(float(reward))
        rams.append(env.unwrapped.ale.getRAM())
        ends.append(bool(over))
        if cut:
            break
    return {
        "frames": np.stack(frames),
        "actions": np.array(actions, np.int32),
        "rewards": np.array(rewards, np.float32),
        "ram": np.stack(rams).astype(np.uint8),
        "ends": np.array(ends, bool),
    }
