"""Worlds as Gymnasium environments: its own checkers, seeds, what is drawn, and what is refused."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import tiny

import worldsim

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra gym")

CLIPS = [tiny.make_clip(length, seed=length) for length in (5, 6, 9)]
LAST = [4, 5, 5]
"""What an episode has seen last: the world sees six chunks."""


@pytest.fixture
def env(world):
    from worldsim.envs.world import WorldEnv

    return WorldEnv(world, clips=CLIPS, steps=1, refine_steps=0, render_mode="rgb_array")


@pytest.fixture
def make_many(world):
    from worldsim.envs.world import WorldVectorEnv

    return lambda **options: WorldVectorEnv(3, world, clips=CLIPS, steps=1, refine_steps=0, **options)


def test_gymnasium_finds_the_bundled_worlds():
    gymnasium.register_envs(importlib.import_module("worldsim.envs"))
    spec = gymnasium.spec("worldsim/Pong-v0")
    assert spec.kwargs == {"world": "pong"}
    assert spec.entry_point == "worldsim.envs.world:WorldEnv"
    assert spec.vector_entry_point == "worldsim.envs.world:WorldVectorEnv"


def test_gymnasiums_checker_is_content(env):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*is not within the allowed|.*different from the unwrapped.*"
        )
        check_env(env, skip_render_check=True)


def test_the_frames_are_those_of_the_simulator(env, world):
    first, info = env.reset(seed=3, options={"clip": 1})
    assert info == {"clip": 1}
    np.testing.assert_array_equal(first, CLIPS[1].frames[-1])
    frames = []
    for action in (1, 2, 0):
        frame, reward, over, cut, _ = env.step(action)
        np.testing.assert_array_equal(env.render(), frame)
        frames.append(frame)
        assert (reward, over, cut) == (0.0, False, False)
    again, _ = env.reset(seed=3, options={"clip": 1})
    np.testing.assert_array_equal(again, first)
    for frame, action in zip(frames, (1, 2, 0), strict=True):
        np.testing.assert_array_equal(env.step(action)[0], frame)
    sim = worldsim.Simulator(world, steps=1, refine_steps=0)
    state, _, _ = env._source.begin(np.random.default_rng(np.random.SeedSequence(3)), 1, {"clip": 1})
    for frame, action in zip(frames, (1, 2, 0), strict=True):
        state, shown = sim.step(state, np.array([action]))
        np.testing.assert_array_equal(shown[0, 0], frame)
    env.reset(seed=3, options={"clip": 1})
    assert any((env.step(2)[0] != frame).any() for frame in frames)
    assert again.flags.writeable and env.step(0)[0].flags.writeable
    others = {env.reset(seed=seed)[1]["clip"] for seed in range(20)}
    assert others == {0, 1, 2}


def test_many_worlds_step_as_one(make_many):
    many = make_many(max_episode_steps=2)
    first, info = many.reset(seed=1)
    assert first.shape == (3, 16, 16, 3) and many.observation_space.contains(first)
    assert info["clip"].shape == (3,)
    actions = np.array([0, 1, 2])
    one = many.step(actions)
    two = many.step(actions)
    assert many.observation_space.contains(two[0])
    assert not one[3].any() and two[3].all() and not two[2].any()
    anew, rewards, ended, cut, info = many.step(actions)
    assert "clip" in info and not cut.any() and not ended.any() and not rewards.any()
    np.testing.assert_array_equal(anew, np.stack([CLIPS[i].frames[LAST[i]] for i in info["clip"]]))
    again = make_many()
    again.reset(seed=1)
    np.testing.assert_array_equal(again.step(actions)[0], one[0])
    np.testing.assert_array_equal(again.step(actions)[0], two[0])


def test_what_is_no_environment_is_refused(pair_world, world, env, make_many):
    from worldsim.envs.world import WorldEnv

    with pytest.raises(ValueError, match="2 frames at a time"):
        WorldEnv(pair_world, clips=CLIPS)
    with pytest.raises(ValueError, match="no clips"):
        WorldEnv(world)
    with pytest.raises(ValueError, match="0 clips"):
        WorldEnv(world, clips=[])
    with pytest.raises(ValueError, match="render_mode 'human'"):
        WorldEnv(world, clips=CLIPS, render_mode="human")
    with pytest.raises(ValueError, match="clip 7; there are 3"):
        env.reset(options={"clip": 7})
    for fresh, action in ((WorldEnv(world, clips=CLIPS), 0), (make_many(), np.zeros(3, int))):
        with pytest.raises(gymnasium.error.ResetNeeded):
            fresh.step(action)
