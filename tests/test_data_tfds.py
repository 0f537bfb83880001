"""Registered TFDS sets and RLDS folders, written here with the features and files of the real ones."""

import io
import json
import struct
from functools import partial

import numpy as np
import pytest
from PIL import Image

import worldsim
from worldsim import cli
from worldsim.config import (
    DataConfig,
    DynamicsConfig,
    MixConfig,
    RefineConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
    WorldConfig,
)
from worldsim.data import open_source, read_episodes, read_info
from worldsim.data.decode import Look
from worldsim.data.examples import RecordFiles, decode_image, masked_crc, record_offsets
from worldsim.data.rlds import divide, import_rlds, is_rlds
from worldsim.data.stores import load_tfds
from worldsim.evaluate.held_out import load_held_out
from worldsim.evaluate.run import Settings, evaluate
from worldsim.train import run, samples
from worldsim.train.metrics import read_lines

LENGTH, SIZE = 6, 16


def pixels(seed, *, count=LENGTH, size=SIZE, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(file, "PNG")
    return file.getvalue()


def prepare(folder, name, features, splits, *, kind, video=None):
    """A prepared set as TFDS leaves it: record files, ``features.json`` and ``dataset_info.json``.

    Args:
      features: whose examples are stored.
      splits: examples per split, two files each.
      kind: ``tfrecord`` or ``array_record``.
      video: a feature to be called a Video in ``features.json``: it is stored as a Sequence of Images, and
        TFDS can't make one without TensorFlow.
    """
    tfds = load_tfds()
    folder.mkdir(parents=True)
    infos = []
    for split, examples in splits.items():
        raw = [features.serialize_example(example) for example in examples]
        parts = [raw[: len(raw) // 2], raw[len(raw) // 2 :]]
        for index, part in enumerate(parts):
            write_records(folder / f"{name}-{split}.{kind}-{index:05d}-of-00002", part, kind)
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=folder, split=split, filetype_suffix=kind
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[*map(len, parts)], num_bytes=1, filename_template=template
            )
        )
    whole = features if isinstance(features, tfds.features.FeaturesDict) else tfds.features.FeaturesDict({})
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=whole, split_infos=infos, version=folder.name, check_data=False
    )
    told = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(told | {"fileFormat": kind}))
    if video:
        text = (folder / "features.json").read_text()
        (folder / "features.json").write_text(
            text.replace("sequence_feature.Sequence", "video_feature.Video")
        )
    return folder


def write_records(path, records, kind):
    if kind == "array_record":
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return
    with path.open("wb") as file:
        for record in records:
            head = struct.pack("<Q", len(record))
            file.write(head + struct.pack("<I", masked_crc(head)) + record)
            file.write(struct.pack("<I", masked_crc(record)))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def moving_mnist(home, kind, count=4):
    f = load_tfds().features
    features = f.FeaturesDict({"image_sequence": f.Sequence(f.Image(shape=(SIZE, SIZE, 1)))})
    examples = [{"image_sequence": [png(x) for x in pixels(i, channels=1)]} for i in range(count)]
    folder = home / "moving_mnist/1.0.0"
    return prepare(folder, "moving_mnist", features, {"test": examples}, kind=kind, video="image_sequence")


def bair(home, kind):
    f = load_tfds().features
    features = f.Sequence(
        {
            "image_main": f.Image(shape=(SIZE, SIZE, 3)),
            "image_aux1": f.Image(shape=(SIZE, SIZE, 3)),
            "action": f.Tensor(shape=(4,), dtype=np.float32),
            "endeffector_pos": f.Tensor(shape=(3,), dtype=np.float32),
        }
    )

    def example(seed):
        return [
            {"image_main": png(main), "image_aux1": png(255 - main), "endeffector_pos": np.zeros(3, "f4"),
             "action": np.full(4, 10 * seed + t, np.float32)}
            for t, main in enumerate(pixels(seed))
        ]  # fmt: skip

    splits = {"test": [example(8), example(9)], "train": [example(i) for i in range(3)]}
    folder = home / "bair_robot_pushing_small/2.0.0"
    return prepare(folder, "bair_robot_pushing_small", features, splits, kind=kind)


