"""Rewards and ends judged on true frames."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.evaluate.held_out import load_held_out
from worldsim.evaluate.outcomes import judge_ends, judge_rewards, outcomes
from worldsim.evaluate.run import Settings, evaluate, summary
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


def pieces_of(frames, *, names=("rewards", "ends"), count=3):
    """Pieces of noise."""
    rng = np.random.default_rng(5)
    made = [tiny.make_clip(frames, seed=i) for i in range(count)]
    shown = np.stack([clip.frames for clip in made])
    values = {
        "rewards": rng.choice([-1.0, 0.0, 1.0], shown.shape[:2]).astype(np.float32),
        "ends": rng.random(shown.shape[:2]) < 0.3,
    }
    actions = np.stack([clip.actions for clip in made])
    return {"frames": shown, "actions": actions} | {name: values[name] for name in names}


@pytest.mark.law
def test_what_is_told_of_a_piece_is_what_is_told_chunk_by_chunk():
    """Of chunks of two frames, in the cache as a rollout has it."""
    config = tiny.config(frames_per_chunk=2, context=4, outcomes=("rewards", "ends"))
    world, pieces = tiny.make_world(config), pieces_of(8)
    model = nnx.merge(*world.dynamics)
    codes = tokenize(*world.tokenizer, pieces["frames"], frames_per_chunk=2)
    actions = pieces["actions"].reshape(3, 4, 2)
    logits = {"rewards": [], "ends": []}
    for row in range(3):
        cache = model.empty_cache(1)
        for i in range(4):
            here = jnp.asarray(codes[row : row + 1, i : i + 1], jnp.int32)
            led = jnp.asarray(actions[row : row + 1, i : i + 1])
            ids, when = jnp.array([[[0, i, 0]]]), jnp.full((1, 1), 2.0 * i)
            one = Chunks(here, when, ids, jnp.zeros((1, 1)), led)
            _, told = model.enter_and_tell(one, model.past(cache, one))
            cache = model.commit(one, cache, jnp.array([i]))
            for name in logits if i else ():
                logits[name].append(np.asarray(told[name][0, 0]))
    found = outcomes(world, pieces)
    judged = lambda rows: rows.reshape(3, 4, 2)[:, 1:].reshape(-1, 2)
    want = {
        "rewards": judge_rewards(np.stack(logits["rewards"]), judged(pieces["rewards"]).sum(1)),
        "ends": judge_ends(np.stack(logits["ends"]), judged(pieces["ends"]).any(1)),
    }
    assert found["rewards"]["chunks"] == 9
    for name, one in want.items():
        assert found[name] == pytest.approx(one, rel=1e-4), name


def test_only_what_both_have_is_judged():
    told = tiny.make_world(tiny.config(outcomes=("rewards",)))
    assert set(outcomes(told, pieces_of(6))) == {"rewards"}
    assert outcomes(told, pieces_of(6, names=("ends",))) is None
    assert outcomes(told, {}) is None
    assert outcomes(tiny.make_world(tiny.config()), pieces_of(6)) is None


def test_rewards_are_judged_by_their_own_size():
    small, large = np.array([0, 0.1, 0, 0], np.float32), np.array([0, 100, 0, 0], np.float32)
    assert judge_rewards(logits_of(np.zeros(4)), small)["found"] == 0
    assert judge_rewards(logits_of(small), small)["found"] == 1
    assert judge_rewards(logits_of(0.95 * large), large)["found"] == 1
    assert judge_rewards(logits_of(small), large)["false"] == 0


def numbered(folder, *, length=30, episodes=6, ends=True):
    """Episodes whose frames show their episode and their number, whose rewards are both, and that end."""
    arrays = {}
    for split in ("train/", "test/"):
        frames = np.zeros((episodes, length, 16, 16, 3), np.uint8)
        frames[..., 0], frames[..., 1] = np.indices((episodes, length))[..., None, None]
        arrays[f"{split}frames"] = frames
        arrays[f"{split}actions"] = np.zeros((episodes, length), np.int32)
        arrays[f"{split}rewards"] = (100.0 * frames[:, :, 0, 0, 0] + frames[:, :, 0, 0, 1]).astype(np.float32)
        arrays[f"{split}lengths"] = np.full(episodes, length)
        if ends:
            arrays[f"{split}ends"] = np.arange(length) == np.full((episodes, 1), length - 1)
    np.savez(folder / "d.npz", **arrays)
    return folder / "d.npz"


def test_pieces_hold_the_ends_of_episodes_and_what_belongs_to_their_frames(tmp_path):
    config = tiny.config(context=6, outcomes=("rewards", "ends"))
    pieces = load_held_out(numbered(tmp_path), config, clips=3, horizon=8).pieces
    shown = pieces["frames"][:, :, 0, 0].astype(float)
    np.testing.assert_array_equal(pieces["rewards"], 100 * shown[..., 0] + shown[..., 1])
    assert shown.shape[1] == 7
    assert pieces["ends"].sum() == 3 and pieces["ends"][:3, -1].all()
    starts = [tuple(map(int, row)) for row in shown[:, 0, :2]]
    assert len(starts) == len(set(starts)) == 3 + 12  # no piece is taken twice
    assert len({e for e, _ in starts[:3]}) == 3
    assert all((30 - at) % 7 == 0 for _, at in starts)


def test_worlds_and_data_without_outcomes_have_no_pieces(tmp_path):
    path = numbered(tmp_path, ends=False)
    assert load_held_out(path, tiny.config(), clips=3, horizon=8).pieces == {}
    assert load_held_out(path, tiny.config(outcomes=("ends",)), clips=3, horizon=8).pieces == {}
    assert "ends" not in load_held_out(path, tiny.config(outcomes=("rewards",)), clips=3, horizon=8).pieces


def test_a_dead_world_pays_more_than_the_base():
    config = tiny.config(outcomes=("rewards", "ends"))
    world = tiny.make_world(config)
    params = jax.tree.map(lambda x: x, world.dynamics[1])
    for name in ("rewards", "ends"):
        params["outcomes"]["down"][name]["kernel"][...] *= 0
    params["outcomes"]["down"]["rewards"]["bias"][...] = jnp.asarray(logits_of([0.0])[0])
    params["outcomes"]["down"]["ends"]["bias"][...] = jnp.array([-9.0])
    dead = dataclasses.replace(world, dynamics=(world.dynamics[0], params))
    for name, one in outcomes(dead, pieces_of(7)).items():
        assert one["found"] == one["false"] == 0, name
        assert one["nats"] > one["base"], name


def test_the_report_tells_of_rewards_and_ends(tmp_path):
    world = tiny.make_world(tiny.config(outcomes=("rewards", "ends")))
    settings = Settings(clips=2, horizon=8, samples=1, steps=1)
    told = evaluate(world, numbered(tmp_path), tmp_path / "out", settings=settings)
    assert told["outcomes"]["ends"]["there"] == 2
    lines = [line for line in summary(told).splitlines() if line.startswith(("rewards:", "ends:"))]
    assert len(lines) == 2 and "of 2 told" in lines[1]
    assert "falsely" in lines[1] and "falsely" not in lines[0]  # every chunk has a reward
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Rewards and ends" in page and f"2 of {told['outcomes']['ends']['chunks']}<" in page
