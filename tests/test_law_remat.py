"""Laws of recomputation: what a policy drops between the passes costs memory less and changes no gradient."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.config import MixConfig, StageConfig, TrainConfig
from worldsim.models.transformer import POLICIES
from worldsim.models.world import split_module
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.placement import batch_sharding, place_batch
from worldsim.parallel.sharding import by_path
from worldsim.train.checkpoints import check_record, make_record
from worldsim.train.losses import dynamics_loss
from worldsim.train.stages import dynamics_stage, plan_batch

pytestmark = pytest.mark.law

WORLD = tiny.config(context=15, layers=4)
MIX = MixConfig(chunks=16, queries=8)
GRAPH, PARAMS = split_module("dynamics", WORLD)[0], tiny.params("dynamics", WORLD)


def config(remat="none"):
    stage = StageConfig(batch=4, frames=16, remat=remat)
    return TrainConfig(world=WORLD, dynamics=stage, mix=MIX)


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    clip = {"codes": rng.integers(0, 9, (4, 16, 2, 2)), "actions": rng.integers(0, 3, (4, 16, 1))}
    return plan_batch(clip, config(), step=0)


@functools.cache
def gradient(remat, parts=1):
    """Gradients, and the compiled program that gave them, on one device or with chunks spread over some."""
    mesh = make_mesh({"context": parts})
    strategy = "ring" if parts > 1 else "local"

    def loss(params, batch):
        how = {"digits": (3, 3), "mix": MIX, "remat": remat, "strategy": strategy}
        return dynamics_loss(nnx.merge(GRAPH, params), batch, jax.random.key(1), **how)[0]

    with jax.set_mesh(mesh):
        placed = place_batch(mesh, batch(), 4, sequence=True)
        run = jax.jit(jax.grad(loss), in_shardings=(None, batch_sharding(mesh, 4, sequence=True)))
        compiled = run.lower(PARAMS, placed).compile()
        return {path: np.asarray(x) for path, x in by_path(compiled(PARAMS, placed)).items()}, compiled


@pytest.mark.parametrize(
    ("remat", "parts"),
    [
        ("attention", 1),
        ("layer", 2),
        pytest.param("attention", 2, marks=pytest.mark.slow),
        pytest.param("layer", 1, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_keeping_everything(remat, parts):
    want, found = gradient("none", parts)[0], gradient(remat, parts)[0]
    for path, array in want.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(found[path], array, atol=1e-5 * max(scale, 1e-6), err_msg=path)


def test_work_rises_with_what_is_computed_anew():
    work = {name: gradient(name)[1].cost_analysis()["flops"] for name in ("none", *POLICIES)}
    assert work["none"] < work["attention"] < work["layer"], work


MEMORY = """
import test_law_remat as law
print({name: law.gradient(name)[1].memory_analysis().temp_size_in_bytes for name in ("none", *law.POLICIES)})
"""


@pytest.mark.slow
def test_memory_falls_with_what_is_computed_anew():
    """With XLA ordering programs for memory: the order that it has for CPUs computes all at once, early."""
    order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    here = str(Path(__file__).parent)
    env = os.environ | {"XLA_FLAGS": order, "PYTHONPATH": os.pathsep.join([here, str(Path(here).parent)])}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=env, capture_output=True, text=True, check=True)
    memory = ast.literal_eval(done.stdout)
    assert max(memory[name] for name in POLICIES) < 0.6 * memory["none"], memory


def test_the_stage_trains_with_the_policy_of_its_config(monkeypatch):
    import worldsim.train.stages as stages

    seen = []
    monkeypatch.setattr(stages, "dynamics_loss", lambda *_, remat, **__: seen.append(remat) or (0.0, {}))
    from worldsim.data.arrays import ArraySource

    rng = np.random.default_rng(0)
    arrays = {"codes": rng.integers(0, 9, (3, 16, 2, 2)).astype(np.uint16)}
    stage = dynamics_stage(config("layer"), ArraySource(arrays, keys=None))
    stage.loss(PARAMS, None, {}, jax.random.key(0), jnp.int32(0))
    assert seen == ["layer"]


def test_a_run_may_go_on_with_another_policy_and_one_from_before_has_none(tmp_path):
    before, now = (make_record("dynamics", seed=0, frozen=None, config=config(r)) for r in ("none", "layer"))
    del before["config"]["dynamics"]["remat"]
    check_record(before, now, folder=tmp_path)


def test_what_cannot_be_computed_anew_is_refused():
    with pytest.raises(
        Exception, match="(?s)'all'.*'none', 'layer', 'attention'"
    ):  # a ValueError unless typed
        StageConfig(remat="all")
    with pytest.raises(ValueError, match="tokenizer with remat; only the dynamics"):
        TrainConfig(tokenizer=StageConfig(remat="layer"))
