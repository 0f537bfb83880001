"""Video files in and out: mp4, gif, webm, npz and pictures as Clips, and resizing.

mediapy and the ffmpeg that imageio-ffmpeg carries do the coding; they are loaded on first use, and
``.npz`` and pictures work without them. An ``.npz`` is the lossless form: arrays ``frames``, and where the
clip has them ``actions``, ``mask`` and ``fps``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from worldsim.data.arrays import UNREADABLE, open_arrays
from worldsim.data.sheet import contact_sheet, enlargement, upscale
from worldsim.types import Clip, Frames

MOVIES = (".mp4", ".gif", ".webm")
PICTURES = (".png", ".jpg", ".jpeg")
READABLE = (*MOVIES, ".npz", *PICTURES)
WRITABLE = (*MOVIES, ".npz", ".png")

MAX_BYTES = 4 * 2**30
"""Decoded frames beyond this are refused: a clip is held in memory."""

_ENCODING: dict[str, dict[str, Any]] = {
    ".mp4": {"codec": "h264", "crf": 12},
    ".webm": {"codec": "vp9", "crf": 20},
    ".gif": {"codec": "gif"},
}


def read_video(path: str | os.PathLike[str]) -> Clip:
    """Read a file as a clip; a picture is a clip of one frame.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: of a kind that can't be read, empty, broken or larger than ``MAX_BYTES``.
      ModuleNotFoundError: mediapy or imageio-ffmpeg is missing.
    """
    path = Path(path)
    suffix = _suffix(path, READABLE, "read")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the working folder is {Path.cwd()}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes); write or copy it again.")
    match suffix:
        case ".npz":
            clip = _read_npz(path)
        case ".mp4" | ".gif" | ".webm":
            clip = _read_movie(path)
        case _:
            clip = _read_picture(path)
    if len(clip) == 0:
        raise ValueError(f"{path}: it holds 0 frames; give a file with at least 1.")
    return clip


def write_video(
    path: str | os.PathLike[str], clip: Clip | Frames, *, fps: float | None = None, scale: int | None = None
) -> Path:
    """Write a clip to a file of the kind that its suffix names, making the folder where it lacks.

    Args:
      path: ``.mp4``, ``.gif`` or ``.webm`` to look at (lossy), ``.png`` for a contact sheet (of one frame:
        the picture), ``.npz`` for the frames, actions and rate as they are.
      clip: a clip or uint8 frames ``[t h w c]``.
      fps: frames per second; by default the clip's, else 15. A gif keeps time in hundredths of a second.
      scale: whole-number enlargement of movies and sheets, pixels staying squares; by default small
        movies are brought to at least 256 pixels. ``.npz`` is never enlarged.

    Returns:
      The path written.
    """
    path = Path(path)
    suffix = _suffix(path, WRITABLE, "written")
    clip = clip if isinstance(clip, Clip) else Clip(np.asarray(clip))
    fps = fps or clip.fps or 15.0
    if len(clip) == 0:
        raise ValueError(f"{path}: a clip of 0 frames can't be written; give at least 1.")
    if fps < 0 or (scale is not None and scale < 1):
        raise ValueError(f"{path}: fps {fps}, scale {scale}; give a positive rate and a scale of at least 1.")
    path.parent.mkdir(parents=True, exist_ok=True)
    match suffix:
        case ".npz":
            arrays = {
                "frames": clip.frames,
                "actions": clip.actions,
                "mask": clip.mask,
                "fps": np.float64(fps),
            }
            with path.open("wb") as file:  # given a name, NumPy adds .npz to .NPZ
                np.savez_compressed(file, **{n: array for n, array in arrays.items() if array is not None})
        case ".png":
            _write_sheet(path, clip.frames, scale)
        case _:
            _write_movie(path, clip.frames, fps, scale)
    return path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse before any work is done what :func:`write_video` could not write after it.

    Raises:
      ValueError: a suffix that can't be written.
      ModuleNotFoundError: mediapy or its ffmpeg is missing and the suffix needs them.
      OSError: the folder can't be made or written to.
    """
    path = Path(path)
    if _suffix(path, WRITABLE, "written") not in (".npz", ".png"):
        _mediapy(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: can't be written; give a file in a folder of yours.")


def show_video(
    clip: Clip | Frames | Mapping[str, Clip | Frames], *, fps: float | None = None, height: int = 256
) -> None:
    """Show a clip in a notebook, or several side by side under their titles.

    Args:
      clip: one, or clips by title.
      fps: as in :func:`write_video`; of several clips, by default the first one's.
      height: of each, in pixels.
    """
    named = dict(clip) if isinstance(clip, Mapping) else {"": clip}
    clips = [one if isinstance(one, Clip) else Clip(np.asarray(one)) for one in named.values()]
    if not clips:
        raise ValueError("show_video: no clips; give at least one.")
    drawn = [_rgb(upscale(one.frames, enlargement(one.frames.shape[1:3], height))) for one in clips]
    mediapy = _mediapy(Path("video.mp4"))
    titles = [name or None for name in named]
    mediapy.show_videos(drawn, titles, fps=fps or clips[0].fps or 15.0, height=height)


def resize_clip(
    clip: Clip, height: int, width: int, *, how: Literal["pad", "crop", "stretch"] = "pad"
) -> Clip:
    """The clip at another size; actions, mask and rate stay.

    Shrinking takes the mean of the pixels covered (so a clip enlarged by a whole factor comes back as it
    was), growing is bicubic.

    Args:
      clip: any clip.
      height, width: of the result.
      how: to another aspect: ``pad`` with black, ``crop`` the overhang from both sides, or ``stretch``.
    """
    if min(height, width) < 1 or how not in ("pad", "crop", "stretch"):
        raise ValueError(
            f"resize_clip: {height}x{width} by {how!r}; give at least 1x1 and 'pad', 'crop' or 'stretch'."
        )
    old = clip.frames.shape[1:3]
    if old == (height, width):
        return clip
    factors = height / old[0], width / old[1]
    if how == "stretch":
        inner = (height, width)
    else:
        factor = min(factors) if how == "pad" else max(factors)
        inner = (max(1, round(old[0] * factor)), max(1, round(old[1] * factor)))
    frames = np.stack([_resize(frame, *inner) for frame in clip.frames]) if len(clip) else clip.frames
    return Clip(fit_into(frames, (height, width)), clip.actions, clip.mask, clip.fps)


def with_channels(clip: Clip, channels: int) -> Clip:
    """The clip in grey (1) or in RGB (3): grey is the luma of ITU-R BT.601, and RGB of grey three times it.

    Raises:
      ValueError: another number of channels.
    """
    if channels not in (1, 3) or clip.frames.shape[-1] not in (1, 3):
        raise ValueError(f"with_channels: {clip.frames.shape[-1]} to {channels} channels; there are 1 and 3.")
    if clip.frames.shape[-1] == channels:
        return clip
    if channels == 3:
        return dataclasses.replace(clip, frames=np.repeat(clip.frames, 3, axis=-1))
    luma = clip.frames @ np.array([0.299, 0.587, 0.114])
    return dataclasses.replace(clip, frames=luma.round().astype(np.uint8)[..., None])


def fit_into(frames: UInt8[np.ndarray, "*n _ _ c"], box: tuple[int, int]) -> UInt8[np.ndarray, "*n _ _ c"]:
    """The middle of frames, where they overhang the box, amid black where they do not fill it."""
    *lead, height, width, channels = frames.shape
    canvas = np.zeros((*lead, *box, channels), np.uint8)
    here, there = [], []
    for inner, outer in zip((height, width), box, strict=True):
        size = min(inner, outer)
        here.append(slice((inner - size) // 2, (inner - size) // 2 + size))
        there.append(slice((outer - size) // 2, (outer - size) // 2 + size))
    canvas[..., there[0], there[1], :] = frames[..., here[0], here[1], :]
    return canvas


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    kind = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    return np.asarray(image.resize((width, height), kind)).reshape(height, width, -1)


def _suffix(path: Path, allowed: tuple[str, ...], verb: str) -> str:
    suffix = path.suffix.lower()
    if suffix not in allowed:
        raise ValueError(
            f"{path}: files of kind {suffix or '(no suffix)'!r} can't be {verb}; use {', '.join(allowed)}."
        )
    return suffix


def _read_npz(path: Path) -> Clip:
    try:
        with open_arrays(path) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a whole .npz of plain arrays ({error}); write it anew.") from error
    unknown = sorted(set(arrays) - {"frames", "actions", "mask", "fps"})
    if "frames" not in arrays or unknown:
        raise ValueError(
            f"{path}: holds arrays {sorted(arrays)}; it must hold 'frames' (uint8 [t, height, width, 1 or "
            "3]) and may hold 'actions', 'mask' and 'fps'."
        )
    mask = arrays.get("mask")
    try:
        fps = float(arrays["fps"]) if "fps" in arrays else None
        mask = None if mask is None else mask.astype(bool)
        return Clip(arrays["frames"], arrays.get("actions"), mask, fps)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_movie(path: Path) -> Clip:
    mediapy = _mediapy(path)
    try:
        with mediapy.VideoReader(path) as reader:
            reader.shape = height, width = _upright(path) or reader.shape
            size = max(0, reader.num_images) * height * width * 3
            if size > MAX_BYTES:
                raise ValueError(
                    f"{path}: {reader.num_images} frames of {height}x{width} are {size / 2**30:.1f} GiB "
                    f"decoded; at most {MAX_BYTES / 2**30:.0f} GiB are read. Cut or shrink the video first."
                )
            frames, fps = list(reader), float(reader.fps)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{path}: ffmpeg can't decode it ({lines[-1].strip() if lines else 'no reason given'}); check "
            f"that it is a whole {path.suffix} file, or convert it."
        ) from error
    if not frames:
        raise ValueError(f"{path}: ffmpeg decoded 0 frames; check that the file is whole.")
    return Clip(np.stack(frames), fps=fps)


def _upright(path: Path) -> tuple[int, int] | None:
    """Height and width of a movie that is stored on its side, as phones do; None of any other.

    ffmpeg turns its frames upright, and mediapy reads of two lines about it the one that says no.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        return None
    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
    except (FFmpegError, OSError, ValueError, IndexError, StopIteration):
        return None  # for ffmpeg to say what is wrong
    return (frame.width, frame.height) if round(frame.rotation / 90) % 2 else None


def _read_picture(path: Path) -> Clip:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow cuts off what is above 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            frame = np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: can't be read as a picture ({error}); save it anew as .png.") from error
    return Clip(frame[None])


def _write_movie(path: Path, frames: Frames, fps: float, scale: int | None) -> None:
    mediapy, options = encoding(path)
    frames = shown(frames, scale or enlargement(frames.shape[1:3], 256))
    mediapy.write_video(path, frames, fps=fps, **options)


def encoding(path: Path) -> tuple[Any, dict[str, Any]]:
    """mediapy, and what it is told of a movie's codec.

    Raises:
      ModuleNotFoundError: mediapy or its ffmpeg is missing.
    """
    return _mediapy(path), _ENCODING[path.suffix.lower()]


def shown(frames: Frames, scale: int) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Frames as movies have them: RGB, each pixel ``scale`` pixels wide, of even sides."""
    frames = _rgb(upscale(frames, scale))
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    return np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")  # the colour planes are halved


def _write_sheet(path: Path, frames: Frames, scale: int | None, width: int = 16) -> None:
    from PIL import Image

    if len(frames) == 1:
        Image.fromarray(upscale(_rgb(frames), scale or 1)[0]).save(path)
        return
    rows = [_rgb(frames)[i : i + width] for i in range(0, len(frames), width)]
    labels = [f"{i * width}+" for i in range(len(rows))] if len(rows) > 1 else None
    Image.fromarray(contact_sheet(rows, labels=labels, scale=scale)).save(path)


def _rgb(frames: Frames) -> UInt8[np.ndarray, "t h w 3"]:
    """Grey frames as three equal channels."""
    return np.broadcast_to(frames, (*frames.shape[:3], 3))


def _mediapy(path: Path) -> Any:
    """mediapy with the ffmpeg binary that imageio-ffmpeg carries."""
    try:
        import imageio_ffmpeg
        import mediapy
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path}: {path.suffix} files need mediapy and imageio-ffmpeg ({error}); install them with "
            "pip install mediapy 'imageio-ffmpeg<0.8', or use .npz."
        ) from error
    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    return mediapy
