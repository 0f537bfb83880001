"""Rewards and ends: what a world tells of its chunks, in training, in the simulator and in Gymnasium."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

import worldsim
from worldsim.config import DataConfig, MixConfig, StageConfig, TrainConfig
from worldsim.data.arrays import ArraySource, save_arrays
from worldsim.generate.extend import World
from worldsim.generate.simulate import graft
from worldsim.models.dynamics import Chunks
from worldsim.models.world import init_params, split_module
from worldsim.ops import twohot
from worldsim.ops.attention import KNOWN, QUERY
from worldsim.parallel.sharding import path_of
from worldsim.train.codes import encode_source
from worldsim.train.losses import dynamics_loss, outcome_nats
from worldsim.train.run import train
from worldsim.train.stages import plan_batch

pytestmark = pytest.mark.law

TELLING = tiny.config(outcomes=("rewards", "ends"))


def test_a_number_is_the_mean_of_its_bins():
    x = jnp.asarray([0.0, 1.0, -1.0, 0.3, 250.0, -7.5, 1e6])
    weights = twohot.two_hot(x)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert int((weights > 0).sum(-1).max()) <= 2
    np.testing.assert_allclose((weights * twohot.BINS).sum(-1)[:-1], x[:-1], rtol=1e-5, atol=1e-6)
    assert weights[-1, -1] == 1
    assert float(twohot.mean(jnp.zeros(len(twohot.BINS)))) == 0, "evenness is no reward"
    np.testing.assert_allclose(twohot.mean(jnp.log(weights[:6] + 1e-30)), x[:6], rtol=1e-4, atol=1e-4)
    best = twohot.cross_entropy(jnp.log(weights + 1e-9), x)
    assert (twohot.cross_entropy(jnp.zeros((7, len(twohot.BINS))), x) > best + 2).all()


def chunks(count, *, seed=0, batch=2):
    rng = np.random.default_rng(seed)
    codes = jnp.asarray(rng.integers(0, 9, (batch, count, 2, 2)), jnp.int32)
    times = jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32), (batch, count))
    ids = tiny.chunk_ids(0, np.broadcast_to(np.arange(count), (batch, count)), KNOWN)
    actions = jnp.asarray(rng.integers(-1, 3, (batch, count, 1)), jnp.int32)
    return Chunks(codes, times, ids, jnp.zeros((batch, count)), actions)


def test_the_cache_tells_what_the_stream_tells():
    model = tiny.model("dynamics", TELLING)
    known = chunks(5)
    query = jax.tree.map(lambda a: a[:, -2:], known)
    query = dataclasses.replace(query, ids=query.ids.at[..., 2].set(QUERY))
    whole = jax.jit(lambda known, query: model.tell(model.streams(known, query)[0]))(known, query)
    assert whole["rewards"].shape == (2, 5, len(twohot.BINS)) and whole["ends"].shape == (2, 5, 1)
    first, last = (jax.tree.map(lambda a, cut=cut: a[:, cut], known) for cut in (slice(3), slice(3, 5)))
    cache = model.commit(first, model.empty_cache(2), jnp.arange(3))
    told = model.enter_and_tell(last, model.past(cache, last))[1]
    for name, logits in whole.items():
        np.testing.assert_allclose(told[name], logits[:, 3:], atol=2e-4)
        assert np.abs(np.diff(logits, axis=1)).max() > 0.01, "chunks differ"


def test_padding_tells_nothing():
    told = {"rewards": jnp.zeros((1, 3, len(twohot.BINS))), "ends": jnp.asarray([[[5.0], [-5.0], [9.0]]])}
    batch = {"rewards": jnp.zeros((1, 3)), "ends": jnp.asarray([[True, False, False]])}
    found = outcome_nats(told, batch, there=jnp.asarray([[True, True, False]]))
    np.testing.assert_allclose(found["nats_per_end"], np.log1p(np.exp(-5.0)), rtol=1e-5)
    np.testing.assert_allclose(found["nats_per_reward"], np.log(len(twohot.BINS)), rtol=1e-5)


def test_rewards_and_ends_are_learned():
    """Reward 2 for a code of 0 in the first corner, an end under action 2."""
    config = TrainConfig(
        world=TELLING,
        dynamics=StageConfig(frames=6, batch=16),
        mix=MixConfig(chunks=6, queries=3, null_actions=0.0, clean=1.0),
    )
    rng = np.random.default_rng(0)
    graph = split_module("dynamics", TELLING)[0]
    optimizer = optax.adam(3e-3)

    def draw():
        codes = rng.integers(0, 9, (16, 6, 2, 2))
        codes[:, :, 0, 0] *= rng.integers(0, 2, (16, 6))
        actions = rng.integers(0, 3, (16, 6, 1)).astype(np.int32)
        rewards, ends = 2.0 * (codes[:, :, 0, 0] == 0), actions[..., 0] == 2
        return {"codes": codes, "actions": actions, "rewards": rewards.astype(np.float32), "ends": ends}

    @jax.jit
    def step(params, state, batch, key):
        def loss(params):
            return dynamics_loss(nnx.merge(graph, params), batch, key, digits=(3, 3), mix=config.mix)

        (_, told), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, told

    params = init_params("dynamics", TELLING, jax.random.key(0))
    state = optimizer.init(params)
    for number in range(150):
        batch = plan_batch(draw(), config, step=number)
        params, state, told = step(params, state, batch, jax.random.key(number))
    assert told["nats_per_end"] < 0.1
    test = draw()
    known = Chunks(
        jnp.asarray(test["codes"], jnp.int32),
        jnp.broadcast_to(jnp.arange(6.0), (16, 6)),
        tiny.chunk_ids(0, np.broadcast_to(np.arange(6), (16, 6)), KNOWN),
        jnp.zeros((16, 6)),
        jnp.asarray(test["actions"]),
    )
    found = nnx.merge(graph, params).enter_and_tell(known, None)[1]
    np.testing.assert_allclose(twohot.mean(found["rewards"]), test["rewards"], atol=0.15)
    np.testing.assert_array_equal(found["ends"][..., 0] > 0, test["ends"])


def test_chunks_carry_the_sum_of_their_rewards_and_any_end_up_to_the_last(tmp_path):
    config = tiny.config(frames_per_chunk=2, outcomes=("rewards", "ends"))
    rng = np.random.default_rng(0)
    record = {
        "frames": rng.integers(0, 256, (1, 7, 16, 16, 3), dtype=np.uint8),
        "actions": np.zeros((1, 7), np.int32),
        "rewards": np.array([[0, 1, 2, -5, 0, 0.5, 9]], np.float32),
        "ends": np.array([[False, False, False, True, False, False, True]]),
    }
    source = ArraySource({**record, "lengths": np.array([7])}, keys=None)
    codes = encode_source(source, config, tiny.params("tokenizer", config), tmp_path / "c.npz")[0]
    np.testing.assert_array_equal(codes["rewards"], [3, -5, 9.5])
    np.testing.assert_array_equal(codes["ends"], [False, True, True])


@pytest.fixture(scope="module")
def telling():
    return tiny.make_world(TELLING)


def test_the_simulator_tells_and_a_rollout_draws_the_same_codes(telling):
    quiet = dataclasses.replace(TELLING, dynamics=dataclasses.replace(TELLING.dynamics, outcomes=()))
    clips = [tiny.make_clip(5, seed=1), tiny.make_clip(5, seed=2)]
    simulators = [worldsim.Simulator(w, steps=2, render="codes") for w in (telling, tiny.make_world(quiet))]
    states = [one.reset(clips, jax.random.key(0)) for one in simulators]
    assert states[0].rewards.tolist() == states[0].ends.tolist() == [0, 0] and states[1].rewards is None
    seen = []
    for action in (0, 1, 2):
        steps = [s.step(state, np.full(2, action)) for s, state in zip(simulators, states, strict=True)]
        states = [state for state, _ in steps]
        np.testing.assert_array_equal(steps[0][1], steps[1][1])
        seen.append((states[0].rewards, states[0].ends))
    rewards, ends = (np.asarray(x) for x in zip(*seen, strict=True))
    assert rewards.shape == ends.shape == (3, 2) and ((ends > 0) & (ends < 1)).all()
    assert len(np.unique(rewards)) == 6


def test_a_grafted_world_goes_on_as_it_would_have_alone(telling):
    sim = worldsim.Simulator(telling, steps=2, temperature=0.0, render="codes")
    old = sim.reset([tiny.make_clip(4, seed=i) for i in range(3)], jax.random.key(0))
    for action in (0, 1, 2, 1, 0):
        old, _ = sim.step(old, np.full(3, action))
    new = sim.reset([tiny.make_clip(5, seed=i) for i in (7, 8, 9)], jax.random.key(1))
    where = np.array([False, True, False])
    both = graft(old, new, where)
    for action in (2, 0, 1, 1, 2, 0, 0, 1):
        old, first = sim.step(old, np.full(3, action))
        new, second = sim.step(new, np.full(3, action))
        both, shown = sim.step(both, np.full(3, action))
        np.testing.assert_array_equal(shown, np.where(where[:, None, None], second, first))
        np.testing.assert_allclose(both.rewards, np.where(where, new.rewards, old.rewards), atol=1e-3)


def shift_ends(world, by):
    """The world with as much added to the logit of every end."""
    params = dict(world.params)
    path = "outcomes/down/ends/bias"
    params["dynamics"] = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf + by if path_of(keys) == path else leaf, params["dynamics"]
    )
    return World.make(world.config, params)


def test_environments_hand_on_rewards_and_begin_anew_where_an_episode_ended(telling):
    pytest.importorskip("gymnasium", reason="needs the extra gym")
    from worldsim.envs.world import WorldEnv, WorldVectorEnv

    clips = [tiny.make_clip(6, seed=seed) for seed in range(3)]
    dials = {"clips": clips, "steps": 1, "refine_steps": 0}
    state, seen = (sim := worldsim.Simulator(telling, steps=1, refine_steps=0)).reset(clips[0]), []
    for _ in range(12):
        state, _ = sim.step(state, np.array([1]))
        seen.append(float(jnp.log(state.ends[0]) - jnp.log1p(-state.ends[0])))
    telling = shift_ends(telling, -np.median(seen))
    env = WorldEnv(telling, **dials)
    env.reset(seed=0)
    rewards, over = [], []
    for _ in range(12):
        _, reward, ended, cut, _ = env.step(1)
        rewards.append(reward)
        over.append(ended)
        assert reward == float(env._state.rewards[0]) and ended == (env._state.ends[0] > 0.5) and not cut
    assert len(set(rewards)) > 6 and 0 < sum(over) < 12
    many = WorldVectorEnv(4, telling, max_episode_steps=5, **dials)
    many.reset(seed=0)
    counts, last = np.zeros(4, int), np.zeros(4, bool)
    alone = 0
    for _ in range(14):
        frames, rewards, ended, cut, info = many.step(np.ones(4, int))
        begun = last
        np.testing.assert_array_equal(info.get("_clip", np.zeros(4, bool)), begun)
        for i in np.flatnonzero(begun):
            np.testing.assert_array_equal(frames[i], clips[info["clip"][i]].frames[-1])
        assert not rewards[begun].any() and not ended[begun].any() and (rewards[~begun] != 0).all()
        counts = np.where(begun, 0, counts + 1)
        np.testing.assert_array_equal(cut, counts == 5)
        last = ended | cut
        alone += 0 < begun.sum() < 4
    assert alone, "some began anew while others went on"


def test_a_run_trains_what_the_world_tells_and_refuses_data_without_it(tmp_path):
    config = TrainConfig(
        name="telling",
        world=TELLING,
        data=DataConfig(path=str(tmp_path / "d.npz"), eval_split="train"),
        tokenizer=StageConfig(steps=1, batch=2, frames=2, sample_every=0),
        dynamics=StageConfig(steps=2, batch=2, frames=6, log_every=1, sample_every=0),
        refine=StageConfig(steps=1, batch=2, frames=2, sample_every=0),
        mix=MixConfig(chunks=6, queries=3),
    )
    rng = np.random.default_rng(0)
    record = {
        "frames": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
        "actions": rng.integers(0, 3, 8).astype(np.int32),
    }
    save_arrays(tmp_path / "d.npz", {"train": [record] * 4})
    with pytest.raises((KeyError, ValueError), match="rewards"):
        train(config, tmp_path / "run")
    record |= {"rewards": np.ones(8, np.float32), "ends": np.arange(8) == 7}
    save_arrays(tmp_path / "d.npz", {"train": [record] * 4})
    world = worldsim.load(train(config, tmp_path / "run"))
    told = json.loads((tmp_path / "run" / "dynamics" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < told["nats_per_reward"] < 4 and 0 < told["nats_per_end"] < 1
    assert told["loss"] > told["nats_per_code"]
    assert world.config.dynamics.outcomes == ("rewards", "ends")
