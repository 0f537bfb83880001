"""Importing recordings: real files of every kind, their times, actions, splits, and a dataset that grows."""

import json
import re
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import movies
import numpy as np
import pytest

from worldsim import cli
from worldsim.data import importing, read_episodes, read_info
from worldsim.data.builders import RecordConfig, Tally, dataset_name
from worldsim.data.decode import Look, Recording, UnusableError, at_rate, whole_step
from worldsim.data.importing import ImportConfig, import_recordings
from worldsim.data.video import read_video

PAD = Look(32, 32, "pad")


def decoded(path, look=PAD, **options):
    return np.stack(list(Recording(path, look).frames(**options)))


def stored(out, split="train"):
    return [movies.numbers(e["frames"]) for e in read_episodes(out, split, keys=("frames",))]


def record_all(folder, **files):
    """Recordings by stem, of as many frames as told or of a given first brightness."""
    for index, (name, count) in enumerate(files.items()):
        movies.record(folder / f"{name}.mp4", movies.ramp(count, start=index))


# --- Frames and their times


@pytest.mark.parametrize(("suffix", "step"), [(".mp4", 10), (".MOV", 10), (".webm", 10), (".gif", 24)])
def test_every_frame_of_every_kind_is_read_in_order(tmp_path, suffix, step):
    count = 250 // step
    frames = decoded(movies.record(tmp_path / f"clip{suffix}", movies.ramp(count, step=step)))
    assert movies.numbers(frames, step=step) == list(range(count))


@pytest.mark.law
def test_a_recording_of_varying_rate_keeps_its_time(tmp_path):
    """The picture in decode.py: frames appear at 0, 40, 160 and 200 ms."""
    times = [0, 40, 160, 200, 240, 280, 320, 360]
    path = movies.record(tmp_path / "clip.mp4", movies.ramp(8, step=30), times=times)
    assert movies.numbers(decoded(path), step=30) == list(range(8))
    at = decoded(path, Look(32, 32, "pad", fps=12.5))
    assert movies.numbers(at, step=30)[:5] == [0, 1, 2, 4, 6]
    at = decoded(path, Look(32, 32, "pad", fps=25))
    assert movies.numbers(at, step=30)[:9] == [0, 1, 1, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_asking_for_the_rate_that_is_there_changes_nothing(tmp_path, suffix):
    """Also where the container rounds 33.3 ms to 33, 67 and 100."""
    path = movies.record(tmp_path / f"clip{suffix}", movies.ramp(25, step=10), fps=30)
    assert movies.numbers(decoded(path, Look(32, 32, "pad", 30)), step=10) == list(range(25))
    assert movies.numbers(decoded(path, Look(32, 32, "pad", 10)), step=10) == list(range(0, 25, 3))


def test_a_frame_is_never_shown_before_its_time():
    timed = [(0.0, np.zeros((1, 1, 3), np.uint8)), (10.0, np.ones((1, 1, 3), np.uint8))]
    shown = [int(frame.max()) for frame in at_rate(timed, 2.0)]
    assert shown == [0] * 20 + [1]


def test_telephone_pictures_are_upright(tmp_path):
    frames = movies.ramp(16, step=0)
    frames[:, :24, :40] = 250  # the upper left quarter, as the sensor sees it
    corners = {}
    for turn in (0, 90, 180, -90):
        frame = decoded(movies.record(tmp_path / f"{turn}.mp4", frames, turn=turn), Look(80, 80, "pad"))[0]
        corners[turn] = [int(frame[y, x].mean()) > 100 for y in (30, 50) for x in (30, 50)]
    assert corners == {
        0: [True, False, False, False],
        90: [False, False, True, False],  # turned to the left
        180: [False, False, False, True],
        -90: [False, True, False, False],
    }


def test_crop_fills_the_frame_and_pad_keeps_all_of_it(tmp_path):
    frames = movies.ramp(16, start=200, step=0)
    frames[:, :, :8] = frames[:, :, -8:] = 0  # dark ends of a wide picture
    path = movies.record(tmp_path / "wide.mp4", frames)
    crop, pad = decoded(path, Look(32, 32, "crop"))[0], decoded(path, PAD)[0]
    assert crop.min() > 150
    assert pad[16, 16].min() > 150 and pad[16, 1].max() < 60 and pad[2].max() == 0


# --- What can't be taken


def test_unusable_files_are_listed_with_their_reasons(tmp_path):
    folder = tmp_path / "in"
    record_all(folder, good=20, fine=20, short=10)
    (folder / "empty.webm").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(b"not a video" * 100)
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "copy.mp4").write_bytes(whole)
    (folder / ".hidden.mp4").write_bytes(b"")
    done = import_recordings(folder, tmp_path / "out", config=ImportConfig(PAD))
    assert sorted(file.name for file in done.new) == ["copy.mp4", "fine.mp4"]
    told = {file.name: file.reason for file in done.skipped}
    assert told.keys() == {"short.mp4", "empty.webm", "noise.mp4", "cut.mp4", "good.mp4"}
    assert "too short: 10 frames, a record has 16" in told["short.mp4"]
    assert "empty (0 bytes)" in told["empty.webm"] and "can't be decoded" in told["noise.mp4"]
    assert told["good.mp4"] == "its content is that of copy.mp4"
    assert [file for file in read_info(tmp_path / "out").files if file.reason] == list(done.skipped)


