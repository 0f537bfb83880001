"""Laws of the sharding tables, the mesh and training over several devices."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from worldsim.cli.options import load_config
from worldsim.config import (
    ActionConfig,
    ConditionConfig,
    DynamicsConfig,
    MixConfig,
    OptimConfig,
    PhaseConfig,
    TokenizerConfig,
    TrainConfig,
    WorldConfig,
)
from worldsim.models.world import MAKERS, split_module
from worldsim.parallel import distributed, mesh, placement, sharding
from worldsim.train.checks import check_mesh
from worldsim.train.looks import with_looks
from worldsim.train.optim import make_optimizer

ROOT = Path(__file__).resolve().parent.parent
RULES = (
    (r"layers/\d+/up/kernel", ("embed", "mlp")),
    (r"(.*/)?norm/scale", (None,)),
    (r"head/bias", ("vocab",)),
)


def shape(*size):
    return jax.ShapeDtypeStruct(size, jnp.float32)


def tree(**extra):
    return {"layers": {0: {"up": {"kernel": shape(4, 8)}, "norm": {"scale": shape(4)}}}, **extra}


@pytest.fixture
def one():
    return mesh.make_mesh()


def wide(**sizes):
    """A mesh of any size, without its devices."""
    full = {name: sizes.get(name, 1) for name in mesh.AXES}
    return jax.sharding.AbstractMesh(
        tuple(full.values()), tuple(full), axis_types=(AxisType.Auto,) * len(full)
    )


def test_default_mesh_has_every_axis_at_one(one):
    assert dict(one.shape) == {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    assert set(one.axis_types) == {AxisType.Auto}


def test_impossible_meshes_are_refused():
    with pytest.raises(ValueError, match=r"unknown axes .'pipeline'"):
        mesh.make_mesh({"pipeline": 2})
    with pytest.raises(ValueError, match=r"impossible sizes .*'data': 0"):
        mesh.make_mesh({"data": 0})
    with pytest.raises(ValueError, match="at most one axis"):
        mesh.make_mesh({"data": -1, "fsdp": -1})
    with pytest.raises(ValueError, match="needs 4096 devices and there are"):
        mesh.make_mesh({"data": 4096})


def test_compute_dtype_is_float32_on_cpu():
    assert mesh.compute_dtype() == (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


@pytest.mark.law
@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
@pytest.mark.parametrize("part", [*sorted(MAKERS), "looks"])
def test_every_parameter_matches_exactly_one_rule(part, quantizer):
    """Those of looks lie beside the dynamics' while it trains."""
    dynamics = DynamicsConfig(
        around=True,
        outcomes=("rewards", "ends"),
        action=ActionConfig("discrete", 6),
        conditions=(ConditionConfig("class"), ConditionConfig("text", "vector", 3)),
    )
    config = WorldConfig(TokenizerConfig(quantizer=quantizer), dynamics)
    shapes = split_module("dynamics" if part == "looks" else part, config)[1]
    if part == "looks":
        vectors = np.zeros((config.tokenizer.codebook, 4), np.float32)
        add = lambda params, key: with_looks(params, config, 8, vectors, key)
        shapes = jax.eval_shape(add, shapes, jax.random.key(0))
        assert any(path.startswith("looks/") for path in sharding.by_path(shapes))
    for path, leaf in sharding.by_path(shapes).items():
        assert len(sharding.logical_axes(path, leaf.shape)) == leaf.ndim


@pytest.mark.law
def test_parameters_without_a_rule_or_with_two_are_named_at_once(one):
    rules = (*RULES, (r"head/.*", ("vocab",)))
    shapes = tree(head={"bias": shape(8)}, gate=shape(2, 2))
    with pytest.raises(ValueError) as error:
        sharding.param_shardings(one, shapes, rules=rules)
    message = str(error.value)
    assert "2 parameters" in message
    assert "gate [2, 2] matches 0 sharding rules" in message
    assert "head/bias [8] matches 2 sharding rules" in message


def test_rule_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"3 dimensions and its sharding rule .* has 2"):
        sharding.logical_axes("layers/0/up/kernel", (1, 2, 3), rules=RULES)


