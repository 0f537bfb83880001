"""An evaluation from a dataset to the page: files, strict JSON, short episodes, refusals."""

import json
import re

import numpy as np
import pytest
import tiny

from worldsim import cli
from worldsim.config import ActionConfig
from worldsim.data.info import DataInfo, SplitInfo
from worldsim.data.make import make_sprites
from worldsim.data.sprites import SpriteConfig
from worldsim.evaluate.held_out import load_held_out, provenance_notes
from worldsim.evaluate.run import Settings, evaluate, summary


def write(path, *, episodes=4, length=30, size=16, actions=3, lengths=None):
    """Noise as a dataset."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train/", "test/"):
        arrays[f"{split}frames"] = rng.integers(0, 256, (episodes, length, size, size, 3), dtype=np.uint8)
        if actions:
            arrays[f"{split}actions"] = rng.integers(0, actions, (episodes, length)).astype(np.int32)
        arrays[f"{split}lengths"] = np.asarray(lengths or [length] * episodes)
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The sprites on 16x16, judged in a world that was never trained."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = SpriteConfig(size=16, push=1)
    make_sprites(folder / "s.npz", config=config, episodes=4, test_episodes=5, length=24)
    tiny_world = tiny.make_world(tiny.config(action=ActionConfig("discrete", 5)))
    settings = Settings(clips=3, horizon=64, samples=2, steps=1)
    return evaluate(
        tiny_world, folder / "s.npz", folder / "out", settings=settings, name="toy"
    ), folder / "out"


def test_everything_is_written_and_told(report):
    told, out = report
    assert json.loads((out / "report.json").read_text(), parse_constant=pytest.fail) == told
    assert told["horizon"] == 12 and told["known"] == 12 and told["clips"] == 3
    assert any("horizon cut from 64 to 12" in note for note in told["notes"])
    assert set(told["curves"]) == {"forward", "backward", "infill_4"}
    assert {len(one["psnr"]["mean"]) for one in told["curves"].values()} == {4, 12}
    assert set(told["actions"]) == {"1", "4"} and told["game"] == "sprites"
    assert told["state"]["reader"]["wrong_though_certain"] == 0
    assert told["state"]["forward"]["truth"]["legal"] == 1
    for name in ("forward", "backward", "infill_4", "state", "drift", "contact_sheet"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "nats a frame" in summary(told) and "true against wrong actions" in summary(told)


def test_rollouts_beyond_the_episodes_are_judged_without_truth(report):
    told = report[0]["drift"]
    assert told["frames"] == 64 and len(told["over"]) == 3 and 0 <= told["alive"] <= 1
    assert list(told["stretches"]) == ["1", "2", "3-4", "5-8", "9-16", "17-32", "33-64"]
    long = [told["stretches"][name] for name in ("5-8", "9-16", "17-32", "33-64")]
    for row in [*long, told["first_quarter"], told["last_quarter"]]:
        assert row["motion"] > 0 and row["sharpness"] > 0
        assert {"frechet", "floor", "legal", "redrawn", "there"} <= set(row)
    assert all(told["stretches"][name]["sharpness"] > 0 for name in ("1", "2", "3-4"))
    assert told["survival"] < 64 and "64 frames onward" in summary(report[0])


@pytest.mark.law
def test_the_page_is_whole_in_itself(report):
    text = (report[1] / "report.html").read_text("utf-8")
    assert text.count("data:image/png;base64,") == 6
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)|https?://|@import|url\(", text)
    assert "not comparable with published FVD" in text
    assert "color-scheme: light dark" in text and "nan" not in text.lower().split()
    for part in ("legal", "redraw rate", "flicker", "memorising", "bootstrap", "stays alive"):
        assert part in text


@pytest.mark.law
def test_windows_do_not_meet_what_they_are_compared_with(tmp_path, world):
    data = write(tmp_path / "d.npz", length=60)
    held = load_held_out(data, world.config, clips=4, horizon=4)
    assert (held.known, held.horizon, len(held)) == (16, 4, 4)
    mine = {frame.tobytes() for clip in held.frames for frame in clip}
    assert not mine & {frame.tobytes() for clip in held.others for frame in clip}
    assert not mine & {frame.tobytes() for clip in held.train for frame in clip}
    with np.load(data) as stored:
        held_out = {frame.tobytes() for rows in stored["test/frames"] for frame in rows}
    assert mine <= held_out


def test_short_episodes_cut_the_horizon_and_few_cut_the_clips(tmp_path, world):
    data = write(tmp_path / "d.npz", length=30, lengths=[30, 24, 20, 3])
    held = load_held_out(data, world.config, clips=12, horizon=64)
    assert held.known + held.horizon == 24 and len(held) == 2
    assert [note.split(":")[0] for note in held.notes][:2] == [
        "horizon cut from 64 to 12",
        "2 clips instead of 12",
    ]


@pytest.mark.law
def test_a_world_judged_on_what_it_was_trained_on_is_told_so():
    def info(train, test):
        splits = {name: SplitInfo(hashes=tuple(text)) for name, text in (("train", train), ("test", test))}
        return DataInfo("d", "arrays", 16, 16, 3, 10.0, ActionConfig(), (), splits, (), ())

    world = {"data": {"splits": {"train": {"hashes": ["a", "b", "c"]}}}}
    assert provenance_notes(world, info("abc", "de"), "test") == (True, [])
    same, (note,) = provenance_notes(world, info("abc", "cd"), "test")
    assert same and "1 of 2 episodes" in note and "not held out" in note
    same, (note,) = provenance_notes(world, info("xy", "de"), "test")
    assert not same and "no episode in common" in note and "memorising" in note
    assert provenance_notes({}, info("abc", "de"), "test")[0] is None
    assert provenance_notes(world, None, "test")[0] is None


def test_data_that_does_not_fit_is_refused_in_one_line(tmp_path, world):
    def refused(data, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as told:
            load_held_out(data, world.config, **({"clips": 3, "horizon": 8} | options))
        return str(told.value)

    both = refused(write(tmp_path / "a.npz", size=32, actions=5))
    assert "frames are 32x32" in both and "actions go from 0 to 4" in both
    assert "fewer than 2 frames" in refused(write(tmp_path / "b.npz", lengths=[1, 1, 1, 30]))
    assert "no split 'valid'" in refused(tmp_path / "b.npz", split="valid")
    assert "No dataset" in refused(tmp_path / "nothing")
    assert "take 2 clips" in refused(tmp_path / "b.npz", clips=1)
    assert "1 frame, or more" in refused(tmp_path / "b.npz", horizon=0)
    with pytest.raises(ValueError, match="0 samples"):
        Settings(samples=0)


def test_the_verb_takes_chunks_of_several_frames_and_no_actions(tmp_path, capsys):
    tiny.make_world(tiny.config(frames_per_chunk=4, action=ActionConfig(), context=4)).save(
        tmp_path / "world"
    )
    data, out = write(tmp_path / "d.npz", length=42), tmp_path / "out"
    words = ["evaluate", str(tmp_path / "world"), "--out", str(out)]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "give --data DIR" in capsys.readouterr().err
    cli.main(
        [*words, "--data", str(data), "--clips", "2", "--horizon", "9", "--samples", "1", "--steps", "1"]
    )
    said = capsys.readouterr()
    assert said.out == f"{out / 'report.html'}\n" and "forward, PSNR in dB" in said.err
    told = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
    assert told["horizon"] == 12 and told["known"] == 16 and told["actions"] is None
    assert not told["actions_given"] and told["game"] is None and told["state"] is None
    assert told["nats"]["forward"]["past"] == [4, 16]


def test_windows_of_whole_chunks_are_no_shorter_than_asked(tmp_path, pair_world):
    held = load_held_out(write(tmp_path / "d.npz", length=60), pair_world.config, clips=4, horizon=5)
    assert held.horizon == 6 and not any("horizon" in note for note in held.notes)


def test_a_split_that_is_not_read_to_its_end_is_told_of(tmp_path, world, monkeypatch):
    data = write(tmp_path / "d.npz", length=60, episodes=6)
    monkeypatch.setattr("worldsim.evaluate.held_out.FRAMES", 1)
    held = load_held_out(data, world.config, clips=2, horizon=4)
    assert "windows are cut from the first 2 episodes of the split 'test'" in held.notes
