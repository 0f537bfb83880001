"""Laws of training over many devices: every mesh gives the training of one device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny

from worldsim.config import MixConfig, OptimConfig, StageConfig, TrainConfig
from worldsim.data.arrays import ArraySource
from worldsim.parallel.agreement import gather
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.placement import batch_sharding, place_batch
from worldsim.parallel.sharding import by_path, param_shardings
from worldsim.train.loop import train_stage
from worldsim.train.metrics import read_lines
from worldsim.train.optim import make_optimizer
from worldsim.train.stages import dynamics_stage
from worldsim.train.step import init_state, make_step, state_shardings

pytestmark = pytest.mark.law

MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "context 8": {"context": 8},
    "data 2 fsdp 2 context 2": {"data": 2, "fsdp": 2, "context": 2},
    "fsdp 2 context 2 tensor 2": {"fsdp": 2, "context": 2, "tensor": 2},
}
OPTIM = OptimConfig(learning_rate=1e-2, warmup=2)
VECTORS = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)


def some_config(steps=20):
    return TrainConfig(
        world=tiny.config(context=15, around=True),
        dynamics=StageConfig(
            steps=steps, batch=8, frames=20, optim=OPTIM, log_every=1, save_every=0, sample_every=0
        ),
        mix=MixConfig(chunks=16, queries=8, resampled=0.5, resampled_from=0.0),
        looks=8,
    )


def some_codes():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.integers(0, 2, (6, 30, 2, 2)), axis=1) % 9
    return ArraySource(
        {"codes": walk.astype(np.uint16), "actions": rng.integers(0, 3, (6, 30, 1)).astype(np.int32)},
        keys=None,
    )


@functools.cache
def first_step(sizes=(), strategy="ring", *, order=None):
    """The loss and the gradients of the first batch on a mesh, and the compiled text.

    The devices are taken in their order or in another one; several processes do this together.
    """
    mesh = make_mesh(dict(sizes), devices=[jax.devices()[i] for i in order] if order else None)
    stage = dynamics_stage(some_config(), some_codes(), vectors=VECTORS, mesh=mesh, strategy=strategy)
    batch, rows = next(stage.batches(0)), stage.config.batch
    params = stage.init(jax.random.key(1))
    where = param_shardings(mesh, jax.eval_shape(stage.init, jax.random.key(1)))
    with jax.set_mesh(mesh):
        grad = jax.jit(
            lambda params, batch: jax.value_and_grad(stage.loss, has_aux=True)(
                params, None, batch, jax.random.key(2), jnp.int32(0)
            ),
            in_shardings=(where, batch_sharding(mesh, rows, sequence=True)),
        )
        placed = place_batch(mesh, batch, rows, sequence=True)
        args = jax.device_put(params, where), placed
        compiled = grad.lower(*args).compile()
        (loss, _), grads = compiled(*args)
        grads = gather(grads)
    return float(loss), {path: np.asarray(x) for path, x in by_path(grads).items()}, compiled.as_text()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if "tensor" in n else pytest.mark.slow) for n in MESHES]
)
def test_gradients_are_those_of_one_device(name):
    loss, want, _ = first_step()
    spread, found, text = first_step(tuple(MESHES[name].items()))
    assert spread == pytest.approx(loss, rel=1e-5)
    for path, gradient in want.items():
        scale = np.sqrt(np.mean(gradient**2))
        assert np.sqrt(np.mean((found[path] - gradient) ** 2)) <= 1e-5 * max(scale, 1e-6), path
    assert bool(re.search("= .*collective-permute", text)) == ("context" in name)


@pytest.mark.parametrize(
    ("axis", "strategy"),
    [
        ("context", "ring"),
        pytest.param("context", "allgather", marks=pytest.mark.slow),
        pytest.param("data", "ring", marks=pytest.mark.slow),
    ],
)
def test_the_step_of_training_passes_tokens_round_the_ring(axis, strategy):
    """The whole step, update and average too: it permutes where there is a ring, and consumes its state."""
    mesh, config = make_mesh({axis: 2}), some_config()
    stage = dynamics_stage(config, some_codes(), vectors=VECTORS, mesh=mesh, strategy=strategy)
    optimizer = make_optimizer(OPTIM, config.dynamics.steps)
    state = jax.eval_shape(functools.partial(init_state, stage, optimizer), jax.random.key(1))
    step = make_step(stage, optimizer, mesh, shardings=state_shardings(mesh, state))
    with jax.set_mesh(mesh):
        lowered = step.lower(state, None, next(stage.batches(0)))
    hurry = {"xla_backend_optimization_level": 0}  # of what comes after the communication is settled
    compiled = lowered.compile(compiler_options=hurry)
    permuted = re.search(r"= .*collective-permute", compiled.as_text())
    assert bool(permuted) == ((axis, strategy) == ("context", "ring"))
    arrays = jax.tree.leaves((state.params, state.ema, state.opt_state))
    aliased = compiled.memory_analysis().alias_size_in_bytes
    assert aliased >= sum(x.size * x.dtype.itemsize for x in arrays)


@pytest.mark.slow
def test_a_device_of_a_context_never_holds_the_tokens_of_others():
    """What is gathered in passing is a number a chunk at most; tokens go round the ring."""
    sizes = {}
    for strategy in ("ring", "allgather"):
        _, _, text = first_step((("context", 8),), strategy)
        shapes = re.findall(r"= f32\[([\d,]*)\]\S* all-gather", text)
        sizes[strategy] = max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
    assert sizes["ring"] <= 8 * (16 + 8) < sizes["allgather"]


@pytest.mark.slow
def test_gathered_keys_give_the_same_gradients():
    loss, want, _ = first_step()
    spread, found, text = first_step((("context", 2),), "allgather")
    assert spread == pytest.approx(loss, rel=1e-5)
    for path, gradient in want.items():
        np.testing.assert_allclose(found[path], gradient, atol=1e-5 * max(np.abs(gradient).max(), 1e-6))
    assert "all-gather" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_twenty_steps_end_at_the_same_loss(tmp_path, name):
    losses = {}
    for title, sizes in (("one", {}), ("many", MESHES[name])):
        mesh, config = make_mesh(sizes), some_config()
        stage = dynamics_stage(config, some_codes(), vectors=VECTORS, mesh=mesh)
        train_stage(stage, tmp_path / title, seed=3, config=config, mesh=mesh)
        lines = read_lines(tmp_path / title / "dynamics" / "metrics.jsonl")
        losses[title] = [line["loss"] for line in lines]
    assert len(losses["one"]) == 20
    assert losses["many"][0] == pytest.approx(losses["one"][0], rel=1e-5)
    assert losses["many"][-1] == pytest.approx(losses["one"][-1], rel=1e-3)


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_fewer_devices(tmp_path):
    """Eight, then four, then one, stopped after steps 4 and 8 of 12: the losses are those of one device."""
    seen, config = {}, some_config(12)
    for title, ways in (("moved", ((8, 4), (4, 8), (1, 12))), ("one", ((1, 12),))):
        folder = tmp_path / title / "dynamics"
        for devices, last in ways:
            mesh, stops = make_mesh({"context": devices}), last < 12
            stage = dynamics_stage(config, some_codes(), vectors=VECTORS, mesh=mesh)
            stage = processes.signalled(stage, {last - 1} if stops else set())
            with pytest.raises(SystemExit, match="143") if stops else contextlib.nullcontext():
                train_stage(stage, tmp_path / title, seed=3, config=config, mesh=mesh)
            lines = read_lines(folder / "metrics.jsonl")
            assert [line["step"] for line in lines] == list(range(1, last + 1))
            assert (folder / "checkpoints" / str(last)).is_dir()
        seen[title] = [line["loss"] for line in lines]
    for moved, one in zip(seen["moved"], seen["one"], strict=True):
        assert moved == pytest.approx(one, rel=1e-5)


def test_what_does_not_divide_is_named():
    mesh = make_mesh({"context": 8})
    config = some_config()
    odd = dataclasses.replace(config, mix=MixConfig(chunks=15, queries=8))
    stage = dynamics_stage(odd, some_codes(), vectors=VECTORS, mesh=mesh)
    with pytest.raises(ValueError, match="15 chunks .* 8 devices .* 8 or 16 do"):
        next(stage.batches(0))
    odd = dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, batch=6))
    with pytest.raises(ValueError, match="6 rows .* 4 devices .* 4 or 8 do"):
        dynamics_stage(odd, some_codes(), vectors=VECTORS, mesh=make_mesh({"data": 4}))