def test_rules_match_whole_paths():
    with pytest.raises(ValueError, match="matches 0"):
        sharding.logical_axes("layers/0/up/kernel_two", (1, 2), rules=RULES)


def test_specs_follow_both_tables():
    found = sharding.param_shardings(wide(fsdp=2, tensor=4), tree(), rules=RULES)
    assert found["layers"][0]["up"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert found["layers"][0]["norm"]["scale"].spec == PartitionSpec(None)
    found = sharding.param_shardings(wide(fsdp=2), tree(), rules=RULES)
    assert found["layers"][0]["up"]["kernel"].spec == PartitionSpec("fsdp", None)


def test_width_that_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match=r"layers/0/up/kernel \[4, 8\]: dimension 1 \(mlp\) .* by 3.* 6 or 9 do"
    ):
        sharding.param_shardings(wide(tensor=3), tree(), rules=RULES)


def test_all_that_a_mesh_can_not_part_is_named_before_a_run_begins():
    """The dynamics' last phase comes hours after the first step of the tokenizer."""
    phase = PhaseConfig(share=0.5, chunks=4, queries=2, frames=8, batch=6, rope_base=1e3)
    config = TrainConfig(
        world=WorldConfig(dynamics=DynamicsConfig(heads=3, width=96, context=15)),
        mix=MixConfig(chunks=16, queries=11),
        curriculum=(phase,),
    )
    mesh = wide(data=4, context=2, tensor=2)
    with pytest.raises(ValueError) as refused:
        check_mesh(config, mesh, ("tokenizer", "refine", "dynamics"))
    for part in (
        "world.dynamics.heads: 3 don't divide over the 2 devices of mesh axis 'tensor'; 2 or 4 do",
        "curriculum[0], batch of the dynamics: A batch of 6 rows does not divide over the 4 devices",
        "the last phase, queries of the mix: 11 chunks don't divide over the 2 devices",
    ):
        assert part in str(refused.value)
    assert str(refused.value).count("\n") == 3
    check_mesh(config, wide(), ("tokenizer", "refine", "dynamics"))
    check_mesh(config, wide(data=4, context=2), ("tokenizer",))


@pytest.mark.law
def test_configs_fit_the_meshes_that_the_readme_names_for_them():
    """A mesh is for the config that was named last before it; -1 is eight devices here."""
    name, found = "", set()
    text = (ROOT / "README.md").read_text("utf-8")
    for config, sizes in re.findall(r"configs/(\w+)\.py|--mesh ([a-z]+=-?\d[\w=,-]*)", text):
        name = config or name
        found |= {(name, sizes)} if sizes else set()
    assert found >= {("pong", "data=-1"), ("sprites", "data=2"), ("recall", "context=8")}
    for path in (ROOT / "configs").glob("*.py"):
        config = load_config(path)
        for place in ["", *(sizes for name, sizes in found if name == path.stem)]:
            check_mesh(config, mesh.make_mesh(mesh.parse_mesh(place)), ("tokenizer", "refine", "dynamics"))


@pytest.mark.law
def test_moments_lie_as_their_parameters():
    params = tree()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    shapes = jax.eval_shape(optimizer.init, params)
    place = wide(fsdp=2, tensor=2)
    found = sharding.by_path(sharding.like_params(place, shapes, params, rules=RULES))
    specs = {path: where.spec for path, where in found.items()}
    moments = [path for path in specs if path.endswith("up/kernel")]
    assert len(moments) == 2
    assert all(specs[path] == PartitionSpec("fsdp", "tensor") for path in moments)
    assert all(specs[path] == PartitionSpec() for path in specs if path.endswith("count"))


@pytest.mark.law
def test_muon_lies_as_its_parameters_and_its_constants_everywhere():
    _, params = split_module("dynamics", WorldConfig())
    optimizer = make_optimizer(OptimConfig(optimizer="muon"), 10)
    shapes = jax.eval_shape(optimizer.init, params)
    found = sharding.by_path(sharding.like_params(wide(fsdp=2, tensor=2), shapes, params))
    specs = {path: where.spec for path, where in found.items()}
    turned = [path for path in specs if "mu/" in path and path.endswith("query/kernel")]
    assert turned and all(specs[path] == PartitionSpec("fsdp", "tensor") for path in turned)
    assert [specs[path] for path in specs if path.endswith("ns_coeffs")] == [PartitionSpec()]