def robonet(home, kind, config="robonet_sample_64", version="4.0.1"):
    f = load_tfds().features
    features = f.FeaturesDict(
        {
            "video": f.Sequence(f.Image(shape=(SIZE, SIZE, 3))),
            "actions": f.Tensor(shape=(None, 5), dtype=np.float32),
            "states": f.Tensor(shape=(None, 5), dtype=np.float32),
            "filename": f.Text(),
        }
    )
    examples = [
        {
            "video": [png(x) for x in pixels(i)],
            "actions": np.repeat(np.arange(LENGTH - 1, dtype=np.float32)[:, None], 5, 1),
            "states": np.zeros((LENGTH, 5), np.float32),
            "filename": "a.hdf5",
        }
        for i in range(2)
    ]
    folder = home / "robonet" / config / version
    return prepare(folder, "robonet", features, {"train": examples}, kind=kind, video="video")


# --- Registered sets


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_moving_mnist_reads_as_grey_video_without_actions(home, kind):
    moving_mnist(home, kind)
    info = read_info("tfds:moving_mnist")
    assert (info.height, info.width, info.channels, info.action.kind) == (SIZE, SIZE, 1, "none")
    assert info.splits["test"].lengths == (LENGTH,) * 4 and info.median.shape == (SIZE, SIZE, 1)
    source = open_source("tfds:moving_mnist", "test", keys=("frames",))
    for index in range(4):
        np.testing.assert_array_equal(source[index]["frames"], pixels(index, channels=1))
    held = open_source("tfds:moving_mnist", "test[75%:]", keys=("frames",))
    rest = open_source("tfds:moving_mnist", "test[:3]", keys=("frames",))
    assert (len(held), len(rest)) == (1, 3) and held.lengths.tolist() == [LENGTH]
    np.testing.assert_array_equal(held[0]["frames"], source[3]["frames"])


