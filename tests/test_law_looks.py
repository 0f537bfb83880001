"""Laws of looks: what they add is folded exactly, serves codes never seen, and leaves worlds as they were."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.config import MixConfig, OptimConfig, StageConfig, TrainConfig
from worldsim.data.arrays import ArraySource
from worldsim.models.dynamics import Chunks
from worldsim.models.world import init_params, split_module
from worldsim.parallel.sharding import by_path
from worldsim.train import run
from worldsim.train.checkpoints import check_record, load_checkpoint, make_record
from worldsim.train.looks import SCALE, TOLD, code_vectors, fold_looks, with_looks
from worldsim.train.loop import train_stage
from worldsim.train.run import load_stage
from worldsim.train.stages import dynamics_stage

pytestmark = pytest.mark.law

WORLD = tiny.config(patch=2)
CODES = WORLD.tokenizer.codebook


def vectors(count=CODES, *, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def some_params(*, size=12):
    """Trained-looking parameters of the dynamics beside fresh ones of looks."""
    params = with_looks(tiny.params("dynamics", WORLD), WORLD, size, vectors(), jax.random.key(1))
    told = params["looks"]["told"]["bias"]
    told[...] = jax.random.normal(jax.random.key(2), told[...].shape)
    return params


def chunks(codes):
    order = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape[:2])
    ids = jnp.stack([0 * order, order, 0 * order], -1)
    return Chunks(jnp.asarray(codes), order.astype(jnp.float32), ids, jnp.zeros(order.shape))


def config(**changes):
    stage = StageConfig(steps=4, batch=2, frames=6, log_every=1, save_every=2, sample_every=0,
                        optim=OptimConfig(learning_rate=1e-2, warmup=2, weight_decay=0.1))  # fmt: skip
    made = TrainConfig(world=WORLD, dynamics=stage, mix=MixConfig(chunks=4, queries=1), looks=12)
    return dataclasses.replace(made, **changes)


def some_codes(values=CODES, *, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, values, (6, 8, 2, 2)).astype(np.uint16)
    return ArraySource({"codes": codes, "actions": np.zeros((6, 8, 1), np.int32)}, keys=None)


def test_what_is_folded_is_what_looks_add():
    """Beside a forward pass that adds looks to embeddings and logits, code by code."""
    params = some_params()
    graph, _ = split_module("dynamics", WORLD)
    folded = nnx.merge(graph, fold_looks(params, WORLD))
    plain = nnx.merge(graph, fold_looks({k: v for k, v in params.items() if k != "looks"}, WORLD))
    at = {path: np.asarray(x, np.float64) for path, x in by_path(params).items()}
    hidden = at["looks/vectors"] @ at["looks/up/kernel"] + at["looks/up/bias"]
    hidden = np.asarray(nnx.gelu(hidden))
    out = hidden @ at["looks/down/kernel"] + at["looks/down/bias"]
    embed, told = out[:, :-TOLD], out[:, -TOLD:]

    codes = np.random.default_rng(3).integers(0, CODES + 1, (2, 3, 2, 2))
    added = np.concatenate([SCALE * embed, np.zeros((1, embed.shape[1]))])[codes]  # none to the mask
    added = added.reshape(2, 3, 1, -1)  # one token a chunk, of its four codes
    shown = folded.embed(chunks(codes)) - plain.embed(chunks(codes))
    shown = np.asarray(shown).reshape(2, 3, -1, WORLD.dynamics.width)[:, :, plain.lead :]
    np.testing.assert_allclose(shown, added, atol=1e-5)

    x = np.random.default_rng(4).normal(size=(2, 3 * plain.tokens, WORLD.dynamics.width))
    own = x.reshape(2, 3, plain.tokens, -1)[:, :, plain.lead :]
    asked = own @ at["looks/told/kernel"] + at["looks/told/bias"]
    want = (asked.reshape(2, 3, 4, TOLD) @ told.T).reshape(2, 3, 2, 2, CODES)
    x = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(folded.logits(x) - plain.logits(x), want, atol=1e-4 * np.abs(want).max())


def test_parameters_without_looks_stay_as_they_are():
    params = tiny.params("dynamics", WORLD)
    folded = by_path(fold_looks(params, WORLD))
    for path, leaf in by_path(params).items():
        np.testing.assert_array_equal(folded[path], leaf, err_msg=path)


def test_a_code_never_seen_is_told_where_one_of_its_look_belongs(tmp_path):
    """Trained on codes 0 to 3; code 4 looks as code 1 does, and no other unseen code is told as often."""
    seen = vectors()
    seen[4] = seen[1]
    stage = StageConfig(steps=150, batch=8, frames=6, log_every=150, save_every=0, sample_every=0,
                        optim=OptimConfig(learning_rate=3e-3, warmup=5))  # fmt: skip
    codes = np.zeros((6, 8, 2, 2), np.uint16)
    codes[:] = np.arange(8)[:, None, None] % 4  # each code follows the one before
    source = ArraySource({"codes": codes, "actions": np.zeros((6, 8, 1), np.int32)}, keys=None)
    made = config(dynamics=stage)

    def odds(folder, run):
        state = train_stage(dynamics_stage(run, source, vectors=seen), folder, seed=0, config=run)
        graph, _ = split_module("dynamics", WORLD)
        model = nnx.merge(graph, fold_looks(state.params, WORLD))
        known = chunks(jnp.asarray(codes[:1, 2:5], jnp.int32))  # 2 3 0, after which comes 1
        after = chunks(jnp.full((1, 1, 2, 2), model.mask))
        after = dataclasses.replace(after, times=after.times + 3, ids=after.ids + jnp.array([0, 3, 1]))
        return np.asarray(model.two_stream(known, after))[0, 0].reshape(4, CODES).mean(0)

    told = odds(tmp_path / "looks", made)
    blind = odds(tmp_path / "blind", dataclasses.replace(made, looks=0))
    assert told[:4].argmax() == 1
    assert told[4:].argmax() == 0
    assert told[4] - told[5:].max() > 2.0
    assert abs(blind[4] - blind[5:].mean()) < 1.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    stage = dynamics_stage(config(), some_codes(), vectors=vectors())
    return folder, train_stage(stage, folder, seed=0, config=config())


def test_vectors_stay_and_their_network_learns(trained):
    _, state = trained
    before = by_path(dynamics_stage(config(), some_codes(), vectors=vectors()).init(jax.random.key(0)))
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(by_path(tree)["looks/vectors"], vectors())
    for path in ("looks/up/kernel", "looks/down/kernel", "looks/told/kernel", "codes", "head/kernel"):
        assert np.abs(by_path(state.params)[path] - before[path]).max() > 1e-3, path


def test_a_stage_with_looks_becomes_plain_parameters(trained):
    folder, state = trained
    step, params = load_stage("dynamics", config(), folder)
    assert step == 4
    plain = by_path(init_params("dynamics", WORLD, jax.random.key(0)))
    assert {p: x.shape for p, x in by_path(params).items()} == {p: x.shape for p, x in plain.items()}
    for path, leaf in by_path(fold_looks(state.ema, WORLD)).items():
        np.testing.assert_array_equal(by_path(params)[path], leaf, err_msg=path)


def test_what_is_newer_than_a_stage_has_its_default_in_it(trained, monkeypatch):
    read = run.load_checkpoint

    def older(folder):
        step, state, record = read(folder)
        for name in ("around", "outcomes"):
            del record["config"]["world"]["dynamics"][name]
        return step, state, record

    monkeypatch.setattr(run, "load_checkpoint", older)
    assert load_stage("dynamics", config(), trained[0])[0] == 4
    told = dataclasses.replace(WORLD.dynamics, outcomes=("ends",))
    other = dataclasses.replace(config(), world=dataclasses.replace(WORLD, dynamics=told))
    with pytest.raises(ValueError, match="outcomes"):
        load_stage("dynamics", other, trained[0])


def test_stopped_and_gone_on_is_uninterrupted(trained, tmp_path):
    stage = dynamics_stage(config(), some_codes(), vectors=vectors())
    train_stage(dataclasses.replace(stage, until=2), tmp_path, seed=0, config=config())
    state = train_stage(stage, tmp_path, seed=0, config=config())
    for path, leaf in by_path(trained[1].params).items():
        np.testing.assert_array_equal(by_path(state.params)[path], leaf, err_msg=path)


def test_going_on_with_other_looks_is_refused(trained):
    folder, _ = trained
    other = config(looks=0)
    with pytest.raises(ValueError, match="config.looks: 12 in the checkpoint, 0 now"):
        train_stage(dynamics_stage(other, some_codes()), folder, seed=0, config=other)
    assert "looks" in load_checkpoint(folder / "dynamics" / "checkpoints")[1]["params"]


def test_going_on_with_other_vectors_is_refused(trained):
    stage = dynamics_stage(config(), some_codes(), vectors=vectors(seed=1))
    with pytest.raises(ValueError, match="has changed since"):
        train_stage(stage, trained[0], seed=0, config=config())


def test_runs_from_before_there_were_looks_go_on_without(tmp_path):
    """And the other stages do not care."""
    record = lambda stage, looks: make_record(stage, seed=0, frozen=None, config=config(looks=looks))
    older = record("dynamics", 0)
    del older["config"]["looks"]
    check_record(older, record("dynamics", 0), folder=tmp_path)
    with pytest.raises(ValueError, match="config.looks"):
        check_record(older, record("dynamics", 12), folder=tmp_path)
    for stage in ("tokenizer", "refine"):
        check_record(record(stage, 0), record(stage, 12), folder=tmp_path)


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_vectors_are_those_of_the_codebook_on_one_scale(quantizer):
    tokenizer = dataclasses.replace(WORLD.tokenizer, quantizer=quantizer, codes=CODES)
    world = dataclasses.replace(WORLD, tokenizer=tokenizer)
    params = init_params("tokenizer", world, jax.random.key(0))
    found = code_vectors(world, params)
    assert found.shape == (CODES, tokenizer.latent)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-3)
    if quantizer == "vq":
        raw = np.asarray(by_path(params)["quantizer/codebook"])
        np.testing.assert_allclose(found, (raw - raw.mean(0)) / raw.std(0), atol=1e-4)


def test_looks_need_a_vector_for_each_code():
    with pytest.raises(ValueError, match="looks needs the vectors"):
        dynamics_stage(config(), some_codes())
    with pytest.raises(ValueError, match="8 vectors for a codebook of 9"):
        with_looks(tiny.params("dynamics", WORLD), WORLD, 12, vectors(8), jax.random.key(0))
    with pytest.raises(ValueError, match="looks -1 must lie in"):
        config(looks=-1)