def test_a_recording_that_ends_early_is_taken_and_told_of(tmp_path, capsys):
    """Its container counts 40 frames, and the last packet is not in the file."""
    (tmp_path / "in").mkdir()
    whole, early = movies.record(tmp_path / "whole.mp4", movies.ramp(40)), tmp_path / "in" / "early.mp4"
    with av.open(str(whole)) as old, av.open(str(early), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    with av.open(str(early)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.dts is not None)
    early.write_bytes(early.read_bytes()[:last])
    record_all(tmp_path / "in", other=20)
    cli.main(["data", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "32"])
    assert "  early.mp4: 1 frames missing at its end" in capsys.readouterr().err
    files = {file.name: file for file in read_info(tmp_path / "out").files}
    assert (files["early.mp4"].frames, files["early.mp4"].missing) == (39, 1)
    assert files["other.mp4"].missing == 0
    cli.main(["data", "info", str(tmp_path / "out")])
    assert "early.mp4: test, 39 frames, 1 missing at its end" in capsys.readouterr().out.replace(
        "train", "test"
    )


def test_a_file_that_breaks_in_its_middle_leaves_nothing_behind(tmp_path, monkeypatch):
    record_all(tmp_path / "in", a=40, b=40)
    real = Recording._time

    def breaking(self, frame, even):
        if self._path.stem == "a" and self.count == 30:
            raise UnusableError("frame 30 is damaged")
        return real(self, frame, even)

    monkeypatch.setattr(Recording, "_time", breaking)
    done = import_recordings(
        tmp_path / "in", tmp_path / "out", config=ImportConfig(PAD, records=RecordConfig(2, 1))
    )
    assert [file.reason for file in done.skipped] == ["frame 30 is damaged"]
    assert done.info.splits.keys() == {"train"} and done.info.splits["train"].frames == 40


def test_nothing_usable_is_an_error_with_all_reasons(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"in holds no recordings: no \.mp4"):
        import_recordings(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/a.mp4").write_bytes(b"x")
    (tmp_path / "in/b.gif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)no recording could be used.*a\.mp4: .*b\.gif: "):
        import_recordings(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# --- Actions


def with_actions(folder, name, rows, *, frames=24):
    path = movies.record(folder / f"{name}.mp4", movies.ramp(frames, start=sum(map(ord, name)) % 60))
    if isinstance(rows, str):
        (folder / f"{name}.actions.csv").write_text(rows)
    else:
        np.save(folder / f"{name}.actions.npy", rows)
    return path


@pytest.mark.law
@pytest.mark.parametrize("follow", [False, True])
def test_actions_stand_beside_the_frame_they_lead_to(tmp_path, follow):
    rows = np.arange(24)
    with_actions(tmp_path / "in", "a", rows)
    config = ImportConfig(PAD, follow=follow)
    info = import_recordings(tmp_path / "in", tmp_path / "out", config=config).info
    (episode,) = read_episodes(tmp_path / "out", "train")
    assert episode["actions"][0] == -1 and episode["actions"].dtype == np.int32
    np.testing.assert_array_equal(episode["actions"][1:], rows[:-1] if follow else rows[1:])
    assert (info.action.kind, info.action.size) == ("discrete", 23 if follow else 24)


def test_csv_and_continuous_actions(tmp_path):
    lines = "steer, gas\n" + "\n".join(f"{i}, 0.5" for i in range(24))
    with_actions(tmp_path / "in", "a", lines)
    with_actions(tmp_path / "in", "bb", np.linspace(0, 1, 48).reshape(24, 2))
    info = import_recordings(tmp_path / "in", tmp_path / "out", config=ImportConfig(PAD)).info
    assert (info.action.kind, info.action.size) == ("continuous", 2)
    for split in ("train", "test"):
        (episode,) = read_episodes(tmp_path / "out", split)
        assert np.isnan(episode["actions"][0]).all() and np.isfinite(episode["actions"][1:]).all()


def test_bad_actions_are_skipped_with_their_reasons(tmp_path):
    folder = tmp_path / "in"
    fine = np.arange(24) % 3
    for name in ("a", "bb"):
        with_actions(folder, name, fine)
    with_actions(folder, "fewrows", fine[:20])
    with_actions(folder, "nan", np.where(fine == 2, np.nan, fine))
    with_actions(folder, "floating", fine + 0.5)
    with_actions(folder, "negative", fine - 1)
    with_actions(folder, "grid", np.zeros((24, 2), int))
    with_actions(folder, "ragged_rows", "1,2\n3\n")
    with_actions(folder, "quote", '1\n"' + "2\n" * 2**17)
    with_actions(folder, "zipped", fine)
    np.savez(folder / "zipped.npz", rows=fine)
    (folder / "zipped.npz").rename(folder / "zipped.actions.npy")
    with_actions(folder, "bent", fine)
    raw = (folder / "bent.actions.npy").read_bytes()
    (folder / "bent.actions.npy").write_bytes(raw.replace(b"(24,)", b"(24,("))
    movies.record(folder / "without_any.mp4", movies.ramp(24, start=90))
    done = import_recordings(folder, tmp_path / "out", config=ImportConfig(PAD))
    told = {file.name.removesuffix(".mp4"): file.reason for file in done.skipped}
    for name, reason in {
        "fewrows": "20 rows of actions for 24 frames",
        "nan": "no finite number in row 2",
        "floating": "continuous actions of size 1 while others have discrete",
        "negative": "actions under 0",
        "grid": r"holds int64 [24, 2]; give integers [t] or floats",
        "ragged_rows": "rows of [1, 2] cells",
        "quote": "quote.actions.csv can't be read (field larger than field limit",
        "zipped": "zipped.actions.npy can't be read (the magic string is not correct",
        "bent": "bent.actions.npy can't be read",
        "without_any": "it has no actions while others have discrete actions; give",
    }.items():
        assert reason in told.pop(name)
    assert not told and sorted(file.name for file in done.new) == ["a.mp4", "bb.mp4"]
    config = ImportConfig(PAD, actions=False)
    done = import_recordings(folder, tmp_path / "out", config=config, overwrite=True)
    assert not done.skipped and done.info.action.kind == "none"


def test_with_actions_the_rate_goes_down_in_whole_steps_only(tmp_path):
    rows = np.array([0, 1, 1, 2, 3, 3, 4, 4, 5, 5] * 4 + [6])
    with_actions(tmp_path / "in", "a", rows[:, None] * np.ones(2), frames=41)
    look = Look(32, 32, "pad", fps=25 / 2)
    import_recordings(tmp_path / "in", tmp_path / "out", config=ImportConfig(look))
    (episode,) = read_episodes(tmp_path / "out", "train")
    assert len(episode["frames"]) == 21
    np.testing.assert_allclose(episode["actions"][1:5, 0], [1, 2.5, 3.5, 4.5])  # means of rows 1-2, 3-4, ...
    assert whole_step(29.97, 15) == 2 and whole_step(30, None) == 1
    config = ImportConfig(Look(32, 32, "pad", fps=10))
    with pytest.raises(ValueError, match=r"25 frames a second .* can't become 10 .*--fps 25, 12\.5, 8\.333"):
        import_recordings(tmp_path / "in", tmp_path / "other", config=config)


def test_the_commonest_action_stands_for_those_on_the_way():
    from worldsim.data.actions import thinned

    rows = np.array([-1, 0, 1, 1, 2, 3, 2, 4, 5, 6], np.int32)
    assert thinned(rows, 3).tolist() == [-1, 1, 2, 6]


# --- Splits and growth


@pytest.mark.law
def test_splits_go_by_file_and_by_content_whatever_the_names(tmp_path):
    record_all(tmp_path / "in", **{f"n{i}": 20 for i in range(8)})
    config = ImportConfig(PAD, test_share=0.4)
    first = import_recordings(tmp_path / "in", tmp_path / "a", config=config)
    for path in sorted((tmp_path / "in").iterdir()):
        path.rename(path.with_name(f"other_{path.name[::-1][4:]}.mp4"))
    second = import_recordings(tmp_path / "in", tmp_path / "b", config=config)
    splits = {file.hash: file.split for file in first.new}
    assert splits == {file.hash: file.split for file in second.new} and set(splits.values()) == {
        "train",
        "test",
    }
    assert first.info.splits == second.info.splits
    assert not set(first.info.splits["train"].hashes) & set(first.info.splits["test"].hashes)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_both_splits_have_a_file_as_soon_as_there_are_two(tmp_path, share, count):
    record_all(tmp_path / "in", **{f"n{i}": 16 for i in range(count)})
    config = ImportConfig(PAD, test_share=share)
    info = import_recordings(tmp_path / "in", tmp_path / "out", config=config).info
    assert set(info.splits) == ({"train"} if count == 1 else {"train", "test"})
    assert sum(split.episodes for split in info.splits.values()) == count


@pytest.mark.law
def test_a_second_run_adds_only_what_is_new(tmp_path, monkeypatch):
    folder, out, config = tmp_path / "in", tmp_path / "out", ImportConfig(PAD, test_share=0.0)
    record_all(folder, a=20, b=24)
    import_recordings(folder, out, config=config)
    before = {split: stored(out, split) for split in ("train", "test")}
    read = []
    real = Recording.frames
    monkeypatch.setattr(
        Recording, "frames", lambda self, **k: read.append(self._path.name) or real(self, **k)
    )
    again = import_recordings(folder, out, config=config)
    assert not again.new and not read
    (folder / "a.mp4").rename(folder / "renamed.mp4")
    movies.record(folder / "c.mp4", movies.ramp(28, start=3))
    grown = import_recordings(folder, out, config=config)
    assert read == ["c.mp4"] and [file.name for file in grown.new] == ["c.mp4"]
    assert sorted(file.name for file in grown.info.files) == ["b.mp4", "c.mp4", "renamed.mp4"]
    for split, episodes in before.items():
        assert stored(out, split)[: len(episodes)] == episodes
    assert sum(len(stored(out, split)) for split in before) == 3
    assert [path.name for path in out.iterdir()] == ["1.1.0"]
    fresh = import_recordings(folder, tmp_path / "fresh", config=config).info
    frames = np.concatenate([e["frames"] for e in read_episodes(out, "train", keys=("frames",))])
    assert len(frames) == grown.info.splits["train"].frames > 28  # the new file's and a former one's
    np.testing.assert_array_equal(grown.info.median, np.median(frames, 0).astype(np.uint8))
    np.testing.assert_allclose(grown.info.mean, frames.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(grown.info.std, frames.std((0, 1, 2)), atol=1e-3)
    assert sum(s.frames for s in grown.info.splits.values()) == sum(s.frames for s in fresh.splits.values())
    (folder / "b.mp4").unlink()
    assert import_recordings(folder, out, config=config).gone == ("b.mp4",)
    assert sum(len(stored(out, split)) for split in before) == 3


@pytest.mark.law
@pytest.mark.parametrize("where", ["frames", "install", "with_statistics"])
def test_an_interrupted_run_leaves_the_old_dataset_whole(tmp_path, monkeypatch, where):
    folder, out, config = tmp_path / "in", tmp_path / "out", ImportConfig(PAD)
    record_all(folder, a=20, b=24)
    import_recordings(folder, out, config=config)
    before = {split: stored(out, split) for split in ("train", "test")}
    movies.record(folder / "c.mp4", movies.ramp(28, start=3))

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Recording, where) if where == "frames" else (importing, where)), stop)
        with pytest.raises(KeyboardInterrupt):
            import_recordings(folder, out, config=config)
    assert {split: stored(out, split) for split in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert [file.name for file in import_recordings(folder, out, config=config).new] == ["c.mp4"]


def test_at_any_moment_of_a_replacement_a_dataset_can_be_opened(tmp_path, monkeypatch):
    record_all(tmp_path / "in", a=20)
    out, config = tmp_path / "out", ImportConfig(PAD)
    import_recordings(tmp_path / "in", out, config=config)
    before, real = stored(out), Path.rename

    def stop(self, target):
        if self.name == ".out.partial":
            assert stored(out) == before
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            import_recordings(tmp_path / "in", out, config=config, overwrite=True)
    assert stored(out) == before
    import_recordings(tmp_path / "in", out, config=config, overwrite=True)
    assert stored(out) == before and [path.name for path in out.iterdir()] == ["1.0.0"]


def test_other_options_and_other_datasets_are_refused(tmp_path):
    record_all(tmp_path / "in", a=20)
    import_recordings(tmp_path / "in", tmp_path / "out", config=ImportConfig(PAD))
    with pytest.raises(ValueError, match=r"other options \(height: stored 32, asked 64; .*--overwrite"):
        import_recordings(tmp_path / "in", tmp_path / "out")
    import_recordings(tmp_path / "in", tmp_path / "out", overwrite=True)
    assert read_info(tmp_path / "out").height == 64
    cli.main(["data", "make", "sprites", "--episodes", "1", "--test-episodes", "1", "--length", "16",
              "--out", str(tmp_path / "out"), "--overwrite"])  # fmt: skip
    assert read_info(tmp_path / "out").kind == "sprites"
    with pytest.raises(FileExistsError, match="kind 'sprites', to which no recordings can be added"):
        import_recordings(tmp_path / "in", tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"x\.npz: recordings are imported into a folder"):
            import_recordings(tmp_path / "in", tmp_path / "x.npz", overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_long_recording_is_handled_in_parts_and_stays_one_episode(tmp_path, monkeypatch):
    frames = np.concatenate([movies.ramp(30, step=8)] * 4)
    movies.record(tmp_path / "in/long.mp4", frames)
    parts = []
    real = Tally.add
    monkeypatch.setattr(Tally, "add", lambda self, s, e, c: parts.append(len(e)) or real(self, s, e, c))
    config = ImportConfig(PAD, records=RecordConfig(size=3, minimum=2))
    info = import_recordings(tmp_path / "in", tmp_path / "out", config=config).info
    assert parts == [48, 48, 24]
    (episode,) = read_episodes(tmp_path / "out", "train", keys=("frames",))
    assert movies.numbers(episode["frames"]) == list(range(30)) * 4
    train = info.splits["train"]
    assert (train.episodes, train.frames, train.records, len(train.hashes)) == (1, 120, 40, 1)


# --- The commands


def test_the_command_tells_what_it_did_and_info_shows_it(tmp_path, capsys):
    record_all(tmp_path / "in", a=20, b=24)
    (tmp_path / "in/bad.mp4").write_bytes(b"x")
    command = ["data", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "32"]
    cli.main(command)
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'out'}\n"
    assert "2 new, 1 skipped" in told.err and "bad.mp4: it can't be decoded" in told.err
    sheet = tmp_path / "sheet.png"
    cli.main(["data", "info", str(tmp_path / "out"), "--out", str(sheet), "--json"])
    known = json.loads(capsys.readouterr().out)
    assert known["frame"] == [32, 32, 3] and known["fps"] == 25 and known["bytes"] > 0
    assert sum(split["frames"] for split in known["splits"].values()) == 44
    assert [file["name"] for file in known["skipped"]] == ["bad.mp4"] and sheet.stat().st_size > 0
    cli.main(["data", "info", str(tmp_path / "out")])
    assert "skipped  bad.mp4: it can't be decoded" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*command, "--fit", "pad"])
    assert "fit: stored crop, asked pad" in capsys.readouterr().err


