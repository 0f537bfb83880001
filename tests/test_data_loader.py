"""Datasets and the loader: round trips without TensorFlow, exact positions, refusals."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worldsim.data import loader as loader_module
from worldsim.data import make, sprites
from worldsim.data.arrays import ArraySource, save_arrays
from worldsim.data.builders import RecordConfig, check_out, write_dataset
from worldsim.data.episode import Episode, Statistics, pieces
from worldsim.data.info import find_dataset, write_info
from worldsim.data.loader import Loader, permute
from worldsim.data.source import export_arrays, open_source, read_episodes, read_info

CONFIG = sprites.SpriteConfig(size=32, sprites=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six episodes of 150 frames, in records of 64 + 64 + 22, and two for the test."""
    pytest.importorskip("tensorflow_datasets")
    out = tmp_path_factory.mktemp("data") / "sprites"
    make.make_sprites(out, config=CONFIG, episodes=6, test_episodes=2, length=150)
    return out


def memory(lengths=(30, 7, 20, 16), longest=30):
    """Episodes whose pixels and actions tell episode and frame."""
    count = len(lengths)
    frames = np.zeros((count, longest, 4, 4, 3), np.uint8)
    frames[:] = np.arange(longest)[None, :, None, None, None]
    frames[..., 0] = np.arange(count)[:, None, None, None]
    actions = np.arange(count)[:, None] * 100 + np.arange(longest)[None]
    arrays = {"frames": frames, "actions": actions.astype(np.int32), "lengths": np.array(lengths)}
    return ArraySource(arrays)


def equal(first, second):
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


