"""Rewards and ends judged on true frames."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.evaluate.held_out import HeldOut, load_held_out
from worldsim.evaluate.outcomes import judge_ends, judge_rewards, outcomes
from worldsim.generate.render import tokenize
from worldsim.models.dynamics import Chunks
from worldsim.ops import twohot

REWARDS = np.array([0, 0, 1, 0, -1, 0, 0, 0], np.float32)
ENDS = np.array([0, 0, 1, 0, 0, 0, 0, 0], bool)


def logits_of(rewards, least=1e-9):
    return np.log(np.asarray(twohot.two_hot(jnp.asarray(rewards, jnp.float32))) + least)


@pytest.mark.law
def test_who_knows_all_finds_all_and_pays_next_to_nothing():
    told = judge_rewards(logits_of(REWARDS), REWARDS)
    assert (told["chunks"], told["there"], told["found"], told["false"]) == (8, 2, 1.0, 0.0)
    assert told["nats"] < 1e-3 < told["base"]
    told = judge_ends(np.where(ENDS, 20.0, -20.0)[:, None], ENDS)
    assert (told["there"], told["found"], told["false"]) == (1, 1.0, 0.0)
    assert told["nats"] < 1e-3 < told["base"]


@pytest.mark.law
def test_who_knows_how_often_and_nothing_else_pays_the_base():
    shares = np.asarray(twohot.two_hot(jnp.asarray(REWARDS))).mean(0)
    told = judge_rewards(np.tile(np.log(np.maximum(shares, 1e-12)), (8, 1)), REWARDS)
    assert told["nats"] == pytest.approx(told["base"], rel=1e-4) and told["found"] == 0
    odds = np.full((8, 1), np.log(ENDS.mean() / (1 - ENDS.mean())))
    told = judge_ends(odds, ENDS)
    assert told["nats"] == pytest.approx(told["base"], rel=1e-5) and told["found"] == 0


def test_mistakes_are_counted_on_their_own_side():
    missed = REWARDS.copy()
    missed[2], missed[4], missed[7] = 0, 1, 1  # one missed, one of the wrong sign, one made up
    told = judge_rewards(logits_of(missed), REWARDS)
    assert told["found"] == 0 and told["false"] == pytest.approx(1 / 6)
    told = judge_ends(np.array([20.0, *[-20.0] * 7])[:, None], ENDS)
    assert told["found"] == 0 and told["false"] == pytest.approx(1 / 7)
    assert judge_ends(np.full((8, 1), -20.0), np.zeros(8, bool))["found"] is None


def held_of(*, frames, names=("rewards", "ends")):
    rng = np.random.default_rng(5)
    made = [tiny.make_clip(frames, seed=i) for i in range(3)]
    shown = np.stack([clip.frames for clip in made])
    values = {
        "rewards": rng.choice([-1.0, 0.0, 1.0], shown.shape[:2]).astype(np.float32),
        "ends": rng.random(shown.shape[:2]) < 0.3,
    }
    return HeldOut(
        frames=shown, actions=np.stack([clip.actions for clip in made]), truth={}, others=shown, episodes=3,
        train=None, median=shown[0, 0], known=frames - 2, horizon=2, info=None,
        outcomes={name: values[name] for name in names},
    )  # fmt: skip


@pytest.mark.law
def test_what_is_told_of_a_window_is_what_is_told_chunk_by_chunk():
    """Two pieces of four chunks of two frames; in the cache as a rollout has it."""
    config = tiny.config(frames_per_chunk=2, context=4, outcomes=("rewards", "ends"))
    world = tiny.make_world(config)
    held = held_of(frames=18)  # nine chunks: the last is of no piece
    model = nnx.merge(*world.dynamics)
    codes = tokenize(*world.tokenizer, held.frames, frames_per_chunk=2)
    actions = held.actions.reshape(3, 9, 2)
    logits = {"rewards": [], "ends": []}
    for window in range(3):
        for start in (0, 4):
            cache = model.empty_cache(1)
            for i in range(4):
                at = slice(start + i, start + i + 1)
                here = jnp.asarray(codes[window : window + 1, at], jnp.int32)
                led = jnp.asarray(actions[window : window + 1, at])
                ids, when = jnp.array([[[0, i, 0]]]), jnp.full((1, 1), 2.0 * i)
                one = Chunks(here, when, ids, jnp.zeros((1, 1)), led)
                _, told = model.enter_and_tell(one, model.past(cache, one))
                cache = model.commit(one, cache, jnp.array([i]))
                for name in logits if i else ():
                    logits[name].append(np.asarray(told[name][0, 0]))
    found = outcomes(world, held)
    pieces = lambda rows: rows.reshape(3, 9, 2)[:, :8].reshape(3, 2, 4, 2)[:, :, 1:].reshape(-1, 2)
    rewards = pieces(held.outcomes["rewards"]).sum(1)
    ends = pieces(held.outcomes["ends"]).any(1)
    want = {
        "rewards": judge_rewards(np.stack(logits["rewards"]), rewards),
        "ends": judge_ends(np.stack(logits["ends"]), ends),
    }
    assert found["rewards"]["chunks"] == 18
    for name, one in want.items():
        assert found[name] == pytest.approx(one, rel=1e-4), name


def test_only_what_both_have_is_judged():
    told = tiny.make_world(tiny.config(outcomes=("rewards",)))
    assert set(outcomes(told, held_of(frames=12))) == {"rewards"}
    assert outcomes(told, held_of(frames=12, names=("ends",))) is None
    silent = tiny.make_world(tiny.config())
    assert outcomes(silent, held_of(frames=12)) is None


def test_windows_carry_the_outcomes_of_the_data(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train/", "test/"):
        arrays[f"{split}frames"] = rng.integers(0, 256, (4, 30, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}actions"] = np.zeros((4, 30), np.int32)
        arrays[f"{split}rewards"] = np.tile(np.arange(30, dtype=np.float32), (4, 1))
        arrays[f"{split}lengths"] = np.full(4, 30)
    np.savez(tmp_path / "d.npz", **arrays)
    held = load_held_out(tmp_path / "d.npz", tiny.config(), clips=2, horizon=8)
    assert set(held.outcomes) == {"rewards"}
    rows = held.outcomes["rewards"]
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    assert rows.shape == held.frames.shape[:2]


def test_a_dead_world_is_compared_with_the_base():
    """A world that is sure of no reward pays more than the base where there are some."""
    config = tiny.config(outcomes=("rewards", "ends"))
    world = tiny.make_world(config)
    params = jax.tree.map(lambda x: x, world.dynamics[1])
    for name in ("rewards", "ends"):
        params["outcomes"]["down"][name]["kernel"][...] *= 0
    params["outcomes"]["down"]["rewards"]["bias"][...] = jnp.asarray(logits_of([0.0])[0])
    params["outcomes"]["down"]["ends"]["bias"][...] = jnp.array([-9.0])
    dead = dataclasses.replace(world, dynamics=(world.dynamics[0], params))
    for name, one in outcomes(dead, held_of(frames=12)).items():
        assert one["found"] == one["false"] == 0, name
        assert one["nats"] > one["base"], name
