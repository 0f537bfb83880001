"""Doom as a source of episodes: ViZDoom's scenarios, wandering policies, and the engine's own truth.

ViZDoom (extra ``doom``, MIT; it carries the Freedoom assets and its scenarios) runs in its own process,
hidden and without sound, tic by tic: an episode is a function of its seed and its actions. Frames are
rendered at 160x120, the smallest size that the engine has, and averaged by area to a square, so the whole
view is kept and looks a quarter narrower than on a screen.

The engine shows no frame of the moment in which a game ends. ``ends`` therefore marks the last frame that
was shown, and the reward of the step that ended the game is added to that frame's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from worldsim.data.episode import Episode

OBJECTS = 16
"""Rows of ``objects`` and ``boxes``: the largest things in view; what is beyond is left out."""

TICS = 35
"""Tics of the engine per second."""

MOVES = ("move_forward", "move_backward", "move_left", "move_right")
TURNS = ("turn_left", "turn_right")
BUTTONS = (*MOVES, *TURNS, "attack")
PAIRS = tuple(("move_forward", turn) for turn in TURNS)
VARIABLES = ("POSITION_X", "POSITION_Y", "ANGLE", "HEALTH")

NOT_ALONE = ("cig", "multi", "multi_duel")
NOT_CARRIED = ("doom", "doom2", "oblige")


@dataclasses.dataclass(frozen=True)
class Wander:
    """Who plays: someone who holds each action for a while, and turns where a wall stops him.

    Attributes:
      hold: mean number of frames for which an action is held; 1 draws a new one each frame.
      forward: share of the draws that go forward, turning or not, where the scenario can.
    """

    hold: float = 6.0
    forward: float = 0.5

    @property
    def name(self) -> str:
        """The policy in words, as published with a dataset."""
        return f"wander(hold={self.hold:g}, forward={self.forward:g})"


Mix = tuple[tuple[Wander, float], ...]
"""Policies with their shares of the frames."""

TRAIN: Mix = ((Wander(6, 0.5), 0.4), (Wander(12, 0.6), 0.25), (Wander(3, 0.4), 0.2), (Wander(1, 0.2), 0.15))
TEST: Mix = ((Wander(8, 0.55), 0.4), (Wander(4, 0.45), 0.4), (Wander(1, 0.3), 0.2))


@dataclasses.dataclass(frozen=True)
class DoomConfig:
    """A scenario and how it is recorded.

    Attributes:
      scenario: name of one that the wheel carries, such as ``health_gathering``.
      size: height and width of a frame.
      frame_skip: tics per recorded frame; 35 / ``frame_skip`` frames a second.
      hud: draw the status bar at the bottom.
      max_frames: episodes are cut here, or by the scenario's own time limit.
    """

    scenario: str = "health_gathering"
    size: int = 64
    frame_skip: int = 4
    hud: bool = False
    max_frames: int = 1000

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 120 or self.frame_skip < 1 or self.max_frames < 2:
            raise ValueError(
                f"DoomConfig: size {self.size}, frame_skip {self.frame_skip}, max_frames {self.max_frames}; "
                "size goes from 8 to 120, the others from 1 and 2."
            )

    @property
    def fps(self) -> float:
        """Recorded frames per second of play."""
        return TICS / self.frame_skip


def _vizdoom() -> Any:
    try:
        import vizdoom
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Doom needs vizdoom ({error}); install it with: pip install 'vizdoom<2'"
        ) from error
    return vizdoom


def scenarios() -> tuple[str, ...]:
    """Names of the scenarios for one player that the installed ViZDoom carries.

    Raises:
      ModuleNotFoundError: the ``doom`` extra is missing.
    """
    found = Path(_vizdoom().scenarios_path).glob("*.cfg")
    return tuple(sorted(path.stem for path in found if path.stem not in NOT_ALONE + NOT_CARRIED))


@contextlib.contextmanager
def open_game(config: DoomConfig) -> Iterator[Any]:
    """The engine with the scenario loaded and started, tic by tic, hidden, silent; closed at the end.

    Raises:
      ModuleNotFoundError: the ``doom`` extra is missing.
      ValueError: no such scenario; those that exist are listed.
    """
    vizdoom, known = _vizdoom(), scenarios()
    if config.scenario not in known:
        why = " (for several players)" if config.scenario in NOT_ALONE else ""
        raise ValueError(f"No scenario {config.scenario!r}{why}; ViZDoom carries {', '.join(known)}.")
    game = vizdoom.DoomGame()
    litter = Path("_vizdoom")  # an empty folder that the engine makes where the user is
    ours = not litter.exists()
    with tempfile.TemporaryDirectory() as folder:
        game.set_doom_config_path(str(Path(folder) / "engine.ini"))
        game.load_config(str(Path(vizdoom.scenarios_path) / f"{config.scenario}.cfg"))
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_audio_buffer_enabled(False)
        game.set_automap_buffer_enabled(False)
        game.set_render_hud(config.hud)
        game.set_render_messages(config.hud)
        game.set_labels_buffer_enabled(True)
        game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in VARIABLES])
        try:
            game.init()
            yield game
        finally:
            game.close()
            if ours:
                with contextlib.suppress(OSError):
                    litter.rmdir()


def actions_of(buttons: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The buttons pressed by each action: none, each sensible one alone, forward with each turn.

    ::

        move_left move_right attack  ->  () (move_left) (move_right) (attack)
    """
    alone = tuple((name,) for name in BUTTONS if name in buttons)
    return ((), *alone, *(pair for pair in PAIRS if set(pair) <= set(buttons)))


