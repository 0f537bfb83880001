"""A world as a Gymnasium environment, alone or many at once.

Observations are frames; actions are the world's own. Where the world tells rewards and ends
(``DynamicsConfig.outcomes``), the reward is what it expects of the step, and an episode terminates where an
end is likelier than not; else rewards are 0 and no episode ends by itself. What is random, the clip that an
episode begins with and all draws, comes from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldsim.generate.extend import World
from worldsim.generate.simulate import Simulator, SimulatorState, graft
from worldsim.types import Clip
from worldsim.worlds import clips as bundled_clips


class _Source:
    """A simulator and the clips that episodes begin with."""

    def __init__(
        self,
        world: World | str | Path,
        clips: Sequence[Clip] | None,
        known: int | None,
        options: dict[str, Any],
    ):
        self.world = world if isinstance(world, World) else World.load(world)
        config = self.world.config
        if config.tokenizer.frames_per_chunk != 1 or config.dynamics.action.kind == "none":
            raise ValueError(
                f"WorldEnv: the world makes {config.tokenizer.frames_per_chunk} frames at a time and takes "
                f"{config.dynamics.action.kind} actions; an environment needs one frame and an action a "
                "step. Use worldsim.Simulator."
            )
        if clips is None:
            if isinstance(world, World):
                raise ValueError("WorldEnv: no clips to begin with; give clips=[...].")
            clips = bundled_clips(str(world))
        most = config.dynamics.context if known is None else known
        if most < 1 or options.get("render") == "codes":
            raise ValueError(
                f"WorldEnv: known={known}, render={options.get('render')!r}; know 1 frame or more, and draw "
                "frames (render='decode' or 'refine'): they are what is observed."
            )
        self.clips = [clip[:most] for clip in clips]
        short = min((len(clip) for clip in self.clips), default=0)
        if short < 1:
            raise ValueError(f"WorldEnv: {len(self.clips)} clips, the shortest of {short} frames; give some.")
        self.clips = [clip[len(clip) - short :] for clip in self.clips]
        self.simulator = Simulator(self.world, **options)
        action, tokenizer = config.dynamics.action, config.tokenizer
        size = (tokenizer.height, tokenizer.width, tokenizer.channels)
        self.observations = spaces.Box(0, 255, size, np.uint8)
        self.actions = (
            spaces.Discrete(action.size)
            if action.kind == "discrete"
            else spaces.Box(-np.inf, np.inf, (action.size,), np.float32)
        )
        self.fps = config.fps

    def begin(self, rng: np.random.Generator, count: int, options: dict[str, Any] | None):
        """A state of so many worlds, their last frames ``[count h w c]``, and which clips they began with."""
        picked = (options or {}).get("clip")
        which = rng.integers(len(self.clips), size=count) if picked is None else np.full(count, picked)
        if not np.all((which >= 0) & (which < len(self.clips))):
            raise ValueError(f"reset: clip {picked}; there are {len(self.clips)}, from 0.")
        chosen = [self.clips[i] for i in which]
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), count)
        return self.simulator.reset(chosen, keys), np.stack([clip.frames[-1] for clip in chosen]), which


def _outcomes(state: SimulatorState, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards ``[count]`` of the latest step, and whether the episodes ended with it."""
    rewards = np.zeros(count) if state.rewards is None else np.asarray(state.rewards, np.float64)
    over = np.zeros(count, bool) if state.ends is None else np.asarray(state.ends) > 0.5
    return rewards, over


