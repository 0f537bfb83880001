"""Video files: what is written comes back, and what can't be read is named with the remedy."""

import dataclasses
import sys

import movies
import numpy as np
import pytest
import tiny

from worldsim.cli.options import read_input
from worldsim.data import video
from worldsim.data.sheet import GENERATED, KNOWN, contact_sheet
from worldsim.ops.scores import psnr
from worldsim.types import Clip


def moving_square(t, height=64, width=64, channels=3):
    frames = np.full((t, height, width, channels), 40, np.uint8)
    for i, frame in enumerate(frames):
        frame[8:20, (3 * i) % (width - 12) : (3 * i) % (width - 12) + 12] = 220
    return frames


def apart(first, second):
    """Mean absolute difference, 0 to 255."""
    return np.abs(first.astype(int) - second).mean()


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm"])
@pytest.mark.parametrize("t", [1, 2, 17])
def test_a_written_movie_comes_back_with_every_frame(tmp_path, suffix, t):
    frames = moving_square(t)
    path = video.write_video(tmp_path / f"new/folder/clip{suffix}", frames, fps=10)
    clip = video.read_video(path)
    assert clip.frames.shape == (t, 256, 256, 3) and clip.fps == pytest.approx(10)
    back = video.resize_clip(clip, 64, 64, how="stretch")
    assert psnr(back.frames, frames).min() > 30


def test_still_movies_keep_their_repeated_frames(tmp_path):
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    for suffix in video.MOVIES:
        assert len(video.read_video(video.write_video(tmp_path / f"still{suffix}", frames, fps=15))) == 9


def test_odd_sizes_and_grey_are_encoded_and_scale_is_the_users(tmp_path):
    frames = moving_square(3, 31, 45, 1)
    back = video.read_video(video.write_video(tmp_path / "odd.mp4", frames, scale=1)).frames
    assert back.shape == (3, 32, 46, 3)
    assert apart(back[:, :31, :45], np.broadcast_to(frames, (3, 31, 45, 3))) < 3
    assert apart(back[:, 31], back[:, 30]) < 3 and apart(back[:, :, 45], back[:, :, 44]) < 3


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_npz_is_lossless_with_actions_mask_and_rate(tmp_path, dtype):
    actions = np.arange(5).astype(dtype)
    clip = Clip(moving_square(5), actions, np.array([True] * 4 + [False]), 12.5)
    back = video.read_video(video.write_video(tmp_path / "clip.npz", clip))
    assert np.array_equal(back.frames, clip.frames) and np.array_equal(back.mask, clip.mask)
    assert np.array_equal(back.actions, actions) and back.actions.dtype == dtype and back.fps == 12.5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_picture_is_a_clip_of_one_frame(tmp_path, mode):
    from PIL import Image

    Image.fromarray(moving_square(1)[0]).convert(mode).save(tmp_path / "one.png")
    clip = video.read_video(tmp_path / "one.png")
    assert np.array_equal(clip.frames, moving_square(1)) and clip.fps is None


def test_png_output_is_a_sheet_of_all_frames(tmp_path):
    path = video.write_video(tmp_path / "sheet.png", moving_square(20), scale=1)
    sheet = video.read_video(path).frames[0]
    pitch = 64 + 8
    for index, frame in enumerate(moving_square(20)):
        top, left = 6 + index // 16 * pitch, sheet.shape[1] - (16 - index % 16) * pitch + 2
        assert apart(sheet[top : top + 64, left : left + 64], frame) == 0


def test_resizing_enlarged_frames_gives_them_back():
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
    big = Clip(frames.repeat(4, 1).repeat(4, 2), np.arange(2), None, 7.0)
    back = video.resize_clip(big, 6, 8)
    assert np.array_equal(back.frames, frames) and back.fps == 7 and np.array_equal(back.actions, [0, 1])
    assert video.resize_clip(back, 6, 8) is back


@pytest.mark.parametrize("channels", [1, 3])
def test_other_aspects_pad_crop_or_stretch(channels):
    wide = Clip(np.full((2, 10, 20, channels), 200, np.uint8))
    padded = video.resize_clip(wide, 10, 10, how="pad").frames
    assert (padded[:, 2:7] > 150).all() and (padded[:, :2] == 0).all() and (padded[:, 8:] == 0).all()
    assert (video.resize_clip(wide, 10, 10, how="crop").frames == 200).all()
    assert (video.resize_clip(wide, 30, 7, how="stretch").frames == 200).all()
    wide.frames[:, :, :5] = wide.frames[:, :, 15:] = 0
    assert (video.resize_clip(wide, 10, 10, how="crop").frames == 200).all()  # the middle is kept