def action_names(config: DoomConfig) -> tuple[str, ...]:
    """Names of the scenario's actions, in the order of their integers."""
    with open_game(config) as game:
        table = actions_of(_buttons(game))
    return tuple("+".join(pressed) or "noop" for pressed in table)


def _buttons(game: Any) -> tuple[str, ...]:
    return tuple(button.name.lower() for button in game.get_available_buttons())


class Player:
    """A policy at play: chooses actions from its own random generator and from where it stands."""

    def __init__(self, policy: Wander, table: tuple[tuple[str, ...], ...], rng: np.random.Generator) -> None:
        self._policy, self._table, self._rng = policy, table, rng
        self._turns = [i for i, pressed in enumerate(table) if pressed and set(pressed) <= set(TURNS)]
        self._forward = [i for i, pressed in enumerate(table) if "move_forward" in pressed]
        self._held, self._left, self._walked = 0, 0, 0
        self._last = np.full(2, np.inf)

    def act(self, player: Float[np.ndarray, "3"]) -> int:
        """The next action, given the player's place ``x, y, angle`` in the present frame."""
        step = np.hypot(*(player[:2] - self._last))
        self._last = player[:2].copy()
        walks = self._held in self._forward
        self._walked = self._walked + 1 if walks else 0
        if walks and self._walked > 2 and step < 5 and self._turns:  # a wall: 13 to 30 units where it is free
            self._hold(self._turns, float(self._rng.uniform(4, 14)))
        if self._left == 0:
            ahead = bool(self._forward) and self._rng.random() < self._policy.forward
            self._hold(self._forward if ahead else list(range(len(self._table))), self._policy.hold)
        self._left -= 1
        return self._held

    def _hold(self, choice: list[int], frames: float) -> None:
        self._held = choice[int(self._rng.integers(len(choice)))]
        self._left = int(self._rng.geometric(1 / frames))