def test_tfds_round_trip(dataset):
    made = list(sprites.episodes(CONFIG, count=3, length=150, seed=0))
    source = open_source(dataset, "train", keys=None)
    assert len(source) == 18 and source.lengths.tolist() == [64, 64, 22] * 6
    for index in range(9):
        episode, start = made[index // 3], 64 * (index % 3)
        record = source[index]
        assert set(record) == {"frames", "actions", "state"}
        for name, rows in episode.arrays().items():
            np.testing.assert_array_equal(record[name], rows[start : start + 64])
            assert record[name].dtype == rows.dtype
    assert source.place(4) == (1, 64, False) and source.place(5) == (1, 128, True)
    assert set(open_source(dataset, "test", keys=("actions",))[0]) == {"actions"}
    whole = list(read_episodes(dataset, "train"))
    assert [len(episode["frames"]) for episode in whole] == [150] * 6
    np.testing.assert_array_equal(whole[2]["frames"], made[2].frames)


def test_info_counts_hashes_and_statistics(dataset):
    info = read_info(dataset)
    train, test = info.splits["train"], info.splits["test"]
    made = list(sprites.episodes(CONFIG, count=3, length=150, seed=0))
    assert (train.episodes, train.frames, train.records, train.dropped) == (6, 900, 18, 0)
    assert train.hashes[:3] == tuple(episode.hash() for episode in made)
    assert not set(train.hashes) & set(test.hashes) and not set(train.seeds) & set(test.seeds)
    assert not set(train.policies) & set(test.policies)
    assert info.action.names == sprites.ACTIONS and (info.height, info.width, info.channels) == (32, 32, 3)
    np.testing.assert_array_equal(info.median, np.broadcast_to(sprites.BACKGROUND, (32, 32, 3)))
    frames = np.concatenate([episode["frames"] for episode in read_episodes(dataset, "train")])
    np.testing.assert_allclose(info.mean, frames.reshape(-1, 3).mean(0), atol=1e-3)
    np.testing.assert_allclose(info.std, frames.reshape(-1, 3).std(0), atol=1e-3)


def test_prepare_and_read_without_tensorflow(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    code = f"""
import sys
from worldsim.data import make, open_source, Loader
assert not {{"tensorflow_datasets", "grain", "ale_py", "gymnasium"}} & set(sys.modules), "eager import"
make.make_sprites({str(tmp_path / "toy")!r}, episodes=2, test_episodes=1, length=20)
batch = next(Loader(open_source({str(tmp_path / "toy")!r}, "train"), frames=4, batch=2, seed=0).iterate())
assert batch["frames"].shape == (2, 4, 32, 32, 3)
print("tensorflow" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False\n"  # nothing else on stdout, where results belong


def test_export_to_arrays_holds_the_same(dataset, tmp_path):
    out = export_arrays(dataset, tmp_path / "toy.npz", keys=None)
    assert read_info(out) == read_info(dataset)
    np.testing.assert_array_equal(read_info(out).median, read_info(dataset).median)
    for split in ("train", "test"):
        stored, source = open_source(out, split, keys=None), open_source(dataset, split, keys=None)
        assert stored.lengths.tolist() == source.lengths.tolist()
        assert all(equal(stored[index], source[index]) for index in range(len(source)))
    loaders = [
        Loader(open_source(path, "train"), frames=9, batch=4, seed=1, threads=0) for path in (out, dataset)
    ]
    assert equal(loaders[0][3], loaders[1][3])


def test_arrays_made_directly_equal_those_exported(dataset, tmp_path):
    out = tmp_path / "direct.npz"
    info = make.make_sprites(out, config=CONFIG, episodes=6, test_episodes=2, length=150)
    assert info == read_info(out) == read_info(dataset)
    assert equal(open_source(out, "train")[5], open_source(dataset, "train")[5])


def test_plain_npz_of_a_user(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", frames=frames, actions=np.tile(np.arange(12) % 4, (3, 1)))
    info = read_info(tmp_path / "mine.npz")
    assert (info.action.kind, info.action.size, info.height) == ("discrete", 4, 8)
    np.testing.assert_array_equal(info.median, np.median(frames.reshape(-1, 8, 8, 3), 0).astype(np.uint8))
    source = open_source(tmp_path / "mine.npz", "train")
    np.testing.assert_array_equal(source[2]["frames"], frames[2])
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        open_source(tmp_path / "mine.npz", "test")


@pytest.mark.law
def test_a_write_that_is_cut_off_leaves_the_old_files_whole(dataset, tmp_path, monkeypatch):
    out = export_arrays(dataset, tmp_path / "toy.npz")
    folder = shutil.copytree(dataset, tmp_path / "toy")
    info = read_info(folder)

    def cut(file, *_, **__):
        with file if hasattr(file, "write") else Path(file).open("wb") as stream:
            stream.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", cut)
        patch.setattr(np, "savez_compressed", cut)
        for write in (
            lambda: write_info(find_dataset(folder), info),
            lambda: export_arrays(dataset, out),
            lambda: save_arrays(out, {"train": [{"frames": np.zeros((2, 4, 4, 3), np.uint8)}]}),
        ):
            with pytest.raises(KeyboardInterrupt):
                write()
    for path in (folder, out):
        assert read_info(path) == info and np.array_equal(read_info(path).median, info.median)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy", "toy.npz"]
    write_info(find_dataset(folder), dataclasses.replace(info, median=255 - info.median))
    np.testing.assert_array_equal(read_info(folder).median, 255 - info.median)


def test_bad_npz_files_are_refused_with_what_is_wrong(tmp_path):
    frames = np.zeros((3, 12, 8, 8, 3), np.uint8)
    np.save(tmp_path / "a.npy", frames)
    (tmp_path / "a.npy").rename(tmp_path / "single.npz")
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "flat.npz", frames=frames, actions=np.zeros((3, 12), np.float32))
    np.savez(tmp_path / "bools.npz", frames=frames, actions=np.zeros((3, 12), bool))
    np.savez(tmp_path / "rows.npz", frames=frames, actions=np.zeros((3, 12, 2), np.int32))
    mixed = {"actions": np.zeros((3, 12, 2), np.float32), "test/actions": np.zeros((3, 12, 3), np.float32)}
    np.savez(tmp_path / "mixed.npz", frames=frames, **{"test/frames": frames}, **mixed)
    np.savez(tmp_path / "header.npz", frames=frames)
    raw = (tmp_path / "header.npz").read_bytes()
    (tmp_path / "header.npz").write_bytes(raw.replace(b"(3, 12, 8", b"(3, 12( 8"))
    for name, match in {
        "single": r"single\.npz can't be read as an \.npz .*a single array, as an \.npy",
        "empty": r"empty\.npz holds no arrays; it must hold uint8 'frames'",
        "flat": r"flat: actions are float32 \[3, 12\] in train; give .* floats \[episodes, t, size\]",
        "bools": r"bools: actions are bool \[3, 12\] in train",
        "rows": r"rows: actions are int32 \[3, 12, 2\] in train; give integers \[episodes, t\]",
        "mixed": r"\[3, 12, 2\] in train, float32 \[3, 12, 3\] in test; .* the same in all splits",
        "header": r"header\.npz can't be read as an \.npz",
    }.items():
        with pytest.raises(ValueError, match=match):
            read_info(tmp_path / f"{name}.npz")
    with pytest.raises(FileExistsError, match="is no dataset"):
        check_out(tmp_path / "single.npz", True)


def test_arrays_stored_without_a_median_have_none(tmp_path):
    info = read_info_template()
    record = {"frames": np.zeros((12, 8, 8, 3), np.uint8), "actions": np.arange(12) % 2}
    save_arrays(tmp_path / "a.npz", {"train": [record]}, info)
    assert read_info(tmp_path / "a.npz") == info and read_info(tmp_path / "a.npz").median is None


@pytest.mark.law
def test_an_epoch_holds_every_clip_once():
    lengths = (30, 7, 20, 16)
    loader = Loader(memory(lengths), frames=8, batch=1, seed=3, threads=0)
    expected = sorted(
        (episode, start) for episode, length in enumerate(lengths) for start in range(length - 7)
    )
    assert loader.skipped == 1 and loader.epoch == len(expected)
    for epoch in range(2):
        steps = range(epoch * len(expected), (epoch + 1) * len(expected))
        clips = [loader[step] for step in steps]
        seen = [(int(clip["frames"][0, 0, 0, 0, 0]), int(clip["frames"][0, 0, 0, 0, 1])) for clip in clips]
        assert sorted(seen) == expected and seen != expected
        for clip in clips:  # contiguous, of one episode, actions beside their frames
            frames = clip["frames"][0, :, 0, 0].astype(int)
            assert np.all(np.diff(frames[:, 1]) == 1) and np.all(frames[:, 0] == frames[0, 0])
            np.testing.assert_array_equal(clip["actions"][0], frames[:, 0] * 100 + frames[:, 1])
    first, second = ([loader[step]["actions"][0, 0] for step in range(e * 45, e * 45 + 20)] for e in (0, 1))
    assert first != second


def test_permute_is_a_permutation_and_depends_on_seed_and_epoch():
    for count in (1, 2, 3, 5, 16, 17, 1000):
        for epoch in range(2):
            row = [permute(epoch * count + place, count, seed=9) for place in range(count)]
            assert sorted(row) == list(range(count))
    rows = [tuple(permute(place, 50, seed=seed) for place in range(100)) for seed in range(8)]
    halves = [row[:50] for row in rows] + [row[50:] for row in rows]
    assert len(set(halves)) == 16
    row = np.array([permute(place, 5000, seed=0) for place in range(5000)])
    assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 0.05


@pytest.mark.law
@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("grain", [True, False])
def test_iterator_equals_index_for_any_threads_engine_and_start(threads, grain, monkeypatch):
    if grain:
        pytest.importorskip("grain")
    else:
        monkeypatch.setattr(loader_module.importlib.util, "find_spec", lambda _: None)
    loader = Loader(memory(), frames=8, batch=4, seed=1, threads=threads)
    reference = Loader(memory(), frames=8, batch=4, seed=1, threads=0)
    for start in (0, 7):
        batches = loader.iterate(start)
        for step in range(start, start + 15):
            assert equal(next(batches), reference[step])
        batches.close()


@pytest.mark.law
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_tile_the_global_batch(processes):
    """Whatever rows each of them holds: here every second or fourth."""
    whole = Loader(memory(), frames=8, batch=8, seed=1, threads=0)
    parts = [
        Loader(
            memory(),
            frames=8,
            batch=8,
            seed=1,
            rows=range(i, 8, processes),
            threads=2 * (i == 0),
        )
        for i in range(processes)
    ]
    rows = [part.iterate(5) for part in parts]
    for step in range(5, 9):
        local = [next(row) for row in rows]
        assert all(len(part["frames"]) == 8 // processes for part in local)
        joined = {name: np.stack([part[name] for part in local], 1) for name in local[0]}
        joined = {name: rows.reshape(8, *rows.shape[2:]) for name, rows in joined.items()}
        assert equal(joined, whole[step])


def test_loader_refuses(dataset):
    with pytest.raises(ValueError, match="no record has 65 frames; there are 18, the longest has 64"):
        Loader(open_source(dataset, "train"), frames=65, batch=2, seed=0)
    assert Loader(open_source(dataset, "train"), frames=23, batch=2, seed=0).skipped == 6
    with pytest.raises(ValueError, match=r"rows \[4, 6\] of a batch of 6; take some of 0 to 5"):
        Loader(memory(), frames=4, batch=6, seed=0, rows=(4, 6))
    with pytest.raises(ValueError, match="batch 0"):
        Loader(memory(), frames=4, batch=0, seed=0)
    with pytest.raises(IndexError, match="step -1"):
        Loader(memory(), frames=4, batch=2, seed=0)[-1]


def test_opening_refuses(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*worldsim data make"):
        open_source(tmp_path / "nothing", "train")
    with pytest.raises(FileNotFoundError, match="without a prepared dataset"):
        open_source(tmp_path, "train")
    with pytest.raises(ValueError, match="no split 'dev'; it has test, train"):
        open_source(dataset, "dev")
    with pytest.raises(ValueError, match=r"has no ram; its records hold .*state"):
        open_source(dataset, "train", keys=("frames", "ram"))
    with pytest.raises(FileNotFoundError, match="No file"):
        open_source(tmp_path / "nothing.npz", "train")
    (tmp_path / "broken.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"broken\.npz can't be read"):
        open_source(tmp_path / "broken.npz", "train")


def test_array_source_names_all_problems_at_once():
    with pytest.raises(ValueError, match=r"no 'actions'.*frames are float32"):
        ArraySource({"frames": np.zeros((1, 2, 4, 4, 3), np.float32)})
    frames = np.zeros((2, 5, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="leading shapes"):
        ArraySource({"frames": frames, "actions": np.zeros((2, 4), np.int32)})
    with pytest.raises(ValueError, match="from 1 to 5"):
        ArraySource({"frames": frames, "lengths": np.array([5, 6])}, keys=("frames",))


def test_overwriting_is_refused_unless_told(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    out, options = tmp_path / "toy", {"episodes": 1, "test_episodes": 1, "length": 16}
    make.make_sprites(out, **options)
    with pytest.raises(FileExistsError, match="already holds a dataset"):
        make.make_sprites(out, **options)
    make.make_sprites(out, **options, seed=1, overwrite=True)
    assert read_info(out).source["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds no dataset"):
        make.make_sprites(tmp_path / "mine", **options, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "toy"]


def test_short_ends_are_dropped_and_counted_and_failures_leave_nothing(tmp_path):
    base = read_info_template()
    frames = np.zeros((20, 8, 8, 3), np.uint8)
    episodes = [Episode(frames[:count], np.full(count, -1, np.int32)) for count in (20, 5, 18)]
    seen = []
    info = write_dataset(
        tmp_path / "a.npz", {"train": episodes}, base,
        records=RecordConfig(size=16, minimum=4), expected={"train": 43},
        progress=lambda *at: seen.append(at),
    )  # fmt: skip
    split = info.splits["train"]
    assert (split.frames, split.dropped, split.lengths) == (41, 2, (16, 4, 5, 16))
    assert seen == [("train", 20, 43), ("train", 25, 43), ("train", 43, 43)]
    with pytest.raises(ValueError, match="'train' got no record: 3 episodes, none of 21 frames"):
        write_dataset(
            tmp_path / "b.npz", {"train": episodes}, base, records=RecordConfig(size=64, minimum=21)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def read_info_template():
    from worldsim.config import ActionConfig
    from worldsim.data.info import DataInfo

    return DataInfo(
        name="toy", kind="arrays", height=8, width=8, channels=3, fps=5.0,
        action=ActionConfig("discrete", 2), keys=(), splits={}, mean=(), std=(),
    )  # fmt: skip


def test_info_is_plain_json_and_names_unknown_keys(dataset):
    from worldsim.data.info import info_from_json, info_to_json

    info = read_info(dataset)
    values = json.loads(json.dumps(info_to_json(info)))
    assert info_from_json(values, info.median) == info
    with pytest.raises(ValueError, match="'colour'"):
        info_from_json(values | {"colour": 1}, None)
    assert dataclasses.replace(info, fps=1.0) != info


def test_pieces_and_statistics():
    assert list(pieces(10, size=4, minimum=2)) == [(0, 4), (4, 8), (8, 10)]
    assert list(pieces(9, size=4, minimum=2)) == [(0, 4), (4, 8)]
    frames = np.random.default_rng(0).integers(0, 255, (50, 4, 4, 3), dtype=np.uint8)
    exact, bounded = Statistics(), Statistics(limit=16)
    for start in (0, 7, 30):
        stop = {0: 7, 7: 30, 30: 50}[start]
        exact.add(frames[start:stop])
        bounded.add(frames[start:stop])
    np.testing.assert_array_equal(exact.median(), np.median(frames, 0).astype(np.uint8))
    np.testing.assert_array_equal(bounded.median(), np.median(frames[::4], 0).astype(np.uint8))
    np.testing.assert_allclose(exact.mean_std()[1], frames.reshape(-1, 3).std(0))


def test_all_arrays_are_exported_unless_some_are_named(dataset, tmp_path):
    whole, part = export_arrays(dataset, tmp_path / "a.npz"), tmp_path / "b.npz"
    assert "state" in open_source(whole, "test", keys=None)[0] and "state" in read_info(whole).keys
    export_arrays(dataset, part, keys=("frames", "actions"))
    assert read_info(part).keys == ("frames", "actions")
    assert open_source(part, "test", keys=read_info(part).keys)[0].keys() == {"frames", "actions"}


def test_what_others_wrote_has_a_record_an_episode(dataset, monkeypatch):
    """Nothing in such records says where in an episode they lie."""
    source = open_source(dataset, "test")
    monkeypatch.setattr("worldsim.data.source.PLACE", ("nowhere",))
    assert len(list(read_episodes(dataset, "test", keys=("frames",)))) == len(source)


def test_statistics_hold_the_frames_that_they_keep_and_no_more():
    statistics = Statistics(limit=8)
    for _ in range(20):
        statistics.add(np.zeros((16, 8, 8, 3), np.uint8))
    assert all(frame.base is None for frame in statistics._kept)


def test_frames_of_four_channels_are_refused():
    with pytest.raises(ValueError, match=r"4 channels, not 1 \(grey\) or 3"):
        ArraySource({"frames": np.zeros((1, 2, 8, 8, 4), np.uint8)}, keys=None)
