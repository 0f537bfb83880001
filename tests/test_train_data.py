"""What training asks of its data: said before it begins, and encoded whole and anew when it changes."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from worldsim.config import DataConfig, MixConfig, PhaseConfig, StageConfig, TrainConfig
from worldsim.data.arrays import ArraySource
from worldsim.data.info import DataInfo, SplitInfo
from worldsim.data.source import read_info
from worldsim.train.checkpoints import check_record, make_record
from worldsim.train.checks import check_conditions, check_data
from worldsim.train.codes import encode_source
from worldsim.train.run import train
from worldsim.train.stages import _some_frames


def of_run(world):
    """A run's config of clips of 24 frames."""
    short, long = StageConfig(frames=4), StageConfig(frames=24)
    mix = MixConfig(chunks=5, queries=2)
    return TrainConfig(world=world, tokenizer=short, refine=short, dynamics=long, mix=mix)


def test_records_of_less_than_a_chunk_are_left_out(tmp_path):
    config, rng = tiny.config(frames_per_chunk=4), np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 9, 16, 16, 3), dtype=np.uint8)
    arrays = {"frames": frames, "actions": np.zeros((4, 9), np.int32), "lengths": np.array([3, 8, 2, 9])}
    source = ArraySource(arrays, keys=None)
    codes = encode_source(source, config, tiny.params("tokenizer", config), tmp_path / "c.npz")
    assert codes.lengths.tolist() == [2, 2]
    shown = _some_frames(source, of_run(config))
    np.testing.assert_array_equal(shown[0], np.concatenate([frames[1, 2:6], frames[3, 2:6]]))


def test_codes_are_made_anew_when_any_record_changes(tmp_path):
    config, rng = tiny.config(), np.random.default_rng(0)
    params, path = tiny.params("tokenizer", config), tmp_path / "c.npz"
    arrays = {
        "frames": rng.integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8),
        "actions": np.zeros((3, 4), np.int32),
    }
    encode_source(ArraySource(arrays, keys=None), config, params, path)
    arrays["actions"][1] = 2
    again = encode_source(ArraySource(arrays, keys=None), config, params, path)
    np.testing.assert_array_equal(again[1]["actions"].ravel(), 2)
    before = path.stat().st_mtime_ns
    encode_source(ArraySource(arrays, keys=None), config, params, path)
    assert path.stat().st_mtime_ns == before
    encode_source(ArraySource(arrays, keys=None), config, params, path, of="other hashes")
    assert path.stat().st_mtime_ns != before


def test_data_that_a_later_stage_cannot_use_is_refused_before_the_first():
    world = tiny.config(outcomes=("rewards",), conditions=tiny.CONDITIONS)
    config = of_run(world)
    splits = {"train": SplitInfo(lengths=(12, 20))}
    keys = ("frames", "actions", "condition_speed")
    info = DataInfo("d", "arrays", 16, 16, 3, 10.0, tiny.ACTIONS, keys, splits, (), ())
    with pytest.raises(ValueError) as refused:
        check_data(config, info, ("tokenizer", "refine", "dynamics"))
    for part in (
        "the data has no condition_class",
        "the data has no rewards",
        "dynamics.frames: clips of 24 frames, and the longest record has 20",
    ):
        assert part in str(refused.value)
    check_data(config, info, ("tokenizer", "refine"))


def test_conditions_beyond_the_configs_are_refused():
    config = of_run(tiny.config(conditions=tiny.CONDITIONS))
    rows = {"condition_class": np.array([[0, 3]]), "condition_speed": np.zeros((1, 2, 2), np.float32)}
    check_conditions(config, ArraySource(rows, keys=None))
    with pytest.raises(ValueError, match="'class': the data has class 4, and the config 4 classes"):
        check_conditions(config, ArraySource(rows | {"condition_class": np.array([[0, 4]])}, keys=None))
    with pytest.raises(ValueError, match=r"'speed': the data has vectors of \[3\] numbers"):
        wide = {"condition_speed": np.zeros((1, 2, 3), np.float32)}
        check_conditions(config, ArraySource(rows | wide, keys=None))


def test_a_plain_file_of_arrays_tells_how_long_its_records_are(tmp_path):
    frames = np.zeros((2, 9, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", frames=frames, actions=np.tile(np.arange(9) % 3, (2, 1)))
    config = of_run(tiny.config())
    with pytest.raises(ValueError, match="clips of 24 frames, and the longest record has 9"):
        check_data(config, read_info(tmp_path / "mine.npz"), ("dynamics",))


def test_a_record_from_before_phases_could_lack_a_batch_goes_on():
    phase = PhaseConfig(share=0.5, chunks=4, queries=1, frames=6, rope_base=100.0)
    old, new = (
        make_record("dynamics", seed=0, frozen=None, config=config)
        for batch in (8, None)
        for config in [TrainConfig(curriculum=(dataclasses.replace(phase, batch=batch),))]
    )
    del old["tokenizer"]
    check_record(old, new, folder=Path("here"))
    other = dataclasses.replace(phase, batch=4)
    with pytest.raises(ValueError, match="config.curriculum"):
        check_record(make_record("dynamics", seed=0, frozen=None, config=TrainConfig(curriculum=(other,))),
                     new, folder=Path("here"))  # fmt: skip


def test_parts_of_another_tokenizer_are_refused_before_any_training(tmp_path):
    rng, codes = np.random.default_rng(0), StageConfig(1, frames=8, batch=2, save_every=1)
    frames = rng.integers(0, 256, (3, 8, 16, 16, 3), dtype=np.uint8)
    arrays = {f"{split}/frames": frames for split in ("train", "test")}
    arrays |= {f"{split}/actions": np.zeros((3, 8), np.int32) + 2 for split in ("train", "test")}
    np.savez(tmp_path / "d.npz", **arrays)
    config = TrainConfig(
        world=tiny.config(), data=DataConfig(path=str(tmp_path / "d.npz"), threads=0), tokenizer=codes,
        refine=codes, dynamics=codes, mix=MixConfig(chunks=5, queries=2),
    )  # fmt: skip
    work = tmp_path / "work"
    assert train(config, work) == work / "world"
    longer = dataclasses.replace(config, tokenizer=dataclasses.replace(codes, steps=2))
    train(longer, work, stage="tokenizer")
    for stage in ("refine", "dynamics", "all"):
        with pytest.raises(ValueError, match="refine and dynamics in .* were trained on another tokenizer"):
            train(longer, work, stage=stage)
    shutil.rmtree(work / "dynamics")
    with pytest.raises(ValueError, match="refine in .* was trained on another tokenizer"):
        train(longer, work, stage="dynamics")
    assert not (work / "dynamics").exists()
    shutil.rmtree(work / "refine")
    assert train(longer, work) == work / "world"
