"""Laws of the training loop: resumed runs repeat, one compile, refusals and stops."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_stage import CONFIG, make_stage

from worldsim.config import OptimConfig, StageConfig, TrainConfig
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.placement import place_batch
from worldsim.parallel.sharding import by_path
from worldsim.train import checkpoints, loop, metrics, optim, run
from worldsim.train.loop import NonFiniteError, train_stage
from worldsim.train.step import init_state, make_step, state_shardings

HERE = Path(__file__).parent


def train(folder, stage=None, *, seed=3, config=None):
    return train_stage(stage or make_stage(), folder, seed=seed, config=config or TrainConfig())


def leaves(state):
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return {path: np.asarray(leaf) for path, leaf in by_path(plain).items()}


def lines(folder):
    found = metrics.read_lines(folder / "fake" / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


class StoppedError(Exception):
    pass


def stop_at(step):
    def hook(at, batch):
        if at == step:
            raise StoppedError
        return batch

    return hook


@pytest.mark.law
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_train_four_is_train_some_stop_and_resume(tmp_path, stop):
    whole = train(tmp_path / "a")
    with pytest.raises(StoppedError):
        train(tmp_path / "b", make_stage(hook=stop_at(stop)))
    resumed = train(tmp_path / "b")
    assert_same(leaves(whole), leaves(resumed))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert [line["step"] for line in lines(tmp_path / "a")] == [1, 2, 3, 4]
    assert int(resumed.step) == 4


@pytest.mark.law
def test_killed_run_resumes_bit_for_bit(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / "fake_stage.py"), str(tmp_path / "b"), "4", "3"]
    killed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    log = tmp_path / "b" / "fake" / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"step": 3, "lo')  # what a write that was cut off leaves
    resumed = train(tmp_path / "b")
    whole = train(tmp_path / "a")
    assert_same(leaves(whole), leaves(resumed))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_complete_run_is_only_read(tmp_path):
    state = train(tmp_path)

    def refuse(_step, _batch):
        raise StoppedError

    assert_same(leaves(state), leaves(train(tmp_path, make_stage(hook=refuse))))


def test_more_steps_go_on_from_the_last(tmp_path):
    train(tmp_path)
    seen = []

    def hook(step, batch):
        seen.append(step)
        return batch

    stage = make_stage(dataclasses.replace(CONFIG, steps=6), hook=hook)
    assert int(train(tmp_path, stage).step) == 6
    assert seen == [4, 5]
    assert sorted(p.name for p in (tmp_path / "fake" / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.law
def test_one_trace_per_run(tmp_path):
    traces = []
    with pytest.raises(StoppedError):
        train(tmp_path, make_stage(hook=stop_at(3), traces=traces))
    assert len(traces) == 1
    train(tmp_path, make_stage(traces=traces))
    assert len(traces) == 2


def test_seeds_differ_and_repeat(tmp_path):
    a, b, c = (lines_of(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert a == b
    assert a != c


def lines_of(folder, seed):
    train(folder, seed=seed)
    return lines(folder)


@pytest.mark.law
@pytest.mark.parametrize("bad", [1, 2, 3])
def test_nan_stops_with_step_batch_and_last_good_checkpoint(tmp_path, bad):
    def hook(step, batch):
        return {"x": batch["x"] * np.nan} if step == bad else batch

    with pytest.raises(NonFiniteError) as error:
        train(tmp_path, make_stage(hook=hook))
    message, step = str(error.value), bad + 1
    assert f"step {step}:" in message
    with np.load(tmp_path / "fake" / f"bad_batch_{step}.npz") as batch:
        assert np.isnan(batch["x"]).all()
    kept = tmp_path / "fake" / "checkpoints"
    good = 2 if step > 2 else None
    assert (str(kept / "2") in message) if good else ("none was saved yet" in message)
    assert sorted(p.name for p in kept.iterdir()) == (["2"] if good else [])
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, step))


def test_infinite_gradient_with_finite_loss_stops(tmp_path):
    stage = make_stage()

    def loss(params, frozen, batch, key, step):
        value, terms = stage.loss(params, frozen, batch, key, step)
        zero = params["head"]["bias"][0] * 0
        return value + 0 * jax.numpy.sqrt(zero), terms

    with pytest.raises(NonFiniteError, match="gradient norm nan"):
        train(tmp_path, dataclasses.replace(stage, loss=loss))


def test_data_that_ends_is_named(tmp_path):
    stage = dataclasses.replace(make_stage(), batches=lambda _start: iter([]))
    with pytest.raises(ValueError, match="ended before step 1 of 4"):
        train(tmp_path, stage)


def test_other_settings_are_refused_and_named(tmp_path):
    train(tmp_path)
    other = TrainConfig(
        dynamics=dataclasses.replace(TrainConfig().dynamics, optim=OptimConfig(learning_rate=0.5), steps=9)
    )
    with pytest.raises(ValueError) as error:
        train(tmp_path, seed=4, config=other)
    assert "config.dynamics.optim.learning_rate: 0.001 in the checkpoint, 0.5 now" in str(error.value)
    assert "seed: 3 in the checkpoint, 4 now" in str(error.value)
    assert "steps" not in str(error.value)
    stage = dataclasses.replace(make_stage(), frozen={"target": np.zeros((8,), np.float32)})
    with pytest.raises(ValueError, match=r"the data, has changed since; delete .*/fake to train"):
        train(tmp_path, stage)
    stage = dataclasses.replace(make_stage(), tokenizer="another")
    with pytest.raises(ValueError, match="the tokenizer, or the data, has changed since"):
        train(tmp_path, stage)


def test_a_stage_minds_only_its_own_config(tmp_path):
    stage = dataclasses.replace(make_stage(), name="tokenizer")
    train(tmp_path, stage)
    base = TrainConfig()
    mine = dataclasses.replace(base, tokenizer=dataclasses.replace(base.tokenizer, batch=3))
    theirs = dataclasses.replace(base, dynamics=dataclasses.replace(base.dynamics, batch=3))
    train(tmp_path, stage, config=theirs)
    with pytest.raises(ValueError, match=r"config\.tokenizer\.batch: 8 in the checkpoint, 3 now"):
        train(tmp_path, stage, config=mine)


def test_other_shapes_are_named_on_restore(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError) as error:
        train(tmp_path, make_stage(width=5))
    assert "params/head/kernel is [4, 8] and should be [5, 8]" in str(error.value)
    assert "ema/head/kernel" in str(error.value)


def test_sigterm_saves_and_ends(tmp_path):
    def hook(step, batch):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "b", make_stage(hook=hook))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "b" / "fake" / "checkpoints" / "3").is_dir()
    assert_same(leaves(train(tmp_path / "a")), leaves(train(tmp_path / "b")))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize(("steps", "at"), [(4, 3), (4, 4)])
def test_sigterm_during_a_sample_saves_and_ends(tmp_path, steps, at):
    """At a step that saves nothing by itself, and at the last one, after which another stage would begin."""

    def samples(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    config = dataclasses.replace(CONFIG, steps=steps, save_every=0, sample_every=at)
    stage = make_stage(config, samples=samples)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, stage)
    assert ended.value.code == 143
    assert (tmp_path / "fake" / "checkpoints" / str(at)).is_dir()


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """A whole run of toy stages, the last of them in two phases, without data: a call trains and exports."""
    toy = lambda name: dataclasses.replace(make_stage(), name=name)
    stands_in = {
        "read_info": lambda _: None,
        "check_data": lambda *_: None,
        "check_mesh": lambda *_: None,
        "_tokenizer": lambda *_: toy("tokenizer"),
        "_refine": lambda *_: toy("refine"),
        "_dynamics": lambda *_, **__: [dataclasses.replace(toy("dynamics"), until=2), toy("dynamics")],
        "load_stage": lambda *_, **__: (4, {}),
        "export_world": lambda *_, **__: (tmp_path / "world").mkdir(),
    }
    for name, call in stands_in.items():
        monkeypatch.setattr(run, name, call)
    long = StageConfig(4, frames=16)
    config = TrainConfig(tokenizer=StageConfig(4), refine=StageConfig(4), dynamics=long)
    return lambda: run.train(config, tmp_path)


def test_what_would_have_processes_wait_in_vain_is_compared(toys, monkeypatch):
    """Another way to attend, or another block of attention, is another program."""
    found = []

    def compare(parts, **_):
        found.append(parts)
        raise StoppedError

    monkeypatch.setattr(run, "check_alike", compare)
    for block in ("", "jax", "auto"):
        monkeypatch.setenv("WORLDSIM_BLOCK", block)
        with pytest.raises(StoppedError):
            toys()
    assert [parts["WORLDSIM_BLOCK"] for parts in found] == ["jax", "jax", "auto"]
    assert all(parts["attention"] == "ring" and parts["stage"] == "all" for parts in found)


@pytest.mark.parametrize(
    ("module", "during", "reached"),
    [
        (loop, "any_process", (4, 1, 0)),  # a vote, which this one comes too late for
        (run, "load_stage", (4, 1, 0)),
        (run, "_dynamics", (4, 4, 0)),  # where frames are encoded
        (run, "_stands_at", (4, 4, 4)),  # before the export
    ],
)
def test_sigterm_between_stages_ends_at_the_next_vote(toys, monkeypatch, tmp_path, module, during, reached):
    call, sent = getattr(module, during), []

    def signalled(*args, **how):
        found = call(*args, **how)
        if not sent:
            sent.append(signal.raise_signal(signal.SIGTERM))
        return found

    stands = lambda: tuple(stands_at(tmp_path, name) for name in ("tokenizer", "refine", "dynamics"))
    stands_at, before = run._stands_at, signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module, during, signalled)
    with pytest.raises(SystemExit) as ended:
        toys()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert stands() == reached
    assert not (tmp_path / "world").exists()
    assert toys() == tmp_path / "world"
    assert stands() == (4, 4, 4) and (tmp_path / "world").is_dir()


def test_samples_get_the_average_at_their_steps(tmp_path):
    seen = []
    stage = make_stage(
        dataclasses.replace(CONFIG, sample_every=3, save_every=0),
        samples=lambda ema, _frozen, step, folder: seen.append((step, folder, ema["head"]["kernel"].shape)),
    )
    train(tmp_path, stage)
    assert seen == [(3, tmp_path / "fake" / "samples", (4, 8))]


def test_checkpoint_loads_without_a_template(tmp_path):
    state = train(tmp_path)
    folder = tmp_path / "fake" / "checkpoints"
    step, plain, record = checkpoints.load_checkpoint(folder)
    assert step == 4
    np.testing.assert_array_equal(plain["ema"]["head"]["kernel"], np.asarray(state.ema["head"]["kernel"]))
    assert record["config"]["name"] == TrainConfig().name
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; its steps are \[2, 4\]"):
        checkpoints.load_checkpoint(folder, step=3)
    with pytest.raises(FileNotFoundError, match="no checkpoint; its steps are"):
        checkpoints.load_checkpoint(tmp_path / "nothing")


def test_ema_is_the_recursion_and_forgets_its_start():
    config = OptimConfig(ema=0.999)
    assert float(optim.ema_decay(config, jax.numpy.int32(0))) == pytest.approx(0.1)
    assert float(optim.ema_decay(config, jax.numpy.int32(10**6))) == pytest.approx(0.999)
    ema = optim.update_ema(
        config, {"a": np.float32([0.0])}, {"a": np.float32([1.0])}, step=jax.numpy.int32(0)
    )
    assert float(ema["a"][0]) == pytest.approx(0.9)


@pytest.mark.law
def test_step_consumes_its_state_averages_the_weights_and_draws_new_noise():
    stage, place = make_stage(), make_mesh()
    optimizer = optim.make_optimizer(CONFIG.optim, CONFIG.steps)
    state = init_state(stage, optimizer, jax.random.key(0))
    step = make_step(stage, optimizer, place, shardings=state_shardings(place, state))
    batch, noise = next(stage.batches(0)), []
    average = np.asarray(state.ema["head"]["kernel"], np.float64)
    for i in range(3):
        before = state
        state, found = step(state, stage.frozen, place_batch(place, batch, CONFIG.batch))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.ema)))
        decay = min(CONFIG.optim.ema, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * np.asarray(state.params["head"]["kernel"])
        noise.append(float(found["noise"]))
    np.testing.assert_allclose(state.ema["head"]["kernel"], average, rtol=1e-5)
    assert not np.allclose(state.ema["head"]["kernel"], state.params["head"]["kernel"], rtol=1e-5)
    assert len(set(noise)) == 3
    assert set(found) == {"loss", "noise", "grad_norm", "learning_rate"}


def test_schedules():
    wsd = optim.schedule(OptimConfig(learning_rate=1.0, warmup=10, schedule="wsd", decay=0.3), 100)
    assert float(wsd(0)) == pytest.approx(0.1)
    assert [float(wsd(i)) for i in (9, 40, 70)] == pytest.approx([1.0, 1.0, 1.0])
    assert float(wsd(85)) == pytest.approx(0.5)
    assert float(wsd(100)) == pytest.approx(0.0)
    cosine = optim.schedule(OptimConfig(learning_rate=1.0, warmup=10, schedule="cosine"), 110)
    assert [float(cosine(i)) for i in (0, 9, 10, 60, 110)] == pytest.approx(
        [0.1, 1.0, 1.0, 0.5, 0.0], abs=1e-6
    )
    odd = OptimConfig()
    object.__setattr__(odd, "schedule", "step")
    with pytest.raises(ValueError, match="'wsd' or 'cosine'"):
        optim.schedule(odd, 10)


def test_only_matrices_decay():
    tx = optim.make_optimizer(OptimConfig(learning_rate=1.0, warmup=0, weight_decay=0.5), 10)
    params = {"kernel": jax.numpy.ones((2, 2)), "bias": jax.numpy.ones((2,))}
    zeros = jax.tree.map(jax.numpy.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5)
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_muon_turns_hidden_matrices_and_leaves_the_rest_to_adam():
    config = OptimConfig(optimizer="muon", learning_rate=1.0, warmup=0, weight_decay=0.0, schedule="cosine")
    both = [dataclasses.replace(config, optimizer=name) for name in ("muon", "adamw")]
    tx, adam = (optim.make_optimizer(one, 10) for one in both)
    key = jax.random.key(0)
    hidden = {"up": {"kernel": jax.random.normal(key, (16, 64))}}
    params = {
        "transformer": {"layers": {0: {"mlp": hidden, "mlp_norm": {"scale": jax.numpy.ones(16)}}}},
        "head": {"kernel": jax.random.normal(key, (16, 64))},
    }
    moved, other = (o.update(params, o.init(params), params)[0] for o in (tx, adam))
    turned = moved["transformer"]["layers"][0]["mlp"]["up"]["kernel"]
    sizes = np.linalg.svd(np.asarray(turned), compute_uv=False) / (0.2 * 64**0.5)
    assert sizes.shape == (16,) and (sizes > 0.6).all() and (sizes < 1.3).all()
    assert float(jax.numpy.sqrt(jax.numpy.mean(turned**2))) == pytest.approx(0.2, rel=0.1)
    moved["transformer"]["layers"][0]["mlp"] = other["transformer"]["layers"][0]["mlp"]
    jax.tree.map(np.testing.assert_array_equal, moved, other)


def test_log_lines_are_exact_and_strict_json(tmp_path):
    log = metrics.MetricsLog(tmp_path, name="x", total=9, start=0)
    value = float(np.float32(0.1))
    log.write(1, {"loss": value, "odd": float("nan")}, seconds=1.0)
    log.close()
    assert metrics.read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": value, "odd": None, "seconds": 1.0}
    ]
