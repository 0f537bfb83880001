"""Laws of shares: each thing in one of them, and what comes of all is the same however many work on it."""

from __future__ import annotations

import json

import numpy as np
import processes
import pytest
import tiny
from test_evaluate_run import write

from worldsim import cli
from worldsim.cli.options import clips_in
from worldsim.data.video import read_video, write_video
from worldsim.parallel import shares

pytestmark = pytest.mark.law
SEVERAL = ["--coordinator", "127.0.0.1:{port}", "--processes", "2", "--process", "{index}"]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 8, 17])
def test_each_thing_is_in_one_share_and_no_share_is_longer_by_two(count, processes):
    parts = [shares.share(count, processes=processes, index=i) for i in range(processes)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts[0]) == max(map(len, parts))


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 17])
def test_rows_of_all_processes_are_as_many_and_hold_all_things_in_order(count, processes):
    rows, orders = zip(
        *(shares._rows(count, processes=processes, index=i) for i in range(processes)), strict=True
    )
    assert len({len(mine) for mine in rows}) == 1 and len(rows[0]) == -(-count // processes)
    for order in orders:
        assert np.concatenate(rows)[order].tolist() == list(range(count))
    for i, mine in enumerate(rows):
        part = shares.share(count, processes=processes, index=i)
        assert mine[: len(part)].tolist() == list(part)


def test_what_cannot_be_shared_is_refused_and_one_process_does_all_at_once():
    with pytest.raises(ValueError, match="share: 3 things, process 2 of 2; count from 0"):
        shares.share(3, processes=2, index=2)
    with pytest.raises(ValueError, match="in_shares: 0 things to work on"):
        shares.in_shares(0, lambda rows: rows)
    asked = []
    assert shares.share(3) == range(3)
    assert shares.in_shares(3, lambda rows: asked.append(rows.tolist()) or "as it is") == "as it is"
    assert asked == [[0, 1, 2]]


def test_clips_of_a_folder_have_a_place_for_each(tmp_path, capsys):
    folder = tmp_path / "clips"
    for name in ("b.npz", "a.npz", "notes.txt"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    pairs = clips_in(folder, tmp_path / "made/{}.mp4")
    assert [(file.name, out) for file, out in pairs] == [
        ("a.npz", tmp_path / "made/a.mp4"),
        ("b.npz", tmp_path / "made/b.mp4"),
    ]
    with pytest.raises(ValueError, match=r"has 2 clips; put \{\} where"):
        clips_in(folder, tmp_path / "made.mp4")
    with pytest.raises(ValueError, match=r"clips/a.npz, \S+clips/b.npz would overwrite"):
        clips_in(folder, folder / "{}.npz")
    (folder / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"made/a.npz would overwrite a clip or another result"):
        clips_in(folder, tmp_path / "made/{}.npz")
    with pytest.raises(ValueError, match="a folder without clips"):
        clips_in(tmp_path, tmp_path / "made/{}.npz")
    with pytest.raises(SystemExit):
        cli.main(["extend", "pong", "pong:0", "--out", str(tmp_path / "a.npz"), "--processes", "2"])
    assert "pong:0 is one clip, for one process" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A world that was never trained."""
    folder = tmp_path_factory.mktemp("shares")
    parts = ("tokenizer", "dynamics")
    tiny.make_world(tiny.config(layers=1), parts=parts).save(folder / "world")
    return folder


@pytest.mark.slow
def test_two_processes_report_what_one_does(folder):
    """Three windows, two for one process and one for the other; all is written once, by the first one."""
    data = write(folder / "data.npz", episodes=3, length=24)
    command = ["evaluate", str(folder / "world"), "--data", str(data), "--clips", "3", "--horizon", "4"]
    command += ["--samples", "1", "--steps", "1", "--out"]
    ends = processes.run(["-m", "worldsim.cli", *command, str(folder / "two"), *SEVERAL], folder)
    assert [end[0] for end in ends] == [0, 0], processes.report(ends)
    said = [processes.said(out) for _, out, _ in ends]
    assert said == [[str(folder / "two" / "report.html")], []]
    assert "2 processes, 8 devices" in ends[0][2] and "play" not in ends[1][2]

    cli.main([*command, str(folder / "one")])
    told = [json.loads((folder / name / "report.json").read_text()) for name in ("one", "two")]
    for report in told:
        del report["seconds"]
    (names, one), (same, two) = (zip(*figures(report), strict=True) for report in told)
    assert names == same and len(names) > 150
    for name, a, b in zip(names, one, two, strict=True):
        assert a == (pytest.approx(b, rel=1e-3, abs=1e-3) if isinstance(b, float) else b), name
    written = [sorted(path.name for path in (folder / name).iterdir()) for name in ("one", "two")]
    assert written[0] == written[1] and "report.html" in written[1]

    other = ["-m", "worldsim.cli", *command, str(folder / "no"), *SEVERAL, "--seed", "{index}"]
    ends = processes.run(other, folder)
    assert [end[0] for end in ends] == [2, 2], processes.report(ends)
    for _, _, err in ends:
        assert "evaluate: settings of processes [1] differ from those of process 0" in err
    assert not (folder / "no").exists()


def figures(value, path=""):
    """Every figure of a report by its path."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for name, item in pairs for found in figures(item, f"{path}/{name}")]
    return [(path, value)]


@pytest.mark.slow
def test_two_processes_continue_the_clips_of_a_folder_as_one_does(folder):
    for i in range(3):
        write_video(folder / f"clips/{i}.npz", tiny.make_clip(4, seed=0))
    command = ["extend", str(folder / "world"), str(folder / "clips"), "--frames", "8", "--steps", "2"]
    two = ["-m", "worldsim.cli", *command, "--out", f"{folder}/double/{{{{}}}}.npz", *SEVERAL]
    ends = processes.run(two, folder)
    assert [end[0] for end in ends] == [0, 0], processes.report(ends)
    said = [[line[-5:] for line in processes.said(out)] for _, out, _ in ends]
    assert said == [["0.npz", "1.npz"], ["2.npz"]]
    cli.main([*command, "--out", f"{folder}/single/{{}}.npz"])
    made = [
        [read_video(folder / name / f"{i}.npz").frames for i in range(3)] for name in ("double", "single")
    ]
    np.testing.assert_array_equal(*made)
    assert made[0][0].shape == (12, 16, 16, 3)
    for i in (1, 2):  # the same clip, in three ways
        assert (made[0][i] != made[0][0]).any()


@pytest.mark.slow
def test_a_fault_in_one_share_ends_all(tmp_path):
    ends = processes.job("unshared", tmp_path, status=None)
    assert all(status not in (0, None) for status, *_ in ends), processes.report(ends)
    assert "a window that can't be read" in ends[1][2]
