"""Laws of several processes: they train as one device does, write once, stop together and hand over."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import fake_stage
import jax
import numpy as np
import processes
import pytest
from test_end_to_end import write_config
from test_law_mesh import VECTORS, first_step, some_codes, some_config

import worldsim
from worldsim.checkpoint import load_world
from worldsim.cli import options
from worldsim.config import TrainConfig
from worldsim.data.make import make_sprites
from worldsim.data.sprites import SpriteConfig
from worldsim.parallel import distributed
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.sharding import by_path
from worldsim.train import run
from worldsim.train.loop import train_stage
from worldsim.train.metrics import read_lines
from worldsim.train.stages import dynamics_stage

pytestmark = pytest.mark.law
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}


def losses(folder):
    """The losses by step in a stage's log, in which no step may be there twice."""
    lines = read_lines(folder / "metrics.jsonl")
    found = {line["step"]: line["loss"] for line in lines}
    assert len(found) == len(lines)
    return found


def close(a, b, rel):
    assert a.keys() == b.keys()
    for step in a:
        assert a[step] == pytest.approx(b[step], rel=rel), step


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({name: SLURM[name] for name in SLURM if name != "SLURM_STEP_NODELIST"}, None),  # no srun
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            "an indexed job of Kubernetes",
        ),
        ({"TPU": "1"}, "Cloud TPU"),
        ({"TPU": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU": "1", "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
    ],
)
def test_a_launcher_of_several_is_joined_and_one_process_left_alone(env, found, monkeypatch):
    asked = []
    for name in list(distributed.os.environ):
        if name.startswith(("WORLDSIM_", "SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_has_tpu", lambda env: "TPU" in env)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    assert distributed.launcher(distributed.os.environ) == found
    distributed.start()
    assert len(asked) == (found is not None)
    for given in asked:  # nothing that JAX does not find by itself
        assert given["coordinator_address"] is given["num_processes"] is given["process_id"] is None
    distributed.start(processes=1)
    assert len(asked) == (found is not None)
    distributed.start("node1:1234", processes=2, index=1)
    assert asked[-1]["coordinator_address"] == "node1:1234" and asked[-1]["process_id"] == 1
    assert asked[-1]["cluster_detection_method"] == "deactivate"


def test_what_cannot_be_joined_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="one of 4 processes.*Open MPI 5.*--coordinator"):
        distributed.launcher({"OMPI_COMM_WORLD_SIZE": "4"})
    with pytest.raises(ValueError, match="'node1' is no HOST:PORT"):
        distributed.start("node1", processes=2, index=0)
    monkeypatch.setenv("WORLDSIM_PROCESSES", "two")
    with pytest.raises(ValueError, match="WORLDSIM_PROCESSES='two' is no number"):
        distributed.start()
    monkeypatch.delenv("WORLDSIM_PROCESSES")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)

    def initialize(**_):
        raise RuntimeError("no answer")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(RuntimeError, match="as Slurm said.*no answer.*--processes 1"):
        distributed.start()


def test_a_tpu_that_knows_of_no_others_works_alone(monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed, "launcher", lambda _: distributed.TPU)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    distributed.start()