def test_arrays_that_mirror_nothing_are_refused(one):
    with pytest.raises(ValueError, match=r"history \[7\]"):
        sharding.like_params(one, {"history": shape(7)}, tree(), rules=RULES)


def test_batch_of_odd_rows_is_refused():
    two = mesh.make_mesh({"data": 2})
    with pytest.raises(ValueError, match=r"3 rows does not divide over the 2 devices .* 2 or 4 do"):
        placement.place_batch(two, {"x": np.zeros((3, 1))}, 3)
    with pytest.raises(ValueError, match=r"feeds 4 rows .* \{'x': 2\}"):
        placement.place_batch(two, {"x": np.zeros((2, 1))}, 4)


def test_rows_that_are_no_sequence_go_to_the_context_too():
    spec = lambda rows, sequence: (
        placement.batch_sharding(wide(data=2, context=4), rows, sequence=sequence).spec
    )
    assert spec(8, sequence=False) == PartitionSpec(("data", "fsdp", "context"))
    assert spec(6, sequence=False) == PartitionSpec(("data", "fsdp"))
    assert spec(6, sequence=True) == PartitionSpec(("data", "fsdp"), "context")


def test_meshes_are_read_from_text():
    assert mesh.parse_mesh("data=2, context=-1") == {"data": 2, "context": -1}
    assert mesh.parse_mesh("") == {}
    for text in ("data", "data=two", "data=2,data=2"):
        with pytest.raises(ValueError, match="is no AXIS=NUMBER or is there twice"):
            mesh.parse_mesh(text)


def test_the_first_process_leads(monkeypatch):
    assert distributed.is_lead()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert not distributed.is_lead()


def test_half_an_address_is_refused(monkeypatch):
    for name in ("COORDINATOR", "PROCESSES", "PROCESS"):
        monkeypatch.delenv(f"WORLDSIM_{name}", raising=False)
    distributed.start()
    with pytest.raises(ValueError, match="'processes', 'process'"):
        distributed.start("127.0.0.1:1234")
    with pytest.raises(ValueError, match="process 2 of 2"):
        distributed.start("127.0.0.1:1234", processes=2, index=2)


ON_FOUR = """
import dataclasses, json, sys
import jax
import numpy as np
from fake_stage import CONFIG, make_stage
from worldsim.config import TrainConfig
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.sharding import by_path
from worldsim.train.loop import train_stage
from worldsim.train.metrics import read_lines

def losses(folder):
    return [line["loss"] for line in read_lines(folder + "/fake/metrics.jsonl")]

folder = sys.argv[1]
args = dict(seed=3, config=TrainConfig())
four = make_mesh({"data": 2, "fsdp": -1})
state = train_stage(make_stage(), folder + "/four", mesh=four, **args)
train_stage(make_stage(), folder + "/one", **args)
longer = make_stage(dataclasses.replace(CONFIG, steps=5))
moved = train_stage(longer, folder + "/four", **args)  # from four devices to one
specs = {p: str(x.sharding.spec) for p, x in by_path((state.params, state.ema, state.opt_state)).items()}
devices = {p: len(x.sharding.device_set) for p, x in by_path(moved.params).items()}
print(json.dumps({"four": losses(folder + "/four"), "one": losses(folder + "/one"), "specs": specs,
                  "devices": devices, "mesh": dict(four.shape)}))
"""


@pytest.mark.law
def test_four_devices_train_as_one_and_hand_over(tmp_path):
    here = Path(__file__).parent
    env = {
        **os.environ,
        "PYTHONPATH": f"{here.parent}:{here}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", ON_FOUR, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "context": 1, "tensor": 1}
    np.testing.assert_allclose(found["four"][:4], found["one"], rtol=1e-5)
    assert len(found["four"]) == 5
    kernels = {path: spec for path, spec in found["specs"].items() if path.endswith("head/kernel")}
    assert len(kernels) == 4
    assert all("fsdp" in spec for spec in kernels.values()), kernels
    assert set(found["devices"].values()) == {1}