def broken(tmp_path):
    """One broken file of each kind, with what its message must say."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "noise.gif").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "noise.png").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "noise.npz").write_bytes(bytes(range(256)) * 8)
    np.save(tmp_path / "single.npy", np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    np.savez(tmp_path / "other.npz", video=np.zeros(3))
    np.savez(tmp_path / "float.npz", frames=np.zeros((2, 4, 4, 3), np.float32))
    np.savez(tmp_path / "none.npz", frames=np.zeros((0, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "pickled.npz", frames=np.array([{}], dtype=object))
    return {
        "empty.mp4": "0 bytes",
        "noise.mp4": "ffmpeg can't decode it .*check that it is a whole .mp4",
        "noise.gif": "ffmpeg can't decode it",
        "noise.png": "can't be read as a picture .*save it anew as .png",
        "noise.npz": "not a whole .npz",
        "single.npz": "not a whole .npz of plain arrays .it is a single array, as an .npy holds",
        "other.npz": r"holds arrays \['video'\]; it must hold 'frames'",
        "float.npz": r"uint8.*got float32 \[2, 4, 4, 3\]",
        "none.npz": "holds 0 frames; give a file with at least 1",
        "pickled.npz": "not a whole .npz of plain arrays",
        "clip.avi": r"'.avi' can't be read; use .mp4, .gif",
    }


def test_unreadable_files_are_named_with_the_remedy(tmp_path):
    for name, match in broken(tmp_path).items():
        with pytest.raises(ValueError, match=match) as error:
            video.read_video(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(FileNotFoundError, match="absent.mp4: no such file"):
        video.read_video(tmp_path / "absent.mp4")


def test_videos_too_large_to_hold_are_refused_with_their_size(tmp_path, monkeypatch):
    path = video.write_video(tmp_path / "long.mp4", moving_square(16), fps=15)
    monkeypatch.setattr(video, "MAX_BYTES", 2**20)
    with pytest.raises(ValueError, match="16 frames of 256x256 are 0.0 GiB decoded"):
        video.read_video(path)


@pytest.mark.parametrize(
    ("name", "frames", "options", "match"),
    [
        ("x.jpg", moving_square(2), {}, "'.jpg' can't be written; use .mp4"),
        ("x", moving_square(2), {}, r"'\(no suffix\)' can't be written"),
        ("x.mp4", moving_square(2)[:0], {}, "0 frames can't be written"),
        ("x.mp4", moving_square(2), {"scale": 0}, "scale 0"),
        ("x.mp4", moving_square(2), {"fps": -3.0}, "fps -3.0"),
    ],
)
def test_bad_writes_are_refused(tmp_path, name, frames, options, match):
    with pytest.raises(ValueError, match=match):
        video.write_video(tmp_path / name, frames, **options)
    assert not (tmp_path / name).exists()


def test_without_mediapy_npz_and_pictures_still_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapy", None)
    assert len(video.read_video(video.write_video(tmp_path / "a.npz", moving_square(3)))) == 3
    video.write_video(tmp_path / "a.png", moving_square(3))
    with pytest.raises(ModuleNotFoundError, match=r"mp4 files need mediapy .*use .npz"):
        video.write_video(tmp_path / "a.mp4", moving_square(3))


def test_clips_show_in_a_notebook(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    video.show_video(Clip(moving_square(3, channels=1), fps=5))
    assert len(shown) == 1 and 'height="256"' in shown[0].data and "<video" in shown[0].data
    video.show_video({"truth": Clip(moving_square(3), fps=5), "world": moving_square(4)}, height=64)
    assert shown[1].data.count("<video") == 2 and "truth" in shown[1].data and "world" in shown[1].data
    with pytest.raises(ValueError, match="no clips"):
        video.show_video({})


def test_sheet_draws_every_nth_frame_with_its_mark():
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    known = np.array([True, True, False, False, False])
    sheet = contact_sheet([frames, frames[:3]], known=[known, None], every=2, scale=1)
    assert sheet.shape == (4 + 2 * 16 + 14, 4 + 3 * 16, 3)
    for column, (value, mark) in enumerate([(10, KNOWN), (30, GENERATED), (50, GENERATED)]):
        left = 4 + 16 * column
        assert tuple(sheet[4, left]) == mark and (sheet[6:14, left + 2 : left + 10] == value).all()
    assert (sheet[22:30, 6:14] == 10).all() and tuple(sheet[20, 4]) not in (KNOWN, GENERATED)


def test_sheet_labels_take_room_and_are_drawn():
    frames = moving_square(2)
    plain = contact_sheet([frames], scale=1)
    named = contact_sheet([frames], labels=["truth"], columns=["t", "t+1"], scale=1)
    margin = named.shape[1] - plain.shape[1]
    assert margin > 20 and len(np.unique(named[:, :margin].reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rows": []}, r"rows of \[\] frames"),
        ({"rows": [moving_square(2), moving_square(2, 32)]}, "different sizes"),
        ({"every": 0}, "every 0"),
        ({"labels": ["a", "b"]}, "2 labels for 1"),
        ({"columns": ["a"]}, "1 columns for 3"),
        ({"known": [np.ones(2, bool)]}, r"marks \[2\] frames of rows with \[3\]"),
    ],
)
def test_sheets_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        contact_sheet(**({"rows": [moving_square(3)]} | options))


@pytest.mark.law
def test_colours_become_grey_and_grey_becomes_rgb(tmp_path):
    """Also where the command line reads a file for a world of the other kind."""
    rng = np.random.default_rng(0)
    grey = Clip(rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8), np.arange(5, dtype=np.int32), fps=7.0)
    rgb = video.with_channels(grey, 3)
    assert rgb.frames.shape == (5, 8, 8, 3) and rgb.fps == 7.0
    np.testing.assert_array_equal(video.with_channels(rgb, 1).frames, grey.frames)
    np.testing.assert_array_equal(rgb.actions, grey.actions)
    red = Clip(np.full((1, 4, 4, 3), (255, 0, 0), np.uint8))
    assert set(video.with_channels(red, 1).frames.ravel().tolist()) == {76}
    with pytest.raises(ValueError, match="3 to 2 channels"):
        video.with_channels(red, 2)
    whole = tiny.config()
    whole = dataclasses.replace(whole, tokenizer=dataclasses.replace(whole.tokenizer, channels=1))
    world = tiny.make_world(whole)
    for name in ("c.npz", "c.png", "c.gif"):
        clip = read_input(str(video.write_video(tmp_path / name, rgb, scale=1)), world, resize="pad")
        assert clip.frames.shape[1:] == (16, 16, 1)
    assert len(world.extend(clip, 2).clip) == len(clip) + 2


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_a_movie_of_a_phone_is_read_upright(tmp_path, turn):
    frames = movies.ramp(4, step=0)
    frames[:, :24, :40] = 250  # the upper left quarter, as the sensor sees it
    clip = video.read_video(movies.record(tmp_path / "one.mp4", frames, turn=turn))
    turned = np.rot90(frames, turn // 90 % 4, axes=(1, 2))
    assert clip.frames.shape == turned.shape and apart(clip.frames, turned) < 5


def test_a_picture_of_a_phone_is_read_upright_and_a_deep_one_keeps_its_greys(tmp_path):
    from PIL import Image

    image, exif = Image.fromarray(moving_square(1)[0][:, :48]), Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    image.save(tmp_path / "one.png", exif=exif)
    assert np.array_equal(
        video.read_video(tmp_path / "one.png").frames[0], np.rot90(moving_square(1)[0][:, :48], -1)
    )
    ramp = np.arange(64, dtype=np.uint16)[None].repeat(16, 0) << 10
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert np.array_equal(video.read_video(tmp_path / "deep.png").frames[0, :, :, 0], ramp >> 8)


def test_a_suffix_in_capitals_is_kept(tmp_path):
    path = video.write_video(tmp_path / "CLIP.NPZ", moving_square(2))
    assert [one.name for one in tmp_path.iterdir()] == ["CLIP.NPZ"] and len(video.read_video(path)) == 2
