"""From a dataset to video, tiny: both stages, the exported world, every verb, the shell, and few packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import worldsim
from worldsim import cli
from worldsim.cli import options
from worldsim.data.make import make_sprites
from worldsim.data.source import open_source
from worldsim.data.sprites import ACTIONS, SpriteConfig
from worldsim.data.video import read_video, write_video
from worldsim.train.metrics import read_lines
from worldsim.train.run import train
from worldsim.types import Clip

pytestmark = pytest.mark.law

ROOT = Path(__file__).resolve().parent.parent
SOURCE = '''"""A config as a user writes it."""
from worldsim.config import *

def get_config():
    stage = dict(steps=3, batch=2, log_every=1, save_every=2, optim=OptimConfig(warmup=1))
    return TrainConfig(
        name="tiny",
        world=WorldConfig(
            TokenizerConfig(height=32, width=32, widths=(8, 16), blocks=1, latent=4, levels=(3, 3)),
            DynamicsConfig(width=32, layers=1, heads=2, mlp=64, context=5, pinned=2,
                           action=ActionConfig("discrete", 5, ("none", "left", "right", "up", "down"))),
            RefineConfig(width=16, layers=1, heads=2, mlp=16),
            fps=10.0,
        ),
        data=DataConfig(path={path!r}),
        tokenizer=StageConfig(frames=2, sample_every={samples}, **stage),
        refine=StageConfig(frames=2, sample_every={samples}, **stage),
        dynamics=StageConfig(frames=8, sample_every={samples}, **stage),
        mix=MixConfig(chunks=6, queries=2),
        looks=8,
    )
'''


def write_config(folder, path, *, samples=0):
    file = folder / "tiny.py"
    file.write_text(SOURCE.replace("{path!r}", repr(str(path))).replace("{samples}", str(samples)))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared dataset of sprites."""
    out = tmp_path_factory.mktemp("data") / "sprites"
    info = make_sprites(out, config=SpriteConfig(size=32), episodes=4, test_episodes=2, length=20)
    assert info.action.names == ACTIONS
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A workdir in which all stages were trained, and its config."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder, data, samples=3)
    assert train(options.load_config(config), folder / "work") == folder / "work" / "world"
    return folder / "work", config


@pytest.fixture(scope="module")
def world(run):
    return worldsim.load(run[0] / "world")


@pytest.fixture(scope="module")
def clip(data):
    record = open_source(data, "test")[0]
    return Clip(record["frames"], record["actions"], fps=10.0)


def test_training_leaves_logs_samples_checkpoints_and_a_world(run, data):
    work, config = run
    for stage in ("tokenizer", "refine", "dynamics"):
        lines = [json.loads(line) for line in (work / stage / "metrics.jsonl").read_text().splitlines()]
        losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
        assert sorted(losses) == [1, 2, 3]
        assert all(np.isfinite(list(losses.values())))
        assert (work / stage / "checkpoints" / "3").is_dir()
        assert (work / stage / "samples" / "0000003.png").stat().st_size > 0
    assert read_video(work / "dynamics" / "samples" / "0000003.mp4").frames.shape[0] == 16
    told = json.loads((work / "world" / "provenance.json").read_text())
    assert told["steps"] == {"tokenizer": 3, "refine": 3, "dynamics": 3}
    assert told["data"]["splits"]["test"]["hashes"]  # which episodes were held out
    assert told["train"]["data"]["path"] == str(data)
    assert options.load_config(config).world == worldsim.load(work / "world").config


