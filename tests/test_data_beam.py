"""Importing on Beam: the dataset is that of the import without Beam, and mistakes are told early."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import movies
import numpy as np
import pytest

from worldsim import cli
from worldsim.data import beam as on_beam
from worldsim.data import read_episodes
from worldsim.data.beam import BeamConfig, Placed, Workers
from worldsim.data.builders import Part, RecordConfig
from worldsim.data.decode import Look
from worldsim.data.importing import import_recordings
from worldsim.data.info import FileInfo
from worldsim.data.recordings import Found
from worldsim.data.spool import ImportConfig, Spool

LOCAL = BeamConfig("FnApiRunner")  # DirectRunner, but for a first look for Prism on the network
CONFIG = ImportConfig(Look(32, 32, "pad"), test_share=0.4, records=RecordConfig(size=8, minimum=4))


@pytest.fixture
def recordings(tmp_path):
    """Files with actions, some of them of no use; one is long enough for two parts."""
    folder = tmp_path / "in"
    for index, frames in enumerate((20, 33, 24, 133, 40)):
        with_actions(folder / f"n{index}.mp4", frames, start=index)
    with_actions(folder / "deep/er.mp4", 16, start=9)
    with_actions(folder / "short.mp4", 3, start=0)
    with_actions(folder / "few_rows.mp4", 20, start=40, rows=19)
    movies.record(folder / "no_rows.mp4", movies.ramp(20, start=60))
    (folder / "empty.webm").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(b"not a video" * 100)
    whole = (folder / "n1.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.actions.npy").write_bytes((folder / "n1.actions.npy").read_bytes())
    (folder / "copy.mp4").write_bytes(whole)
    (folder / "copy.actions.npy").write_bytes((folder / "n1.actions.npy").read_bytes())
    return folder


def with_actions(path, frames, *, start, rows=None):
    movies.record(path, movies.ramp(frames, start=start, step=1))
    np.save(path.with_name(path.stem + ".actions.npy"), np.arange(rows or frames) % (start + 2))


def same(a, b):
    """Two imports did the same, and their datasets hold the same."""
    assert (a.new, a.skipped, a.gone) == (b.new, b.skipped, b.gone)
    assert a.info == b.info
    np.testing.assert_array_equal(a.info.median, b.info.median)


def same_files(a, b):
    """Byte for byte; the records themselves too, for they were encoded in one process."""
    files = {path.relative_to(a) for path in a.rglob("*") if path.is_file()}
    assert files == {path.relative_to(b) for path in b.rglob("*") if path.is_file()} and len(files) == 6
    assert [str(file) for file in files if (a / file).read_bytes() != (b / file).read_bytes()] == []


@pytest.mark.law
def test_a_dataset_made_by_beam_is_the_one_made_without(recordings, tmp_path):
    plain = import_recordings(recordings, tmp_path / "plain/set", config=CONFIG)
    beam = import_recordings(recordings, tmp_path / "beam/set", config=CONFIG, beam=LOCAL)
    same(plain, beam)
    same_files(tmp_path / "plain/set", tmp_path / "beam/set")
    assert set(beam.info.splits) == {"train", "test"} and beam.info.action.kind == "discrete"
    told = {file.name: file.reason for file in beam.skipped}
    assert set(told) == {"cut.mp4", "empty.webm", "few_rows.mp4", "n1.mp4", "no_rows.mp4", "noise.mp4",
                         "short.mp4"}  # fmt: skip
    assert "too short: 3 frames" in told["short.mp4"] and "19 rows" in told["few_rows.mp4"]
    long = max((e for split in beam.info.splits for e in read_episodes(tmp_path / "beam/set", split)),
               key=lambda e: len(e["frames"]))  # fmt: skip
    seen = movies.numbers(long["frames"], step=1, start=3)
    assert len(seen) == 133 and np.abs(np.array(seen) - np.arange(133)).max() <= 2
    assert [path.name for path in (tmp_path / "beam").iterdir()] == ["set"]


@pytest.mark.law
def test_a_second_run_on_beam_adds_only_what_is_new(recordings, tmp_path):
    for name, beam in (("plain", None), ("beam", LOCAL)):
        import_recordings(recordings, tmp_path / name / "set", config=CONFIG, beam=beam)
    again = import_recordings(recordings, tmp_path / "beam/set", config=CONFIG, beam=LOCAL)
    assert not again.new and len(again.skipped) == 7
    (recordings / "n0.mp4").rename(recordings / "renamed.mp4")
    (recordings / "n0.actions.npy").rename(recordings / "renamed.actions.npy")
    (recordings / "n4.mp4").unlink()
    with_actions(recordings / "late.mp4", 28, start=7)
    plain = import_recordings(recordings, tmp_path / "plain/set", config=CONFIG)
    grown = import_recordings(recordings, tmp_path / "beam/set", config=CONFIG, beam=LOCAL)
    same(plain, grown)
    assert [file.name for file in grown.new] == ["late.mp4"] and grown.gone == ("n4.mp4",)
    assert [path.name for path in (tmp_path / "beam/set").iterdir()] == ["1.1.0"]
    for split in ("train", "test"):
        ours, theirs = (list(read_episodes(tmp_path / name / "set", split)) for name in ("beam", "plain"))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one["frames"], other["frames"])
            np.testing.assert_array_equal(one["actions"], other["actions"])


@pytest.mark.law
def test_no_video_is_decoded_outside_the_workers(recordings, tmp_path, monkeypatch):
    """What is decoded is decoded by what was given to Beam: here it takes the work and does nothing."""
    given = []

    def idle(_, function, items):
        given.append((function.func.__name__, len(items)))
        return [function(item) for item in items] if len(given) == 1 else ["no worker"] * len(items)

    monkeypatch.setattr(Workers, "map", idle)
    with pytest.raises(ValueError, match=r"n0\.mp4: no worker"):
        import_recordings(recordings, tmp_path / "out", config=CONFIG, beam=LOCAL)
    assert given == [("look_at", 13), ("take_one", 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.slow
def test_a_worker_in_a_process_of_its_own_makes_the_same_dataset(recordings, tmp_path):
    for path in sorted(recordings.glob("n[134]*")):
        path.unlink()
    plain = import_recordings(recordings, tmp_path / "plain/set", config=CONFIG)
    options = ("direct_num_workers=1", "direct_running_mode=multi_processing")
    beam = import_recordings(
        recordings, tmp_path / "beam/set", config=CONFIG, beam=BeamConfig("FnApiRunner", options)
    )
    same(plain, beam)


@pytest.mark.parametrize("rows", [None, np.arange(5, dtype=np.int32), np.float32([[0.1, -3e-9], [7, np.pi]])])
def test_items_travel_as_they_are(rows):
    found = Found(Path("a/b.mp4"), FileInfo("b.mp4", "0f", fps=29.97), rows)
    placed = Placed(
        Spool(Path("s"), (3, 4), 1 / 3), 2, 5, (Part(7, ((0, 3), (3, 7)), "1e", "recorded", 0, False),)
    )
    again, *rest = on_beam._value(on_beam._text([found, placed, "why not", 1]))
    assert rest == [placed, "why not", 1]
    assert (again.path, again.file) == (found.path, found.file)
    if rows is None:
        assert again.rows is None
    else:
        assert again.rows.dtype == rows.dtype
        np.testing.assert_array_equal(again.rows, rows)
    with pytest.raises(TypeError, match=r"set can't go to Beam's workers; \['FileInfo', 'Found'"):
        on_beam._text([{1}])


# --- Failures


def test_a_worker_that_fails_leaves_the_dataset_as_it_was(recordings, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = import_recordings(recordings, out, config=CONFIG)
    with_actions(recordings / "late.mp4", 28, start=7)

    def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(on_beam, "record_of", broken)
    with pytest.raises(RuntimeError, match=r"'FnApiRunner' failed: .*the disk is full"):
        import_recordings(recordings, out, config=CONFIG, beam=LOCAL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    monkeypatch.undo()
    (recordings / "late.mp4").unlink()
    assert import_recordings(recordings, out, config=CONFIG).info == before.info


def test_a_worker_that_does_not_see_the_files_stops_the_import(tmp_path):
    """It is no reason to skip them."""
    workers = Workers(LOCAL, tmp_path / "work", tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=r"can't see .*elsewhere.*under the same path"):
        workers.map(str, [1, 2])
    workers.clean()
    assert not list(tmp_path.iterdir())


def test_results_that_are_not_seen_here_stop_the_import(tmp_path, monkeypatch):
    workers = Workers(LOCAL, tmp_path / "work", tmp_path)
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: to.name == "1.json" or real(self, to))
    with pytest.raises(RuntimeError, match=r"ended without 1 of 3 results\. .*under the same path"):
        workers.map(str, [1, 2, 3])


# --- Runners and options


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BeamConfig("NoRunner"), r"'NoRunner'.*Unexpected pipeline runner.*DataflowRunner.*FlinkRunner"),
        (BeamConfig("FnApiRunner", ("no_such=1",)), "Beam options no_such: Beam does not know them"),
        (BeamConfig("FnApiRunner", ("direct_num_workers=many",)), "direct_num_workers=many.*own message"),
        (BeamConfig("FnApiRunner", ("=1", "two words=1")), r"\['=1', 'two words=1'\]: give name=value"),
        (BeamConfig("FnApiRunner", ("runner=FlinkRunner",)), "by --beam-runner"),
        (BeamConfig("DataflowRunner"), "Missing required option: project"),
    ],
)
def test_wrong_runners_and_options_are_refused_before_anything_is_read(recordings, tmp_path, config, said):
    with pytest.raises(ValueError, match=said):
        import_recordings(recordings, tmp_path / "out", config=CONFIG, beam=config)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (
            BeamConfig("DataflowRunner", ("project=my-project", "region=europe-west4", "save_main_session",
                       "temp_location=gs://my-bucket/tmp", "experiments=a,b", "experiments=c",
                       "sdk_container_image=europe-docker.pkg.dev/my-project/worldsim/worker")),
            {"project": "my-project", "region": "europe-west4", "save_main_session": True,
             "temp_location": "gs://my-bucket/tmp", "experiments": ["a", "b", "c"],
             "sdk_container_image": "europe-docker.pkg.dev/my-project/worldsim/worker"},
        ),
        (
            BeamConfig("flink", ("--flink_master=host:8081", "environment_type=EXTERNAL", "of_the_server=1",
                       "environment_config=localhost:50000", "parallelism=8")),
            {"flink_master": "host:8081", "environment_type": "EXTERNAL", "parallelism": 8,
             "environment_config": "localhost:50000", "of_the_server": "1"},
        ),
        (
            BeamConfig("SparkRunner", ("spark_master_url=spark://host:7077", "requirements_file=r.txt")),
            {"spark_master_url": "spark://host:7077", "requirements_file": "r.txt"},
        ),
    ],
)  # fmt: skip
def test_options_reach_beam_as_they_were_given(tmp_path, config, known):
    options = Workers(config, tmp_path / "work", tmp_path)._options()
    told = options.get_all_options(drop_default=True, retain_unknown_options=True)
    assert {name: told.get(name) for name in known} == known


def test_without_beam_the_extra_is_named(recordings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'worldsim\[beam\]'"):
        import_recordings(recordings, tmp_path / "out", config=CONFIG, beam=LOCAL)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    import_recordings(recordings, tmp_path / "out", config=CONFIG)


def test_beam_is_not_imported_before_it_is_asked_for():
    code = "import sys, worldsim.cli, worldsim.data.importing; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- The command


def test_the_command_hands_runner_and_options_on(recordings, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["data", "import", str(recordings), "--out", str(out), "--size", "32"]
    cli.main([*command, "--beam-runner", "FnApiRunner", "--beam-options", "direct_num_workers=1",
              "job_name=of-mine"])  # fmt: skip
    told = capsys.readouterr()
    assert told.out == f"{out}\n" and "6 new, 7 skipped" in told.err
    with pytest.raises(SystemExit):
        cli.main([*command, "--beam-options", "direct_num_workers=1"])
    assert "--beam-options go with --beam-runner" in capsys.readouterr().err
    shutil.rmtree(recordings)
    recordings.mkdir()
    (recordings / "dataset_info.json").write_text("{}")
    (recordings / "features.json").write_text('{"steps": {}}')
    with pytest.raises(SystemExit):
        cli.main([*command, "--beam-runner", "FnApiRunner"])
    assert "leave --beam-runner out" in capsys.readouterr().err


def test_the_readme_gives_options_that_beam_takes(tmp_path):
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
    lines = [line for line in text.replace("\\\n", "").splitlines()
             if re.match("worldsim data import .* --beam-runner", line)]  # fmt: skip
    assert len(lines) == 4
    for line in lines:
        for word in ("PROJECT", "REGION", "BUCKET", "IMAGE", "HOST"):
            line = line.replace(word, f"my-{word.lower()}")
        words = shlex.split(line)
        first = words.index("--beam-options") + 1
        config = BeamConfig(words[words.index("--beam-runner") + 1], tuple(words[first:]))
        options = Workers(config, tmp_path / "work", tmp_path)._options()
        told = options.get_all_options(drop_default=True)
        assert all(str(told[name]) == value for name, value in (word.split("=") for word in words[first:]))