def test_two_processes_agree_stop_together_and_hand_over(tmp_path):
    """A toy on devices in an odd order; SIGTERM in one of two ends both, and one process goes on."""
    ends = processes.job("small", tmp_path, status=128 + signal.SIGTERM)
    first, second = (json.loads((tmp_path / f"agreed_{i}.json").read_text()) for i in range(2))
    assert first["rows"] == [0, 1, 2, 3, 6, 7] and second["rows"] == [0, 1, 4, 5, 6, 7]
    for said in (first, second):
        assert said["votes"] == [False, False, False, False, True, True]
        assert said["ended"] == [0, 143]
        assert said["lead"] == 7 and said["text"] == "größer"
        assert said["shares"] == [[[i / 3, i // 3] for i in range(5)], [[0, 0]]]
        assert "leaves processes [1] of 2 without a device; spread it over all 8" in said["idle"]
        assert "mesh of one device leaves processes [1]" in said["none"]
        assert said["alike"] == said["shared"] == "" and said["left"] == []
        assert "Stage 'x': b of processes [1] differ" in said["unlike"]
        assert "is not one folder: processes [1] do not see" in said["apart"]
    assert "stopped by SIGTERM after step 3, saved" in ends[0][2] and "SIGTERM" not in ends[1][2]

    stage, folder = fake_stage.make_stage(), tmp_path / "work" / "fake"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "3"]
    assert sorted(losses(folder)) == [1, 2, 3]
    assert len(list((folder / "tensorboard").glob("events*"))) == 1
    args = {"seed": 3, "config": TrainConfig()}
    resumed = train_stage(stage, tmp_path / "work", **args)
    whole = train_stage(stage, tmp_path / "whole", **args)
    close(losses(folder), losses(tmp_path / "whole" / "fake"), 1e-5)
    for path, leaf in by_path(whole.params).items():
        np.testing.assert_allclose(by_path(resumed.params)[path], leaf, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_are_those_of_one_device(tmp_path):
    processes.job("gradients", tmp_path, *processes.MESHES)
    loss, want, _ = first_step()
    for name in processes.MESHES:
        for index in range(processes.COUNT):
            with np.load(tmp_path / f"{name}_{index}.npz") as found:
                assert float(found["loss"]) == pytest.approx(loss, rel=1e-5)
                for path, gradient in want.items():
                    scale = max(np.sqrt(np.mean(gradient**2)), 1e-6)
                    assert np.sqrt(np.mean((found[path] - gradient) ** 2)) <= 1e-5 * scale, (name, path)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The losses of twenty steps on one device."""
    folder = tmp_path_factory.mktemp("one")
    train_alone(folder, {})
    return losses(folder / "dynamics")


def train_alone(folder, sizes, *stops):
    """The same in this process, where SIGTERM may come too."""
    mesh, config = make_mesh(sizes), some_config()
    stage = processes.signalled(dynamics_stage(config, some_codes(), vectors=VECTORS, mesh=mesh), set(stops))
    return train_stage(stage, folder, seed=3, config=config, mesh=mesh)


@pytest.mark.slow
def test_twenty_steps_end_at_the_same_loss_stopped_or_not_and_wherever_they_go_on(tmp_path, one):
    env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    processes.job("train", tmp_path / "straight", "straight", env=env)
    processes.job("train", tmp_path / "crossing", "crossing", env=env)
    whole = {name: losses(tmp_path / name / "dynamics") for name in ("straight", "crossing")}
    for found in whole.values():
        assert sorted(found) == list(range(1, 21))
        assert found[1] == pytest.approx(one[1], rel=1e-5)
        close(found, one, 1e-3)

    # The second process is asked to stop while it makes the batch of step 6, the first one a step later.
    stopped = tmp_path / "stopped"
    processes.job("train", stopped, "straight", "1:5", "0:6", status=143, env=env)
    assert sorted(losses(stopped / "dynamics")) == list(range(1, 8))
    assert [path.name for path in (stopped / "dynamics" / "checkpoints").iterdir()] == ["7"]
    shutil.copytree(stopped, tmp_path / "moved")
    processes.job("train", stopped, "straight", env=env)
    close(losses(stopped / "dynamics"), whole["straight"], 1e-6)

    # From two processes of four devices to one of eight, then to one device.
    with pytest.raises(SystemExit) as end:
        train_alone(tmp_path / "moved", processes.STRAIGHT, 11)
    assert end.value.code == 143 and max(losses(tmp_path / "moved" / "dynamics")) == 12
    train_alone(tmp_path / "moved", {})
    close(losses(tmp_path / "moved" / "dynamics"), one, 1e-3)


@pytest.mark.slow
def test_a_fault_in_one_process_ends_all(tmp_path):
    ends = processes.job("fail", tmp_path, status=None)
    assert all(status not in (0, None) for status, *_ in ends), processes.report(ends)
    assert "a record that can't be read" in ends[1][2]


@pytest.mark.slow
def test_the_command_trains_and_exports_one_world(tmp_path):
    """All stages by flags: the world of two processes is that of one, and everything is written once."""
    data = tmp_path / "data"
    make_sprites(data, config=SpriteConfig(size=32), episodes=5, test_episodes=2, length=20)
    file = write_config(tmp_path, data, samples=2)
    batches = [word for name in ("tokenizer", "refine", "dynamics") for word in (f"--{name}.batch", "8")]
    command = ["-m", "worldsim.cli", "train", str(file), "--workdir", str(tmp_path / "two"), *batches]
    several = ["--coordinator", "127.0.0.1:{port}", "--processes", "2", "--process", "{index}"]
    ends = processes.run([*command, *several, "--mesh", "data=4,context=2"], tmp_path)
    assert [end[0] for end in ends] == [0, 0], processes.report(ends)
    said = [processes.said(out) for _, out, _ in ends]
    assert said == [[str(tmp_path / "two" / "world")], []]
    assert "2 processes, 8 devices" in ends[0][2] and "encoding train: 3/3" in ends[0][2]
    assert not re.search(r"tokenizer: |encoding|processes,", ends[1][2])

    config = options.load_config(file)
    config = options.dataclasses.replace(
        config,
        **{
            name: options.dataclasses.replace(getattr(config, name), batch=8)
            for name in ("tokenizer", "refine", "dynamics")
        },
    )
    run.train(config, tmp_path / "one")
    for stage in ("tokenizer", "refine", "dynamics"):
        two, one = tmp_path / "two" / stage, tmp_path / "one" / stage
        close(losses(two), losses(one), 1e-3)
        assert files(two / "samples") == files(one / "samples") != []
        assert len(files(two / "tensorboard")) == 1
    assert files(tmp_path / "two" / "codes") == ["train.npz"]
    with np.load(tmp_path / "two/codes/train.npz") as two, np.load(tmp_path / "one/codes/train.npz") as one:
        assert sorted(two) == sorted(one)
        assert (two["lengths"] == one["lengths"]).all() and (two["actions"] == one["actions"]).all()
        assert (two["codes"] == one["codes"]).mean() > 0.99
    weights = [by_path(load_world(tmp_path / name / "world")[1]) for name in ("two", "one")]
    assert weights[0].keys() == weights[1].keys()
    for path, leaf in weights[1].items():
        np.testing.assert_allclose(weights[0][path], leaf, rtol=1e-2, atol=1e-2, err_msg=path)
    assert worldsim.load(tmp_path / "two" / "world").config == config.world


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
