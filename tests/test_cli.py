"""The command line: what it refuses, and that nothing is lost or made in vain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from worldsim import cli
from worldsim.cli.options import load_config, read_actions
from worldsim.data.video import read_video, write_video
from worldsim.types import Clip

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A world that was never trained, and a clip that it can take."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.make_world(tiny.config()).save(folder / "world")
    write_video(folder / "clip.npz", tiny.make_clip(4))
    return folder


def refused(capsys, *words):
    """The last line on stderr of a command that must end with status 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err.strip().splitlines()[-1]


def test_outputs_that_cannot_be_written_are_refused_before_the_world_is_loaded(folder, capsys):
    command = ("extend", folder / "no world", folder / "clip.npz", "--out")
    assert "'.xyz' can't be written; use .mp4" in refused(capsys, *command, "a.xyz")
    (folder / "there.npz").mkdir()
    assert "can't be written; give a file" in refused(capsys, *command, folder / "there.npz")
    assert "No world" in refused(capsys, *command, folder / "fine.npz")


def test_a_loop_without_a_ratio_is_still_json(folder, capsys, monkeypatch):
    monkeypatch.setattr("worldsim.ops.scores.seam_ratio", lambda _: float("inf"))
    cli.main(["loop", str(folder / "world"), str(folder / "clip.npz"), "--frames", "5", "--steps", "1",
              "--out", str(folder / "loop.npz"), "--json"])  # fmt: skip
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["seam_ratio"] is None
    assert told["motion_ratio"] > 0
    assert told["closing_nats_worst"] >= told["closing_nats"] > 0
    assert told["clip_nats"] > 0


def test_a_loop_that_does_not_hold_is_told_of(folder, capsys, monkeypatch):
    monkeypatch.setattr("worldsim.generate.requests.ALIVE", 1e9)
    cli.main(["loop", str(folder / "world"), str(folder / "clip.npz"), "--frames", "5", "--steps", "1",
              "--candidates", "1", "--sweeps", "0", "--out", str(folder / "loop.npz"), "--json"])  # fmt: skip
    told = capsys.readouterr()
    assert "no good loop of 5 frames: it moves" in told.err
    assert json.loads(told.out)["holds"] is False


def test_animate_takes_the_first_frame_of_a_clip(folder, capsys):
    command = ["animate", str(folder / "world"), str(folder / "clip.npz"), "--frames", "2", "--steps", "1"]
    cli.main([*command, "--out", str(folder / "moving.npz")])
    made = read_video(folder / "moving.npz").frames
    assert len(made) == 3
    np.testing.assert_array_equal(made[0], tiny.make_clip(4).frames[0])
    assert "loading" in capsys.readouterr().err


def test_an_input_is_padded_or_cropped_as_asked(folder, capsys):
    wide = Clip(np.full((2, 16, 32, 3), 200, np.uint8))
    write_video(folder / "wide.npz", wide)
    command = ("animate", folder / "world", folder / "wide.npz", "--frames", "1", "--out", folder / "fit.npz")
    assert "--resize" in refused(capsys, *command)
    for fit, brightness in (("pad", 0), ("crop", 200)):
        cli.main([*map(str, command), "--steps", "1", "--resize", "--fit", fit])
        assert read_video(folder / "fit.npz").frames[0, 0].max() == brightness


