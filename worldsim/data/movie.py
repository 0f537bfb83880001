"""Movies written as their frames come, and gone on with later."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from worldsim.data.sheet import enlargement
from worldsim.data.video import encoding, shown
from worldsim.types import Frames

ENDLESS = (".mp4", ".webm")
"""Kinds of files that can be gone on with."""


def check_endless(path: Path) -> None:
    """Refuse what can't be written frame by frame.

    Raises:
      ValueError: another kind of file.
    """
    if path.suffix.lower() not in ENDLESS:
        raise ValueError(f"{path}: can't be written frame by frame; use {' or '.join(ENDLESS)}.")


class MovieWriter:
    """Writes frames to a movie as they come; closed, however that comes about, the file can be played.

        with MovieWriter("out.mp4", (64, 64), fps=15) as movie:
            movie.add(frames)

    With ``append``, what is added follows what the file has: it is encoded on its own, and both are put into
    one file as they are when the writer closes; where an exception closes it, the file stays as it was.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], *, fps: float, append: bool = False):
        """Nothing is written before the first frames.

        Args:
          path: ``.mp4`` or ``.webm``; its folder is made if needed.
          size: height and width of the frames.
          fps: rate.
          append: go on with the file.

        Raises:
          ValueError: another kind of file, or a rate that is none.
          FileNotFoundError: no file to go on with.
        """
        self.path, self.fps = Path(path), fps
        check_endless(self.path)
        if not fps > 0:
            raise ValueError(f"{path}: fps {fps}; give a positive rate.")
        if append and not self.path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file to go on with.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._scale = enlargement(size, 256)
        self._target = (
            self.path.with_name(f"{self.path.stem}.more{self.path.suffix}") if append else self.path
        )
        self._writer: Any = None

    def __enter__(self) -> MovieWriter:
        return self

    def add(self, frames: Frames) -> None:
        """Write some more frames."""
        frames = shown(frames, self._scale)
        if self._writer is None:
            mediapy, options = encoding(self.path)
            self._writer = mediapy.VideoWriter(self._target, frames.shape[1:3], fps=self.fps, **options)
            with _deaf():
                self._writer.__enter__()
        for frame in frames:
            self._writer.add_image(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.__exit__(None, None, None)
        if self._target == self.path:
            return
        if kind is None:
            _join(self.path, self._target)
        else:  # whoever broke off does not know what came after the file that it goes on with
            self._target.unlink(missing_ok=True)


def count_frames(path: Path) -> int:
    """Frames of a movie: its packets are counted, undecoded; a file that is no movie has none."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", str(path)]
    listing = [*command, "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "-"]
    lines = subprocess.run(listing, capture_output=True, text=True).stdout.splitlines()
    return sum(not line.startswith("#") for line in lines)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes begun here do not hear Ctrl-C or SIGTERM, which terminals send to all of a group."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _join(path: Path, more: Path) -> None:
    """Put two movies of one encoding into the first one's file; the second goes."""
    import imageio_ffmpeg

    listed, whole = more.with_suffix(".txt"), more.with_name(f"{path.stem}.whole{path.suffix}")
    quoted = [str(part.resolve()).replace("'", r"'\''") for part in (path, more)]
    listed.write_text("".join(f"file '{part}'\n" for part in quoted), "utf-8")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "concat", "-safe", "0"]
    ran = subprocess.run(
        [*command, "-i", str(listed), "-c", "copy", str(whole)], capture_output=True, text=True
    )
    listed.unlink()
    if ran.returncode:
        raise OSError(
            f"{path}: could not be joined with {more}, which is kept ({ran.stderr.strip()[-200:]})."
        )
    whole.replace(path)
    more.unlink()