def test_every_verb_of_a_trained_world(world, clip):
    key, after = jax.random.key(3), np.array([0, 1, 2, 3])
    out = {
        "forward": world.extend(clip[:6], 4, actions=after, steps=2, key=key),
        "backward": world.extend(clip[6:], 4, direction="backward", actions=after, steps=2, key=key),
        "infill": world.infill(clip[:5], clip[9:], 4, actions=clip.actions[5:9], steps=2, key=key),
        "loop": world.loop(clip, 6, steps=2, key=key),
        "animate": world.animate(clip.frames[0], 4, actions=after, steps=2, key=key),
    }
    counts = {"forward": (6, 4), "backward": (14, 4), "infill": (16, 4), "loop": (2, 4), "animate": (1, 4)}
    for name, made in out.items():
        assert (int(made.known.sum()), int((~made.known).sum())) == counts[name]
        assert len(made.clip) == sum(counts[name])
        assert len(made.clip.actions) == len(made.clip)
    np.testing.assert_array_equal(out["forward"].clip.frames[:6], clip.frames[:6])
    np.testing.assert_array_equal(out["backward"].clip.frames[4:], clip.frames[6:])
    np.testing.assert_array_equal(out["infill"].clip.frames[9:], clip.frames[9:])
    np.testing.assert_array_equal(out["infill"].clip.actions, clip.actions[:])
    assert world.reconstruct(clip).frames.shape == clip.frames.shape


@pytest.fixture(scope="module")
def files(clip, tmp_path_factory):
    """Inputs for the shell: a clip and two halves of one, a picture, and a clip of another size."""
    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "clip.npz", clip)
    write_video(folder / "start.npz", clip[:5])
    write_video(folder / "end.npz", clip[9:])
    large = np.repeat(np.repeat(clip.frames, 2, 1), 2, 2)
    write_video(folder / "large.npz", Clip(large, clip.actions))
    write_video(folder / "picture.png", clip[:1], scale=1)
    return folder