def test_damaged_files_are_named(folder, capsys):
    whole = (folder / "clip.npz").read_bytes()
    command = ("extend", folder / "world", folder / "bad.npz", "--out", folder / "out.npz")
    for damage in (whole[: len(whole) // 2], b"nothing", whole[:300] + bytes(200) + whole[500:]):
        (folder / "bad.npz").write_bytes(damage)
        assert "bad.npz: not a whole .npz of plain arrays" in refused(capsys, *command)
        train = ("train", ROOT / "configs/pong.py", "--workdir", folder / "w", "--data.path")
        assert "bad.npz can't be read as an .npz" in refused(capsys, *train, folder / "bad.npz")
    np.savez(folder / "bad.npz", frames=tiny.make_clip(2).frames, fps=[1, 2])
    assert "bad.npz: " in refused(capsys, *command)


def test_whole_number_masks_are_masks(folder):
    np.savez(folder / "mask.npz", frames=tiny.make_clip(3).frames, mask=[1, 1, 0])
    np.testing.assert_array_equal(read_video(folder / "mask.npz").mask, [True, True, False])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("left,jump", "no action 'jump'; the world has noop, left, right"),
        ("99999999999999", "no action '99999999999999'"),
        ("--5", "no action '--5'"),
        ("missing.npy", "--actions missing.npy: can't be read"),
    ],
)
def test_actions_that_the_world_does_not_have_are_named(text, told):
    with pytest.raises(ValueError, match=told):
        read_actions(text, tiny.make_world(tiny.config()))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("StageConfig(stepz=3)", r":2: .*unexpected keyword argument 'stepz'; did you mean 'steps'\?"),
        ("MixConfig(colour=3)", r":2: .*unexpected keyword argument 'colour'\.$"),
        ("(", r":2: '.' was never closed\.$"),
        ("TrainConfigs()", r":2: NameError: name 'TrainConfigs' is not defined"),
        ("TrainConfig().worlds", ":2: AttributeError: 'TrainConfig' object has no attribute 'worlds'"),
        ("{}['pong']", r":2: KeyError: 'pong'\.$"),
        ("DynamicsConfig(patch=5)", ":2: DynamicsConfig: patch 5 with width 192"),
        ("TrainConfig", ": .* must return a worldsim.config.TrainConfig; got type"),
    ],
)
def test_configs_that_cannot_be_used_say_why(tmp_path, text, told):
    path = tmp_path / "mine.py"
    path.write_text(f"from worldsim.config import *\ndef get_config(): return {text}\n")
    with pytest.raises(ValueError, match=rf"mine\.py{told}"):
        load_config(path)


def test_train_takes_the_config_it_was_given_and_no_other(tmp_path, capsys):
    assert "No config nothing;" in refused(capsys, "train", "nothing", "--workdir", tmp_path / "w")
    assert "No config" in refused(capsys, "train", ROOT / "README.md", "--workdir", tmp_path / "w")
    config = ROOT / "configs/pong.py"
    here = os.path.relpath(config)
    for spelt in (f"./{here}", here.replace("/", "//")):
        told = refused(capsys, "train", spelt, "--workdir", tmp_path / "w", "--data.path", tmp_path / "none")
        assert str(tmp_path / "none") in told
    told = refused(capsys, "train", "--workdir", tmp_path / "w.py", config, "--data.path", tmp_path / "none")
    assert str(tmp_path / "none") in told
    assert not (tmp_path / "w").exists()


def test_only_a_dataset_is_overwritten(tmp_path, capsys):
    write_video(tmp_path / "clip.npz", tiny.make_clip(3))
    make = ("data", "make", "sprites", "--episodes", "1", "--test-episodes", "1", "--length", "16")
    assert "is no dataset" in refused(capsys, *make, "--out", tmp_path / "clip.npz", "--overwrite")
    assert len(read_video(tmp_path / "clip.npz")) == 3
    out = tmp_path / "sprites"
    cli.main([*make, "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    (out / "notes.txt").write_text("mine")
    assert "--overwrite" in refused(capsys, *make, "--out", out)
    cli.main([*make, "--out", str(out), "--overwrite", "--seed", "1"])
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_wheel_carries_the_bundled_world(tmp_path):
    """Built and unpacked as pip does it, then used from another folder, without this checkout."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pip, wheel = [sys.executable, "-m", "hatchling"], ["build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run([*pip, *wheel], cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    code = (
        f"import sys; sys.path.insert(0, {str(built)!r}.replace('.whl', ''))\n"
        "import worldsim; from worldsim.worlds import clips\n"
        "assert 'site' not in worldsim.__file__ and '.whl' not in worldsim.__file__, worldsim.__file__\n"
        "assert worldsim.load('pong').provenance['name'] == 'pong' and len(clips('pong')) == 8\n"
        "print(worldsim.__file__)"
    )
    unpacked = Path(str(built).removesuffix(".whl"))
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(built), str(unpacked)], check=True)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.strip() == str(unpacked / "worldsim" / "__init__.py"), ran.stderr
