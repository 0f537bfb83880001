"""Laws of the simulator: it is the rollout, step by step; pure; each world of a batch is alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from test_law_refusals import unchecked

import worldsim
from worldsim.generate import simulate
from worldsim.generate.options import is_key
from worldsim.generate.render import render, tokenize
from worldsim.generate.standing import save_standing
from worldsim.types import Clip

STEPS = 9
"""More than the cache has slots beside what is given."""


def walk(sim, state, actions):
    """What each step answers with, and the last state."""
    seen = []
    for action in actions:
        state, shown = sim.step(state, action)
        seen.append(np.asarray(shown))
    return state, np.stack(seen)


@pytest.mark.parametrize("which", ["world", "pair_world"])
@pytest.mark.parametrize("known", [2, 8])
def test_steps_draw_the_codes_of_a_rollout(request, which, known):
    world = request.getfixturevalue(which)
    f = world.config.tokenizer.frames_per_chunk
    clip, actions = tiny.make_clip(known), tiny.make_clip(f * STEPS, seed=3).actions
    key = jax.random.key(7)
    whole = world.extend(clip, f * STEPS, actions=actions, key=key, steps=4)
    sim = worldsim.Simulator(world, steps=4, render="codes")
    state, codes = walk(sim, sim.reset(clip, key), actions.reshape(STEPS, 1, f))
    np.testing.assert_array_equal(codes[:, 0], whole.codes)
    assert float(state.time) == whole.times[-1] + f
    free = world.extend(clip, f * 2, key=key, steps=4)
    np.testing.assert_array_equal(walk(sim, sim.reset(clip, key), [None] * 2)[1][:, 0], free.codes)


def test_frames_are_drawn_beside_those_before_them(world):
    """The same frames as a rendering that streams, whatever lies before: nothing, a chunk, or more."""
    for known in (1, 2, 5):
        clip = tiny.make_clip(known, actions=False)
        sim = worldsim.Simulator(world, steps=1)
        told = worldsim.Simulator(world, steps=1, render="codes")
        _, frames = walk(sim, sim.reset(clip), [None] * 3)
        _, codes = walk(told, told.reset(clip), [None] * 3)
        given = tokenize(*world.tokenizer, clip.frames[None], frames_per_chunk=1)
        every = np.concatenate([given, codes.swapaxes(0, 1)], axis=1)
        key = jax.random.key(0)[None]
        times = np.arange(every.shape[1], dtype=np.float32)
        want = render(world.renderer, every, times, key, refine_steps=4, window="streaming")
        assert frames.shape == (3, 1, 1, 16, 16, 3) and frames.dtype == np.uint8
        apart = frames[:, 0, 0].astype(int) - want[0, known:].astype(int)
        assert np.abs(apart).max() <= 1


def test_a_state_can_be_stepped_from_twice(world):
    sim = worldsim.Simulator(world, steps=4, render="codes")
    start = sim.reset(tiny.make_clip(4), jax.random.key(1))
    middle, _ = walk(sim, start, [np.array([1])] * 2)
    copy = jax.tree.map(lambda x: x, middle)
    _, left = walk(sim, middle, [np.array([1])] * 3)
    _, right = walk(sim, middle, [np.array([2])] * 3)
    assert (left != right).any()
    np.testing.assert_array_equal(walk(sim, copy, [np.array([1])] * 3)[1], left)
    np.testing.assert_array_equal(walk(sim, start, [np.array([1])] * 5)[1][2:], left)


def test_each_world_of_a_batch_is_alone_and_all_steps_are_one_program(world):
    sim = worldsim.Simulator(world, steps=4, render="codes")
    clips = [tiny.make_clip(5, seed=i) for i in range(3)]
    keys, actions = jax.random.split(jax.random.key(2), 3), np.arange(3 * STEPS).reshape(STEPS, 3) % 3
    before = simulate._step._cache_size()
    _, together = walk(sim, sim.reset(clips, keys), actions)
    assert simulate._step._cache_size() == before + 1
    np.testing.assert_array_equal(walk(sim, sim.reset(clips, jax.random.key(2)), actions)[1], together)
    seen = worldsim.Simulator(world, steps=2)
    assert seen.step(seen.reset(clips), np.array([0, 1, 2]))[1].shape == (3, 1, 16, 16, 3)
    for i, clip in enumerate(clips):
        _, alone = walk(sim, sim.reset(clip, keys[i]), actions[:, i : i + 1])
        np.testing.assert_array_equal(alone[:, 0], together[:, i])


def test_what_a_simulator_cannot_take_is_refused(world, pair_world):
    sim = worldsim.Simulator(world)
    state = sim.reset(tiny.make_clip(3))
    for wrong, said in (
        (np.array([0, 1]), r"\[2\]; give \[1\]"),
        (np.array([7]), "actions go from 7 to 7"),
        (np.array([0.5]), "give integers"),
    ):
        with pytest.raises(ValueError, match=said):
            sim.step(state, wrong)
    with pytest.raises(ValueError, match=r"\[1\]; give \[1, 2\]"):
        pair = worldsim.Simulator(pair_world)
        pair.step(pair.reset(tiny.make_clip(4)), np.array([1]))
    with pytest.raises(ValueError, match="equally many chunks"):
        sim.reset([tiny.make_clip(3), tiny.make_clip(4)])
    with pytest.raises(ValueError, match="2 keys for 1 clips"):
        sim.reset(tiny.make_clip(3), jax.random.split(jax.random.key(0)))
    with pytest.raises(ValueError, match="no clips"):
        sim.reset([])
    with pytest.raises(ValueError, match="Simulator: render 'frame'; take one of codes, decode, refine"):
        unchecked(worldsim.Simulator.__init__)(sim, world, render="frame")
    with pytest.raises(ValueError, match="render 'decode' with refine_steps 2; leave one of them out"):
        worldsim.Simulator(world, render="decode", refine_steps=2)
    with pytest.raises(ValueError, match="this world has no refinement head"):
        worldsim.Simulator(dataclasses.replace(world, refine=None), render="refine")
    for key in (0, jax.random.PRNGKey(0)):
        with pytest.raises(TypeError, match=r"no typed key; give jax\.random\.key\(0\)"):
            unchecked(simulate._keys)(key, 1)
    with pytest.raises(ValueError, match="frames are 8x8"):
        sim.reset(Clip(np.zeros((3, 8, 8, 3), np.uint8)))


def test_steps_can_be_traced(world):
    sim = worldsim.Simulator(world, steps=1, render="codes")
    start, actions = sim.reset(tiny.make_clip(4)), jax.numpy.asarray([[1], [2], [0]])
    _, together = jax.lax.scan(sim.step, start, actions)
    np.testing.assert_array_equal(together, walk(sim, start, np.asarray(actions))[1])


def test_a_world_without_actions_runs_free():
    world = tiny.make_world(tiny.config(action=tiny.ActionConfig()))
    sim = worldsim.Simulator(world, steps=1, render="codes")
    state = sim.reset(tiny.make_clip(3, actions=False))
    _, codes = sim.step(state)
    np.testing.assert_array_equal(
        codes[0], world.extend(tiny.make_clip(3, actions=False), 1, steps=1).codes[0]
    )
    with pytest.raises(ValueError, match="takes no actions"):
        sim.step(state, np.array([1]))


def test_a_state_is_arrays_alone(world):
    leaves = jax.tree.leaves(worldsim.Simulator(world).reset(tiny.make_clip(3)))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_a_saved_state_goes_on_to_the_same_bits(world, tmp_path):
    sim = worldsim.Simulator(world, steps=2, refine_steps=2)
    state = sim.reset([tiny.make_clip(3), tiny.make_clip(3, seed=1)], jax.random.key(7))
    for _ in range(4):  # past the window of the cache
        state, _ = sim.step(state, np.array([1, 2]))
    back = sim.load(sim.save(tmp_path / "state", state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for frames in zip(*(sim.step(one, np.array([0, 1])) for one in (state, back)), strict=True):
        for a, b in zip(*map(jax.tree.leaves, frames), strict=True):
            np.testing.assert_array_equal(*(jax.random.key_data(x) if is_key(x) else x for x in (a, b)))


def test_a_file_of_something_else_is_no_state(world, tmp_path):
    sim = worldsim.Simulator(world, steps=1)
    with pytest.raises(FileNotFoundError, match="a simulator never stood here"):
        sim.load(tmp_path / "state")
    (tmp_path / "state").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not where a simulator stood"):
        sim.load(tmp_path / "state")
    other = worldsim.Simulator(tiny.make_world(tiny.config(context=4)), steps=1)
    other.save(tmp_path / "state", other.reset(tiny.make_clip(3)))
    with pytest.raises(ValueError, match="of another world stood"):
        sim.load(tmp_path / "state")
    weights = [dataclasses.replace(world, provenance={"weights_sha256": name}) for name in "ab"]
    first, second = (worldsim.Simulator(one, steps=1) for one in weights)
    first.save(tmp_path / "new" / "state", first.reset(tiny.make_clip(3)))
    first.load(tmp_path / "new" / "state")
    with pytest.raises(ValueError, match="of another world stood"):
        second.load(tmp_path / "new" / "state")
    standing = world.rollout(tiny.make_clip(3), 4, steps=1)
    next(standing)
    save_standing(tmp_path / "state", standing.standing())
    with pytest.raises(ValueError, match="it has no .*latents"):
        sim.load(tmp_path / "state")


def test_what_was_stepped_in_codes_is_drawn_as_if_it_had_been_drawn_all_along(world):
    drawn, coded = (worldsim.Simulator(world, steps=1, render=how) for how in ("decode", "codes"))
    states = [one.reset(tiny.make_clip(3), jax.random.key(1)) for one in (drawn, coded)]
    for _ in range(3):
        states = [one.step(s, np.array([1]))[0] for one, s in zip((drawn, coded), states, strict=True)]
    frames = [drawn.step(state, np.array([2]))[1] for state in states]
    np.testing.assert_array_equal(*frames)


def test_keys_of_another_kind_are_taken(world):
    """Their draws are others; at temperature 0 there are none."""
    keys = [jax.random.key(0), jax.random.key(0, impl="rbg")]
    for temperature in (0.0, 1.0):
        how = {"steps": 1, "temperature": temperature, "refine_steps": 0}
        made = [world.extend(tiny.make_clip(3), 2, key=key, **how).clip.frames for key in keys]
        assert np.array_equal(*made) == (temperature == 0)
        sim = worldsim.Simulator(world, **how)
        frames = [sim.step(sim.reset(tiny.make_clip(3), key))[1] for key in keys]
        assert np.array_equal(*frames) == (temperature == 0)
