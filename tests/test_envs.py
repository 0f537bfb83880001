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


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "rgb_array"])
def test_gymnasiums_checker_is_content_with_pong_and_its_pictures(mode):
    """No warning either; it makes the environment anew from its spec, in each of its render modes."""
    from gymnasium.utils.env_checker import check_env

    gymnasium.register_envs(importlib.import_module("worldsim.envs"))
    made = gymnasium.make("worldsim/Pong-v0", render_mode=mode, known=4, steps=1, refine_steps=0)
    assert made.spec is not None and made.metadata["render_modes"] == ["rgb_array"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(made.unwrapped)


def vectors(count, **options):
    """What Gymnasium makes of ``worldsim/Pong-v0`` for many at once."""
    gymnasium.register_envs(importlib.import_module("worldsim.envs"))
    how = {"render_mode": "rgb_array", "steps": 1, "refine_steps": 0}
    return gymnasium.make_vec("worldsim/Pong-v0", num_envs=count, **how | options)


def run_of(many, seed, actions):
    """Frames and clips from a beginning with a seed, and from the next one without."""
    found, info = many.reset(seed=seed)
    frames, clips = [found], [info["clip"]]
    for action in actions:
        frames.append(many.step(action)[0])
    found, info = many.reset()
    return np.stack([*frames, found, many.step(actions[0])[0]]), np.stack([*clips, info["clip"]])


@pytest.mark.parametrize("which", ["tiny", pytest.param("pong", marks=pytest.mark.slow)])
def test_gymnasium_makes_many_that_step_render_and_follow_their_seed(request, which):
    from worldsim.envs.world import WorldVectorEnv

    options = {"known": 4}
    if which == "tiny":
        options = {"world": request.getfixturevalue("world"), "clips": CLIPS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many, other = vectors(3, **options), vectors(3, **options)
    assert isinstance(many, WorldVectorEnv) and many.num_envs == 3
    assert many.spec is not None and many.spec.id == "worldsim/Pong-v0"
    assert many.action_space == gymnasium.vector.utils.batch_space(many.single_action_space, 3)
    assert many.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP
    many.action_space.seed(0)
    actions = [many.action_space.sample() for _ in range(3)]
    frames, clips = run_of(many, 5, actions)
    for found in frames:
        assert many.observation_space.contains(found)
    pictures = many.render()
    assert isinstance(pictures, tuple) and len(pictures) == 3
    for picture, frame in zip(pictures, frames[-1], strict=True):
        assert picture.dtype == np.uint8 and picture.shape == (*frame.shape[:2], 3)
        np.testing.assert_array_equal(picture, np.broadcast_to(frame, picture.shape))
    for again in (many, other):  # whatever went before, and in another of its kind
        same, began = run_of(again, 5, actions)
        np.testing.assert_array_equal(same, frames)
        np.testing.assert_array_equal(began, clips)
    assert (run_of(other, 6, actions)[0] != frames).any()
    assert (clips[0] != clips[1]).any() or (frames[-1] != frames[1]).any()  # reset without a seed goes on
    assert vectors(1, **options | {"render_mode": None}).render() is None
    if which == "tiny":  # one clip and one action, and each world draws for itself
        many.reset(seed=5, options={"clip": 1})
        drawn = many.step(np.zeros(3, int))[0]
        assert all((drawn[i] != drawn[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
    for env in (many, other):
        env.close()


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
    for options in ({"known": 0}, {"known": -1}, {"render": "codes"}):
        with pytest.raises(ValueError, match="know 1 frame or more, and draw frames"):
            WorldEnv(world, clips=CLIPS, **options)
    with pytest.raises(ValueError, match="render_mode 'human'"):
        WorldEnv(world, clips=CLIPS, render_mode="human")
    with pytest.raises(ValueError, match="clip 7; there are 3"):
        env.reset(options={"clip": 7})
    for fresh, action in ((WorldEnv(world, clips=CLIPS), 0), (make_many(), np.zeros(3, int))):
        with pytest.raises(gymnasium.error.ResetNeeded):
            fresh.step(action)