SCORES = {"loop": ("seam_ratio", "jerk_ratio", "peak_ratio", "motion_ratio"), "reconstruct": ("psnr", "ssim")}
VERBS = {
    "forward": ("extend", "clip.npz", ["--frames", "4", "--actions", "up,right,none,4"], "forward.npz", 24),
    "backward": ("extend", "clip.npz", ["--frames", "4", "--direction", "backward"], "backward.gif", 24),
    "infill": ("infill", "start.npz end.npz", ["--frames", "4"], "infill.png", 20),
    "loop": ("loop", "clip.npz", ["--frames", "6"], "loop.npz", 6),
    "animate": ("animate", "picture.png", ["--frames", "4", "--seed", "3", "--resize"], "animate.npz", 5),
    "reconstruct": ("reconstruct", "large.npz", ["--resize"], "seen.npz", 20),
}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_of_the_shell(run, files, tmp_path, capsys, name):
    verb, inputs, options, out, count = VERBS[name]
    paths = [str(files / part) for part in inputs.split()]
    dials = [] if verb == "reconstruct" else ["--steps", "2"]
    cli.main([verb, str(run[0] / "world"), *paths, "--out", str(tmp_path / out), "--json", *options, *dials])
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(tmp_path / out)
    assert told["frames"] == count
    assert all(np.isfinite(told[score]) for score in SCORES.get(verb, ()))
    made = read_video(tmp_path / out)
    if out.endswith(".npz"):
        assert made.frames.shape == (count, 32, 32, 3)
    elif out.endswith(".gif"):
        assert len(made) == count
    if name == "forward":
        np.testing.assert_array_equal(made.frames[:20], read_video(files / "clip.npz").frames)
        assert made.actions[20:].tolist() == [3, 2, 0, 4]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("extend {world} {files}/large.npz --out {tmp}/x.npz", "64x64 and the world takes"),
        (
            "extend {world} {files}/clip.npz --out {tmp}/x.npz --frames 2 --actions up",
            "1 actions for 2 frames",
        ),
        ("extend {world} {files}/clip.npz --out {tmp}/x.npz --frames 1 --actions jump", "no action 'jump'"),
        ("extend {world} {files}/clip.npz --out {tmp}/x.npz --steps 0", "steps 0"),
        ("extend {world} {files}/none.npz --out {tmp}/x.npz", "no such file"),
        ("extend nowhere {files}/clip.npz --out {tmp}/x.npz", "No world 'nowhere'"),
        ("loop {world} {files}/clip.npz --out {tmp}/x.npz --frames 2", "more than 2 frames"),
        ("reconstruct {world} {files}/clip.npz --out {tmp}/x.avi", ".avi"),
        ("train {files}/none.py --workdir {tmp}/work", "No config"),
        ("data", "worldsim data make"),
    ],
)
def test_mistakes_end_with_one_line_and_status_two(run, files, tmp_path, capsys, line, words):
    filled = line.format(world=run[0] / "world", files=files, tmp=tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(filled.split())
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert words in said.err
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def test_the_shell_trains_on_with_overrides(run, capsys):
    """A finished run is only read; with more steps asked for it goes on, and exports the world anew."""
    work, config = run
    before = (work / "world" / "weights.safetensors").read_bytes()
    cli.main(["train", str(config), "--workdir", str(work)])
    assert capsys.readouterr().out.strip() == str(work / "world")
    assert (work / "world" / "weights.safetensors").read_bytes() == before
    cli.main(["train", str(config), "--workdir", str(work), "--stage", "dynamics", "--dynamics.steps", "4"])
    assert (work / "world" / "weights.safetensors").read_bytes() != before
    told = json.loads((work / "world" / "provenance.json").read_text())
    assert told["steps"] == {"tokenizer": 3, "dynamics": 4, "refine": 3}


@pytest.mark.slow
def test_the_shell_trains_over_a_mesh(data, clip, tmp_path, capsys):
    """All stages on eight devices in one process; what comes of it needs none of them."""
    config, work = write_config(tmp_path, data, samples=2), tmp_path / "work"
    stages = ("tokenizer", "refine", "dynamics")
    few = [f"--{stage}.{word}" for stage in stages for word in ("steps=2", "batch=4")]
    cli.main(["train", str(config), "--workdir", str(work), "--mesh", "data=2,fsdp=2,context=2", *few])
    assert capsys.readouterr().out.strip() == str(work / "world")
    for stage in stages:
        found = [line["loss"] for line in read_lines(work / stage / "metrics.jsonl") if "loss" in line]
        assert len(found) == 2 and np.isfinite(found).all()
        assert (work / stage / "samples" / "0000002.png").stat().st_size > 0
    made = worldsim.load(work / "world").extend(clip[:6], 4, steps=2, key=jax.random.key(3))
    np.testing.assert_array_equal(made.clip.frames[:6], clip.frames[:6])
    assert len(made.clip) == 10


def test_a_misspelt_override_names_the_right_one(run, capsys):
    work, config = run
    with pytest.raises(SystemExit):
        cli.main(["train", str(config), "--workdir", str(work), "--dynamics.step", "4"])
    assert "--dynamics.steps" in capsys.readouterr().err


def test_the_shell_makes_data(tmp_path, capsys):
    out = tmp_path / "made"
    cli.main(f"data make sprites --out {out} --episodes 2 --test-episodes 1 --length 16".split())
    assert capsys.readouterr().out.strip() == str(out)
    assert len(open_source(out, "train")) == 2


BARE = """
import sys
for name in "tensorflow_datasets array_record grain mediapy imageio_ffmpeg tyro tensorboardX".split():
    sys.modules[name] = None  # an import of it fails
import runpy
from pathlib import Path
import numpy as np
import worldsim
from worldsim.train.run import train

folder = Path(sys.argv[1])
config = runpy.run_path(str(folder / "tiny.py"))["get_config"]()
world = worldsim.load(train(config, folder / "work"))
with np.load(folder / "data.npz") as data:
    clip = worldsim.Clip(data["test/frames"][0], data["test/actions"][0])
made = world.extend(clip, 3, direction="backward", steps=2)
from worldsim.data.video import write_video
print(write_video(folder / "made.npz", made.clip))
"""


def test_core_trains_from_arrays_and_generates_without_the_heavy_packages(tmp_path):
    make_sprites(tmp_path / "data.npz", config=SpriteConfig(size=32), episodes=3, test_episodes=1, length=16)
    write_config(tmp_path, tmp_path / "data.npz")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", BARE, str(tmp_path)]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(done.stdout.strip().splitlines()[-1]) == tmp_path / "made.npz"
    made = read_video(tmp_path / "made.npz")
    assert len(made) == 19