def episodes(
    config: DoomConfig,
    mix: Mix,
    *,
    frames: int,
    seed: int,
    names: list[str],
) -> Iterator[Episode]:
    """Play until ``frames`` frames are recorded (the last episode is cut there).

    The policy whose frames lag most behind its share plays next.

    Args:
      names: of objects, to which those not seen before are added as they appear.

    Yields:
      Episodes with ``rewards`` float32 ``[t]`` (of arriving at the frame), ``ends`` bool ``[t]`` (True
      on the last frame before the game ended, never where it was cut), ``player`` float32 ``[t 3]`` (x, y
      in map units, angle in degrees), ``health`` float32 ``[t]``, ``objects`` int32 ``[t 16 2]`` (place
      in ``names``, id within the episode; -1 where there is none) and ``boxes`` float32 ``[t 16 4]``
      (left, top, right, bottom in pixels of the frame; NaN where there is none), largest first.
    """
    with open_game(config) as game:
        buttons = _buttons(game)
        table = actions_of(buttons)
        shares = np.array([share for _, share in mix]) / sum(share for _, share in mix)
        played = np.zeros(len(mix))
        left, index = frames, 0
        while left >= 2:
            key = seed * 1_000_003 + index
            rng = np.random.default_rng(key)
            turn = int(np.argmax(shares * (played.sum() + config.max_frames) - played))
            policy = mix[turn][0]
            game.set_seed(int(rng.integers(2**31)))
            game.new_episode()
            camera = _Camera(config, names)
            limit = min(left, config.max_frames)
            actions = _play(game, Player(policy, table, rng), camera, limit, _presses(buttons, table))
            rows = camera.arrays()
            pictures = rows.pop("frames")
            played[turn] += len(pictures)
            left, index = left - len(pictures), index + 1
            yield Episode(pictures, actions, rows, seed=key, policy=policy.name)


def _presses(buttons: tuple[str, ...], table: tuple[tuple[str, ...], ...]) -> list[list[int]]:
    return [[int(name in pressed) for name in buttons] for pressed in table]


class _Camera:
    """What one episode showed, frame by frame, and at which rate."""

    def __init__(self, config: DoomConfig, names: list[str]) -> None:
        self._size, self.skip, self._names = config.size, config.frame_skip, names
        self._rows: dict[str, list[Any]] = {}

    def take(self, state: Any, reward: float) -> None:
        """Record the present frame and the reward of arriving at it."""
        objects, boxes = self._labels(state)
        variables = np.asarray(state.game_variables, np.float32)
        rows = {
            "frames": self._picture(state.screen_buffer), "rewards": reward, "ends": False,
            "player": variables[:3], "health": variables[3], "objects": objects, "boxes": boxes,
        }  # fmt: skip
        for name, row in rows.items():
            self._rows.setdefault(name, []).append(row)

    def end(self, reward: float, *, over: bool) -> None:
        """The game stopped after the last frame, at its own end or at its time limit."""
        self._rows["rewards"][-1] += reward
        self._rows["ends"][-1] = over

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows by name."""
        kinds = {"rewards": np.float32, "ends": bool, "health": np.float32}
        return {name: np.asarray(rows, kinds.get(name)) for name, rows in self._rows.items()}

    def _picture(self, screen: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        from PIL import Image

        small = Image.fromarray(screen).resize((self._size, self._size), Image.Resampling.BOX)
        return np.asarray(small)

    def _labels(self, state: Any) -> tuple[Int32[np.ndarray, "n 2"], Float32[np.ndarray, "n 4"]]:
        """The largest labelled things but the player's own body, those of equal size by id."""
        objects = np.full((OBJECTS, 2), -1, np.int32)
        boxes = np.full((OBJECTS, 4), np.nan, np.float32)
        height, width = state.screen_buffer.shape[:2]
        scale = np.array([self._size / width, self._size / height] * 2)
        seen = [label for label in state.labels if label.object_category != "Self"]
        seen.sort(key=lambda label: (-label.width * label.height, label.object_id))
        for row, label in enumerate(seen[:OBJECTS]):
            if label.object_name not in self._names:
                self._names.append(label.object_name)
            objects[row] = self._names.index(label.object_name), label.object_id
            left, top = label.x, label.y
            boxes[row] = np.array([left, top, left + label.width, top + label.height]) * scale
        return objects, boxes


def _play(
    game: Any, player: Player, camera: _Camera, limit: int, presses: list[list[int]]
) -> Int32[np.ndarray, "t"]:
    """One episode of at most ``limit`` frames, recorded by the camera; its actions."""
    state, actions, reward = game.get_state(), [-1], 0.0
    camera.take(state, reward)
    while len(actions) < limit:
        action = player.act(np.asarray(state.game_variables[:3]))
        reward = game.make_action(presses[action], camera.skip)
        state = game.get_state()
        if state is None:
            camera.end(reward, over=not game.is_episode_timeout_reached() or game.is_player_dead())
            break
        camera.take(state, reward)
        actions.append(action)
    return np.array(actions, np.int32)