@pytest.mark.law
@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_bair_actions_lead_to_the_frame_beside_them(home, kind):
    """The set stores an action with the frame that it follows."""
    bair(home, kind)
    info = read_info("tfds:bair_robot_pushing_small")
    assert (info.action.kind, info.action.size, list(info.splits)) == ("continuous", 4, ["train", "test"])
    source = open_source("tfds:bair_robot_pushing_small", "train")
    np.testing.assert_array_equal(source[2]["frames"], pixels(2))
    assert np.isnan(source[2]["actions"][0]).all()
    assert source[2]["actions"][1:, 0].tolist() == [20, 21, 22, 23, 24]
    (first, second) = read_episodes("tfds:bair_robot_pushing_small", "test")
    assert first["actions"][1, 0] == 80 and second["actions"][1, 0] == 90


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_robonet_has_one_action_less_than_frames(home, kind):
    robonet(home, kind)
    source = open_source("tfds:robonet/robonet_sample_64", "train")
    assert source[1]["actions"].shape == (LENGTH, 5) and np.isnan(source[1]["actions"][0]).all()
    assert source[1]["actions"][1:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(source[1]["frames"], pixels(1))


def test_statistics_are_measured_once_and_anew_when_the_files_change(home, monkeypatch):
    from worldsim.data import registered

    folder = bair(home, "tfrecord")
    info = read_info("tfds:bair_robot_pushing_small")
    frames = np.concatenate([pixels(i) for i in range(3)])
    np.testing.assert_array_equal(info.median, np.median(frames, axis=0).astype(np.uint8))
    np.testing.assert_allclose(info.mean, frames.mean((0, 1, 2)), atol=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(registered, "_measure", lambda *_: pytest.fail("measured again"))
        assert read_info("tfds:bair_robot_pushing_small") == info
    for path in folder.glob("*-train.*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="holds no records"):
        read_info("tfds:bair_robot_pushing_small")


def test_the_newest_version_is_taken_and_configs_must_be_chosen(home):
    robonet(home, "array_record", version="3.0.0")
    robonet(home, "array_record", version="10.0.0")
    from worldsim.data.registered import find_registered

    assert find_registered("tfds:robonet")[0].name == "10.0.0"
    assert find_registered("tfds:robonet/robonet_sample_64/3.0.0")[0].name == "3.0.0"
    robonet(home, "array_record", config="robonet_64")
    with pytest.raises(ValueError, match=r"take one of tfds:robonet/robonet_64, tfds:robonet/robonet_sample"):
        read_info("tfds:robonet")


def test_refusals_say_what_is_known_and_how_to_prepare_it(home):
    with pytest.raises(ValueError, match="knows the registered sets bair_robot_pushing_small, moving_mnist"):
        read_info("tfds:mnist")
    with pytest.raises(
        FileNotFoundError, match=r"not prepared under .*builder\('moving_mnist'\)\.download_and"
    ):
        read_info("tfds:moving_mnist")
    folder = moving_mnist(home, "tfrecord")
    with pytest.raises(
        ValueError, match=r"no split 'train'; it has test\. A split can be cut, such as test\["
    ):
        open_source("tfds:moving_mnist", "train")
    with pytest.raises(ValueError, match="has no actions; its records hold frames"):
        open_source("tfds:moving_mnist", "test")
    with pytest.raises(ValueError, match=r"Split 'test\[a:\]'"):
        open_source("tfds:moving_mnist", "test[a:]")
    with pytest.raises(FileNotFoundError, match=r"prepared are \['1\.0\.0'\]"):
        read_info("tfds:moving_mnist/other")
    next(folder.glob("*00001-of-00002")).unlink()
    with pytest.raises(FileNotFoundError, match="has 1 of 2 tfrecord files"):
        read_info("tfds:moving_mnist")


def halves():
    """A tiny run on the first half of the one split, which holds out the second."""
    stage = partial(StageConfig, steps=1, batch=2, save_every=0, sample_every=1)
    return TrainConfig(
        world=WorldConfig(
            TokenizerConfig(height=SIZE, width=SIZE, channels=1, widths=(8,), blocks=0, levels=(3, 3)),
            DynamicsConfig(width=16, layers=1, heads=2, mlp=16, context=4, pinned=1),
            RefineConfig(width=16, layers=1, heads=2, mlp=16),
        ),
        data=DataConfig("tfds:moving_mnist", split="test[:50%]", eval_split="test[50%:]"),
        tokenizer=stage(frames=2),
        refine=stage(frames=2),
        dynamics=stage(frames=LENGTH),
        mix=MixConfig(chunks=5, queries=2),
    )


def test_what_is_held_out_of_a_registered_set_is_the_other_part_of_its_split(home):
    moving_mnist(home, "array_record", count=6)
    config = halves()
    path, split, other = config.data.path, config.data.split, config.data.eval_split
    held = load_held_out(path, config.world, clips=3, horizon=3, split=other, trained=split)
    np.testing.assert_array_equal(held.frames, [pixels(i, channels=1) for i in (3, 4, 5)])
    np.testing.assert_array_equal(list(held.train), [pixels(i, channels=1) for i in (0, 1, 2)])
    assert held.actions is None and (held.known, held.horizon) == (3, 3)


def test_a_tokenizer_trains_on_a_part_of_a_registered_set_and_shows_the_other(home, monkeypatch):
    moving_mnist(home, "tfrecord", count=6)
    seen, make, draw = {}, run.tokenizer_stage, samples.contact_sheet

    def stage(config, source, *rest, **how):
        seen["train"] = [source[i]["frames"] for i in range(len(source))]
        return make(config, source, *rest, **how)

    def sheet(rows, **how):
        seen["shown"] = rows[::2]
        return draw(rows, **how)

    monkeypatch.setattr(run, "tokenizer_stage", stage)
    monkeypatch.setattr(samples, "contact_sheet", sheet)
    run.train(halves(), home / "work", stage="tokenizer")
    np.testing.assert_array_equal(seen["train"], [pixels(i, channels=1) for i in (0, 1, 2)])
    np.testing.assert_array_equal(seen["shown"], [pixels(i, channels=1) for i in (3, 4, 5)])
    (line,) = read_lines(home / "work/tokenizer/metrics.jsonl")
    assert np.isfinite(line["loss"])


@pytest.mark.slow
def test_a_registered_set_is_trained_on_and_judged_by_parts_of_its_one_split(home):
    """Grey frames without actions: a step of each stage on the first half, judged on the second."""
    moving_mnist(home, "array_record", count=6)
    config = halves()
    world = worldsim.load(run.train(config, home / "work"))
    assert world.config == config.world
    assert world.provenance["data"]["kind"] == "tfds"
    assert world.provenance["steps"] == {"tokenizer": 1, "refine": 1, "dynamics": 1}
    settings = Settings(clips=3, horizon=3, samples=1, steps=1, refine_steps=1)
    told = evaluate(world, config.data.path, home / "out", settings=settings)
    assert told["settings"]["split"] == "test[50%:]"  # which the world says itself
    assert (told["clips"], told["known"], told["horizon"]) == (3, 3, 3)
    assert told["neighbours"] is not None
    assert (home / "out/report.html").exists()


def test_the_checksum_is_that_of_tfrecord_files():
    crc = 0xE3069283  # CRC-32C of "123456789", from RFC 3720's polynomial
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("damage", ["cut", "length"])
def test_damaged_record_files_are_named_with_the_place(tmp_path, damage):
    path = tmp_path / "x.tfrecord"
    write_records(path, [b"one", b"three"], "tfrecord")
    assert record_offsets(path).tolist() == [[12, 3], [31, 5]]
    raw = bytearray(path.read_bytes())
    path.write_bytes(raw[:-1] if damage == "cut" else raw[:19] + b"\x07" + raw[20:])
    with pytest.raises(ValueError, match=r"x\.tfrecord: no whole record at byte 19 of"):
        record_offsets(path)


def test_a_record_with_flipped_bits_is_named(tmp_path):
    paths = [tmp_path / "a.tfrecord-0", tmp_path / "a.tfrecord-1"]
    f = load_tfds().features
    good = f.FeaturesDict({"x": f.Scalar(dtype=np.int64)}).serialize_example({"x": 7})
    write_records(paths[0], [good, good], "tfrecord")
    write_records(paths[1], [good, bytes([good[0] ^ 0x07]) + good[1:]], "tfrecord")
    files = RecordFiles(paths)
    assert [files.example(i)["x"].tolist() for i in range(3)] == [[7]] * 3
    with pytest.raises(ValueError, match=r"a\.tfrecord-1: record 1 is damaged .*copy it again"):
        files.example(3)
    raw = bytearray(png(pixels(0)[0]))
    raw[100] ^= 1
    with pytest.raises(ValueError, match="damaged picture"):
        decode_image(bytes(raw))


# --- RLDS


def rlds(folder, *, kind="tfrecord", splits=("train",), count=4, views=("image",), parts=False):
    f = load_tfds().features
    vector = f.Tensor(shape=(3,), dtype=np.float32)
    action = f.FeaturesDict({"arm": vector, "grip": f.Scalar(dtype=np.float32)}) if parts else vector
    step = {
        "observation": f.FeaturesDict(
            {**{view: f.Image(shape=(24, 32, 3)) for view in views}, "state": vector}
        ),
        "action": action,
        "reward": f.Scalar(dtype=np.float32),
        "is_first": f.Scalar(dtype=np.bool_),
        "is_last": f.Scalar(dtype=np.bool_),
        "is_terminal": f.Scalar(dtype=np.bool_),
        "language_instruction": f.Text(),
    }
    features = f.FeaturesDict(
        {"steps": f.Dataset(step), "episode_metadata": f.FeaturesDict({"file_path": f.Text()})}
    )

    def example(seed):
        length = 16 + seed
        arm = [np.full(3, 100 * seed + t, np.float32) for t in range(length)]
        return {
            "steps": [
                {
                    "observation": {**{v: png(np.full((24, 32, 3), 8 * t, np.uint8)) for v in views},
                                    "state": np.zeros(3, np.float32)},
                    "action": {"arm": arm[t], "grip": np.float32(t)} if parts else arm[t],
                    "reward": np.float32(t == length - 2),
                    "is_first": t == 0, "is_last": t == length - 1, "is_terminal": t == length - 1,
                    "language_instruction": "push the block",
                }
                for t in range(length)
            ],
            "episode_metadata": {"file_path": "x"},
        }  # fmt: skip

    made = {split: [example(i + 10 * k) for i in range(count)] for k, split in enumerate(splits)}
    return prepare(folder / "0.1.0", "toy_arm", features, made, kind=kind)


@pytest.mark.law
@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_an_rlds_folder_becomes_a_dataset(tmp_path, kind):
    rlds(tmp_path / "toy", kind=kind)
    assert is_rlds(tmp_path / "toy") and not is_rlds(tmp_path)
    cli.main(["data", "import", str(tmp_path / "toy"), "--out", str(tmp_path / "out"), "--size", "16",
              "--test-share", "0.25", "--fps", "5"])  # fmt: skip
    info = read_info(tmp_path / "out")
    assert (info.kind, info.fps, info.height, info.action.kind, info.action.size) == (
        "rlds", 5, 16, "continuous", 3)  # fmt: skip
    assert (info.splits["train"].episodes, info.splits["test"].episodes) == (3, 1)
    episodes = list(read_episodes(tmp_path / "out", "train", keys=None))
    assert [len(e["frames"]) for e in episodes] == [16, 17, 18]
    second = episodes[1]
    assert second["frames"][:4, 8, 8, 0].tolist() == [0, 8, 16, 24]
    assert np.isnan(second["actions"][0]).all() and second["actions"][1:4, 0].tolist() == [100, 101, 102]
    assert second["rewards"].tolist() == [0.0] * 16 + [1.0]  # of arriving at the last frame
    assert second["ends"].tolist() == [False] * 16 + [True]


def test_splits_of_the_set_stay_and_parts_of_actions_stand_side_by_side(tmp_path):
    rlds(tmp_path / "toy", splits=("train", "val"), count=2, parts=True)
    info = import_rlds(tmp_path / "toy", tmp_path / "out", look=Look(16, 16))
    assert {name: split.episodes for name, split in info.splits.items()} == {"train": 2, "val": 2}
    (first, _) = read_episodes(tmp_path / "out", "val")
    assert first["actions"][2].tolist() == [1001, 1001, 1001, 1]
    assert info.source["actions"] == ["steps/action/arm", "steps/action/grip"]


def test_several_views_must_be_chosen_from(tmp_path):
    rlds(tmp_path / "toy", views=("left", "right"))
    with pytest.raises(ValueError, match=r"has the views left, right\. Choose one"):
        import_rlds(tmp_path / "toy", tmp_path / "out")
    with pytest.raises(ValueError, match="views left, right; 'top' is not one"):
        import_rlds(tmp_path / "toy", tmp_path / "out", view="top")
    assert import_rlds(tmp_path / "toy", tmp_path / "out", view="right").source["view"] == "right"


def test_options_of_recordings_and_a_wrong_share_are_refused_for_rlds(tmp_path, capsys):
    rlds(tmp_path / "toy")
    command = ["data", "import", str(tmp_path / "toy"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        cli.main([*command, "--no-actions", "--actions-follow"])
    assert "leave --no-actions, --actions-follow out" in capsys.readouterr().err
    for share in (-1, 1, 5, float("nan")):
        with pytest.raises(ValueError, match=r"test_share .* must lie in \[0, 1\)"):
            import_rlds(tmp_path / "toy", tmp_path / "out", test_share=share)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.4, 0.7, 0.9])
def test_the_share_that_is_held_out_is_the_one_that_was_asked_for(share):
    held = divide({"train": [None] * 100}, share)
    assert len(held["test"]) == pytest.approx(max(1, 100 * share), abs=1)
    assert sorted(held["train"] + held["test"]) == [("train", i) for i in range(100)]
