"""Recordings decoded once with PyAV: every frame with its time, upright, at the size and rate asked for.

A frame is shown from its own timestamp to the next one's, so a recording of varying rate keeps its time::

    shown at   0.00   0.04        0.16  0.20         ask for 12.5 frames a second
    frame      A      B           C     D
    times      0      0.08        0.16               ->  A B C
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from worldsim.data.video import fit_into

SUFFIXES = (".mp4", ".webm", ".mov", ".gif")

Frame = UInt8[np.ndarray, "h w 3"]
Timed = Iterable[tuple[float, Frame]]
"""Frames with the second at which each appears."""

SLACK = 0.25
"""Share of a frame's time by which a timestamp may be late: containers round to 1 or 10 milliseconds."""


class UnusableError(ValueError):
    """A recording that can't be taken, with the reason."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What becomes of a recording's frames.

    Attributes:
      height, width: of a frame, in pixels.
      fit: to another aspect: ``crop`` the overhang from both sides, or ``pad`` with black.
      fps: frames per second; None keeps every frame as it was recorded.
    """

    height: int = 64
    width: int = 64
    fit: Literal["crop", "pad"] = "crop"
    fps: float | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 8 or self.fit not in ("crop", "pad"):
            raise ValueError(
                f"Look: {self.height}x{self.width} by {self.fit!r}; give at least 8x8 and 'crop' or 'pad'."
            )
        if self.fps is not None and not 0 < self.fps <= 240:
            raise ValueError(f"Look: {self.fps} frames a second; give more than 0 and at most 240, or none.")


class Recording:
    """A video file, read once from its beginning.

    Attributes:
      rate: frames per second as the container has it; after reading, as the timestamps have it.
      count: frames decoded so far.
      missing: after reading, frames that the container counts beside those: up to a tenth is taken for a
        recording that ends a little early.
    """

    def __init__(self, path: Path, look: Look) -> None:
        self._path, self._look = path, look
        self.rate, self.count, self.missing = 0.0, 0, 0
        self._first, self._last, self._shown = 0.0, 0.0, 0.0

    def frames(self, *, step: int | None = None) -> Iterator[Frame]:
        """The frames at the rate asked for.

        Args:
          step: keep each ``step``-th frame whatever its time, for recordings with an action a frame; None
            goes by the timestamps.

        Raises:
          UnusableError: no video in it, damaged or cut off; or it has a ``step`` and no even rate.
        """
        fps = self._look.fps
        if fps is None:
            yield from (frame for _, frame in self._timed(even=False))
        elif step is not None:
            timed = self._timed(even=True)
            yield from (frame for index, (_, frame) in enumerate(timed) if index % step == 0)
        else:
            yield from at_rate(self._timed(even=False), fps, self)

    def nominal(self) -> float:
        """Frames per second as the container has it, before anything is decoded.

        Raises:
          UnusableError: as :meth:`frames` does.
        """
        import av
        from av.error import FFmpegError

        try:
            with av.open(str(self._path)) as container:
                stream = container.streams.video[0]
                return float(stream.average_rate or stream.guessed_rate or 0)
        except (FFmpegError, OSError, IndexError):
            next(self._timed(even=False), None)  # tells what is wrong
            raise UnusableError("its frame rate can't be read") from None

    @property
    def end(self) -> float:
        """The second at which the last frame decoded so far goes out of sight, as far as it is known."""
        return self._last + self._shown

    def _timed(self, *, even: bool) -> Iterator[tuple[float, Frame]]:
        """Every frame of the file with its time."""
        import av
        from av.error import FFmpegError

        try:
            if self._path.stat().st_size == 0:
                raise UnusableError("the file is empty (0 bytes)")
            with av.open(str(self._path)) as container:
                if not container.streams.video:
                    raise UnusableError("there is no video in it")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                self.rate = float(stream.average_rate or stream.guessed_rate or 0)
                hidden = 0  # frames that the container counts and an edit list leaves out, as trimming does
                for packet in container.demux(stream):
                    hidden += bool(packet.is_discard)
                    for frame in packet.decode():
                        yield self._time(frame, even), self._picture(frame, stream.sample_aspect_ratio)
                promised = stream.frames - hidden
        except UnusableError:
            raise
        except (FFmpegError, OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            after = f" after {self.count} frames" if self.count else ""
            raise UnusableError(f"it can't be decoded{after} ({text})") from error
        if self.count == 0:
            raise UnusableError("it holds 0 frames")
        if self.count < 0.9 * promised:
            raise UnusableError(f"it is cut off: {self.count} of {promised} frames could be decoded")
        self.missing = max(0, promised - self.count)
        if self.count > 1 and self._last > self._first:
            self.rate = (self.count - 1) / (self._last - self._first)

    def _time(self, frame: Any, even: bool) -> float:
        """The frame's time in seconds; counts it."""
        if frame.is_corrupt:
            raise UnusableError(f"frame {self.count} is damaged")
        time = frame.time if frame.time is not None else self.count / (self.rate or 15.0)
        if self.count == 0:
            self._first = time
        elif even and abs(time - self._first - self.count / self.rate) > 0.5 / self.rate:
            raise UnusableError(
                f"its rate varies (frame {self.count} is not where {self.rate:g} a second would have it), so "
                "it can't be thinned with its actions; import it without --fps"
            )
        self._last, self.count = time, self.count + 1
        self._shown = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        return time

    def _picture(self, frame: Any, pixel: Any) -> Frame:
        """The frame upright and at its size; ``pixel`` is the aspect of one pixel, or None."""
        from av.video.reformatter import Interpolation

        look, turns = self._look, round(frame.rotation / 90) % 4
        box = (look.height, look.width) if turns % 2 == 0 else (look.width, look.height)
        shape = (float(frame.height), float(frame.width * (pixel or 1)))
        height, width = inner_size(shape, box, look.fit)
        shrinks = height <= frame.height and width <= frame.width
        kind = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        small = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=kind)
        return np.rot90(fit_into(small, box), turns)


