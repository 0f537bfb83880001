"""``worldsim rollout``: video as it comes, stopped and gone on with to the same frames."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from worldsim import cli
from worldsim.data import movie
from worldsim.data.movie import MovieWriter
from worldsim.data.video import read_video, write_video
from worldsim.generate import stream
from worldsim.generate.standing import load_standing, save_standing
from worldsim.models.world import split_module
from worldsim.progress import Counter


@pytest.fixture
def folder(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stream, "PIECE", 4)
    world.save("world")
    write_video("start.npz", tiny.make_clip(6))
    return tmp_path


@pytest.fixture
def added(monkeypatch):
    """The frames that movies were given, and how to have a signal come at a piece."""
    seen, plain = {"frames": [], "stop": None}, MovieWriter.add

    def add(self, frames):
        seen["frames"].append(frames)
        if len(seen["frames"]) == seen["stop"]:
            signal.raise_signal(signal.SIGINT)
        plain(self, frames)

    monkeypatch.setattr(movie.MovieWriter, "add", add)
    return seen


def rollout(*more, out="long.mp4"):
    words = ["rollout", "world", "start.npz", "--out", out, "--frames", "17", "--steps", "1"]
    cli.main([*words, "--actions", "random", "--refine-steps", "1", *more])


def test_a_rollout_that_was_stopped_goes_on_to_the_same_frames(folder, added, capsys):
    rollout("--json")
    told = json.loads(capsys.readouterr().out)
    assert told["new"] == told["made"] == 17 and told["out"] == "long.mp4"
    whole, added["frames"] = np.concatenate(added["frames"]), []
    assert whole.shape == (6 + 17, 16, 16, 3)
    np.testing.assert_array_equal(whole[:6], tiny.make_clip(6).frames)

    added["stop"] = 3
    with pytest.raises(SystemExit) as left:
        rollout(out="cut.mp4")
    assert left.value.code == 130
    assert "stopped at 6 of 17 frames" in capsys.readouterr().err
    assert len(read_video("cut.mp4")) == 6 + 6 and (folder / "cut.mp4.rollout").is_file()
    with pytest.raises(SystemExit):
        rollout(out="cut.mp4")
    assert "--resume, or remove it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        rollout("--resume", "--seed", "4", out="cut.mp4")
    assert "seed was 0 and is 4" in capsys.readouterr().err

    rollout("--resume", out="cut.mp4")
    np.testing.assert_array_equal(np.concatenate(added["frames"]), whole)
    one, two = read_video("cut.mp4"), read_video("long.mp4")
    assert one.frames.shape == two.frames.shape == (23, 256, 256, 3)
    assert np.abs(one.frames.astype(int) - two.frames).mean() < 2
    assert sorted(path.name for path in folder.iterdir()) == ["cut.mp4", "long.mp4", "start.npz", "world"]


def test_tasks_of_a_launcher_do_not_write_one_file_together(folder, monkeypatch, capsys):
    for name, value in {
        "JOB_ID": "7",
        "STEP_NODELIST": "n",
        "NTASKS": "2",
        "PROCID": "1",
        "LOCALID": "1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SystemExit):
        rollout()
    assert "Slurm started this as one of several processes" in capsys.readouterr().err
    assert not (folder / "long.mp4").exists()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    rollout()


def test_what_was_stopped_before_an_option_was_there_goes_on_without_it(folder, added, world, capsys):
    added["stop"] = 3
    with pytest.raises(SystemExit):
        rollout()
    path = folder / "long.mp4.rollout"
    standing, asked = load_standing(path, world)
    for name in ("stabilize", "guidance", "doubt", "leads", "revisions", "sinks"):
        del asked[name]
    save_standing(path, standing, asked=asked)
    with pytest.raises(SystemExit):
        rollout("--resume", "--doubt", "0.5")
    assert "doubt was 0.0 and is 0.5" in capsys.readouterr().err
    rollout("--resume")
    assert len(read_video("long.mp4")) == 6 + 17 and not path.exists()


def test_what_was_stopped_before_there_were_revisions_goes_on_without_them(folder, added, world, capsys):
    added["stop"] = 3
    with pytest.raises(SystemExit):
        rollout("--steps", "4", "--revisions", "0")
    path = folder / "long.mp4.rollout"
    standing, asked = load_standing(path, world)
    del asked["revisions"]
    save_standing(path, standing, asked=asked)
    with pytest.raises(SystemExit):
        rollout("--steps", "4", "--resume")
    assert "revisions was 0 and is 2" in capsys.readouterr().err
    rollout("--steps", "4", "--resume", "--revisions", "0")
    assert len(read_video("long.mp4")) == 6 + 17 and not path.exists()


def test_a_movie_longer_than_what_was_left_beside_it_is_not_gone_on_with(folder, added, monkeypatch, capsys):
    """As where the disk is full once the movie has been joined."""

    def full(*_, **__):
        raise OSError("the disk is full")

    added["stop"] = 3
    with pytest.raises(SystemExit):
        rollout()
    added["stop"] = 4
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("worldsim.generate.standing.save_standing", full)
        rollout("--resume")
    assert "the disk is full" in capsys.readouterr().err
    assert len(read_video("long.mp4")) == 6 + 10
    with pytest.raises(SystemExit) as left:
        rollout("--resume")
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "long.mp4 has 16 frames and long.mp4.rollout was left at 12; bring the movie back" in told
    assert len(read_video("long.mp4")) == 6 + 10
    (folder / "long.mp4").unlink()
    with pytest.raises(SystemExit):
        rollout("--resume")
    assert "there is no such file to go on with" in capsys.readouterr().err


def test_what_is_no_rollout_of_this_world_is_refused(folder, world, pair_world):
    standing = world.rollout(tiny.make_clip(6), 8, steps=1).standing()
    path = save_standing("here", standing, asked={"seed": 3})
    back, asked = load_standing(path, world)
    assert asked == {"seed": 3}
    np.testing.assert_array_equal(back.codes, standing.codes)
    with pytest.raises(ValueError, match="another world"):
        load_standing(path, pair_world)
    (folder / "bad").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not where a rollout stood"):
        load_standing("bad", world)
    with pytest.raises(ValueError, match="3 frames in all, and 8 have been made"):
        done = world.rollout(tiny.make_clip(6), 8, steps=1)
        next(done)
        world.rollout(done.standing(), 3)


def test_movies_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="can't be written frame by frame"):
        MovieWriter(tmp_path / "a.gif", (16, 16), fps=10)
    with pytest.raises(FileNotFoundError, match="to go on with"):
        MovieWriter(tmp_path / "a.mp4", (16, 16), fps=10, append=True)
    with MovieWriter(tmp_path / "none.mp4", (16, 16), fps=10):
        pass
    assert not (tmp_path / "none.mp4").exists()


def test_a_movie_outlives_ctrl_c_in_a_terminal(tmp_path):
    """Which goes to all processes of the group, ffmpeg too."""
    code = (
        "import os, signal, time, numpy as np; from worldsim.data.movie import MovieWriter\n"
        "signal.signal(signal.SIGINT, lambda *_: None); frames = np.zeros((5, 16, 16, 3), np.uint8)\n"
        "with MovieWriter('out.mp4', (16, 16), fps=10) as movie:\n"
        "    movie.add(frames); os.killpg(os.getpgrp(), signal.SIGINT); time.sleep(0.5); movie.add(frames)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True)
    assert ran.returncode == 0
    assert len(read_video(tmp_path / "out.mp4")) == 10


def test_who_breaks_off_leaves_the_movie_as_it_was(tmp_path):
    path, frames = tmp_path / "it's.mp4", np.zeros((5, 16, 16, 3), np.uint8)
    with MovieWriter(path, (16, 16), fps=10) as made:
        made.add(frames)
    with pytest.raises(KeyError), MovieWriter(path, (16, 16), fps=10, append=True) as made:
        made.add(frames)
        raise KeyError
    assert len(read_video(path)) == 5
    with MovieWriter(path, (16, 16), fps=10, append=True) as made:
        made.add(frames)
    assert len(read_video(path)) == 10
    assert list(tmp_path.iterdir()) == [path]


def test_where_a_rollout_in_bfloat16_stood_is_read_back(tmp_path):
    config = tiny.config()
    half = tiny.make_world(config)
    graph = split_module("dynamics", config, dtype=jnp.bfloat16)[0]
    half = dataclasses.replace(half, dynamics=(graph, half.dynamics[1]))
    standing = half.rollout(tiny.make_clip(6), 8, steps=1).standing()
    assert standing.state.cache.keys[0].dtype == jnp.bfloat16
    back, _ = load_standing(save_standing(tmp_path / "here", standing), half)
    for one, other in zip(
        jax.tree.leaves(back.state.cache), jax.tree.leaves(standing.state.cache), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_counter_says_how_long_the_rest_takes(monkeypatch, capsys):
    now = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    count = Counter("making", ahead=True)
    for done in (0, 20, 40, 100):
        count("frames", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "making frames: 0/100",
        "making frames: 20/100, 40 s left ",
        "making frames: 40/100, 30 s left ",
        "making frames: 100/100, 0 s left ",
    ]