def test_the_view_of_rlds_is_refused_for_recordings(tmp_path, capsys):
    record_all(tmp_path / "in", a=20)
    with pytest.raises(SystemExit):
        cli.main(["data", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--view", "image"])
    assert "leave --view out" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_a_folder_of_recordings_to_a_continued_one(tmp_path, monkeypatch):
    """Import, train and extend as configs/video.py and the README say, with less of everything."""
    monkeypatch.chdir(tmp_path)
    for index, suffix in enumerate((".mp4", ".webm", ".gif", ".mov")):
        movies.record(tmp_path / f"recordings/{index}{suffix}", movies.dot(48, seed=index))
    cli.main(["data", "import", "recordings", "--out", "data/video", "--fps", "12.5"])
    config = Path(__file__).resolve().parent.parent / "configs/video.py"
    few = [*("--tokenizer.steps", "3", "--tokenizer.batch", "2", "--tokenizer.sample-every", "0"),
           *("--dynamics.steps", "3", "--dynamics.batch", "2", "--dynamics.sample-every", "0")]  # fmt: skip
    cli.main(["train", str(config), "--workdir", "runs/video", *few])
    cli.main(
        [
            "extend",
            "runs/video/world",
            "recordings/0.mp4",
            "--out",
            "after.mp4",
            "--frames",
            "4",
            "--steps",
            "1",
        ]
    )
    assert len(read_video("after.mp4")) == 52


def test_what_an_edit_list_hides_is_not_missing(tmp_path):
    """A trim without encoding anew keeps all frames from the key frame before it, most of them hidden."""
    frames = movies.ramp(30)
    whole = movies.record(tmp_path / "whole.mp4", frames)
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    cut = tmp_path / "cut.mp4"
    command = [ffmpeg, "-v", "error", "-ss", "0.8", "-i", str(whole), "-c", "copy", str(cut)]
    subprocess.run(command, check=True)
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames > 20, "the hidden frames are in the file"
    assert movies.numbers(np.stack(decoded(cut, Look(48, 80)))) == list(range(20, 30))


@pytest.mark.parametrize("name", ["Übung", "数据", "3 blind mice", "vidéos"])
def test_any_folder_name_gives_a_name_that_tfds_takes(name):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", dataset_name(name))