def inner_size(shape: tuple[float, float], box: tuple[int, int], fit: str) -> tuple[int, int]:
    """Height and width of a whole frame, scaled so that it covers the box (crop) or lies within it (pad)."""
    factors = box[0] / shape[0], box[1] / shape[1]
    factor = max(factors) if fit == "crop" else min(factors)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def at_rate(timed: Timed, fps: float, recording: Recording | None = None) -> Iterator[Frame]:
    """What is to be seen at times 0, 1 / fps, 2 / fps, ... from the first frame on.

    Args:
      timed: frames in the order of their times.
      fps: frames per second.
      recording: knows when the last frame goes out of sight; without it, it is shown once.
    """
    slack, done = SLACK / fps, 0
    first = last = 0.0
    shown: Frame | None = None
    for time, frame in timed:
        if shown is None:
            first = time
        while shown is not None and first + done / fps + slack < time:
            yield shown
            done += 1
        shown, last = frame, time
    end = max(recording.end if recording is not None else 0.0, last + 2 * slack)
    while shown is not None and first + done / fps + slack < end:
        yield shown
        done += 1


def whole_step(rate: float, fps: float | None) -> int:
    """Each how many-th frame is kept to come from one rate to the other.

    Raises:
      UnusableError: they are not whole multiples; the rates that would do are named.
    """
    if fps is None:
        return 1
    step = max(1, round(rate / fps))
    if not rate or abs(rate / (step * fps) - 1) > 0.01:
        fine = ", ".join(f"{rate / n:.4g}" for n in (1, 2, 3, 4))
        raise UnusableError(
            f"{rate:g} frames a second with an action each can't become {fps:g} in whole steps; --fps {fine} "
            "would do"
        )
    return step