class WorldEnv(gymnasium.Env):
    """One world. ``reset(options={"clip": i})`` begins with clip i."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(
        self,
        world: World | str | Path = "pong",
        *,
        clips: Sequence[Clip] | None = None,
        known: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ):
        """Load the world.

        Args:
          world: a world, its folder or a bundled name.
          clips: what episodes begin with; None is the clips that come with a bundled world.
          known: frames of them; None is as many as the world can see.
          render_mode: ``rgb_array``, or None.
          options: of :class:`worldsim.Simulator`: ``steps``, ``temperature``, ``refine_steps``,
            ``stabilize``, ``guidance``, ``doubt``, ``leads``, ``revisions``, ``sinks``.

        Raises:
          ValueError: a world that takes no action a frame, no clips, or a render mode that there is not.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"WorldEnv: render_mode {render_mode!r}; take 'rgb_array' or None.")
        self._source = _Source(world, clips, known, options)
        self.observation_space, self.action_space = self._source.observations, self._source.actions
        self.metadata = self.metadata | {"render_fps": self._source.fps or 15}
        self.render_mode = render_mode
        self._state: Any = None
        self._frame: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin with a clip; the observation is its last frame."""
        super().reset(seed=seed)
        self._state, frames, which = self._source.begin(self.np_random, 1, options)
        self._frame = frames[0]
        return frames[0].copy(), {"clip": int(which[0])}

    def step(self, action: Any):
        """The frame that the action leads to."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("WorldEnv: call reset before step.")
        self._state, frames = self._source.simulator.step(self._state, np.asarray(action)[None])
        self._frame = np.array(frames[0, 0])
        rewards, over = _outcomes(self._state, 1)
        return self._frame.copy(), float(rewards[0]), bool(over[0]), False, {}

    def render(self) -> np.ndarray | None:
        """The last frame, RGB."""
        if self.render_mode is None or self._frame is None:
            return None
        return np.broadcast_to(self._frame, (*self._frame.shape[:2], 3)).copy()


class WorldVectorEnv(VectorEnv):
    """Many worlds in one program. One that ended or was truncated begins anew with its next step."""

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"], "render_fps": 15, "autoreset_mode": AutoresetMode.NEXT_STEP,
    }  # fmt: skip

    def __init__(
        self,
        num_envs: int = 1,
        world: World | str | Path = "pong",
        *,
        clips: Sequence[Clip] | None = None,
        known: int | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **options: Any,
    ):
        """Load the world; the other arguments are those of :class:`WorldEnv`.

        Args:
          num_envs: how many worlds.
          world, clips, known, render_mode, options: see there.
          max_episode_steps: after which all are truncated; None is never.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"WorldVectorEnv: render_mode {render_mode!r}; take 'rgb_array' or None.")
        self._source = _Source(world, clips, known, options)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space, self.single_action_space = (
            self._source.observations,
            self._source.actions,
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = self.metadata | {"render_fps": self._source.fps or 15}
        self._limit = max_episode_steps
        self._count, self._over = np.zeros(num_envs, int), np.zeros(num_envs, bool)
        self._state: Any = None
        self._frames: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin each world with a clip; observations are the clips' last frames."""
        super().reset(seed=seed)
        self._state, self._frames, which = self._source.begin(self.np_random, self.num_envs, options)
        self._count, self._over = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        return self._frames.copy(), {"clip": which, "_clip": np.ones(self.num_envs, bool)}

    def step(self, actions: Any):
        """The frames that the actions lead to; of worlds that were over, those of a new beginning."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("WorldVectorEnv: call reset before step.")
        again, info = self._over, {}
        if again.all():
            frames, info = self.reset()
            return self._answer(frames, np.zeros(self.num_envs), again & False, info)
        self._state, frames = self._source.simulator.step(self._state, np.asarray(actions))
        frames, self._count = np.array(frames[:, 0]), self._count + 1
        rewards, ended = _outcomes(self._state, self.num_envs)
        if again.any():
            which = np.zeros(self.num_envs, int)
            for i in np.flatnonzero(again):  # one at a time: a shape that is compiled once
                state, fresh, which[i : i + 1] = self._source.begin(self.np_random, 1, None)
                self._state = graft(self._state, state, np.arange(self.num_envs) == i)
                frames[i] = fresh[0]
            self._count[again] = 0
            rewards, ended = np.where(again, 0.0, rewards), ended & ~again
            info = {"clip": which, "_clip": again}
        return self._answer(frames, rewards, ended, info)

    def _answer(
        self, frames: np.ndarray, rewards: np.ndarray, ended: np.ndarray, info: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """What :meth:`step` returns; who is over is remembered."""
        late = self._count >= (np.inf if self._limit is None else self._limit)
        self._frames, self._over = frames, ended | late
        return frames.copy(), rewards, ended, late, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The last frame of each world, RGB."""
        if self.render_mode is None or self._frames is None:
            return None
        return tuple(np.broadcast_to(frame, (*frame.shape[:2], 3)).copy() for frame in self._frames)
