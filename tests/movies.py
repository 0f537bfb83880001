"""Small recordings made on the spot: real mp4, webm, mov and gif files with known frames and times."""

from fractions import Fraction

import av
import numpy as np

KINDS = {
    ".mp4": ("libx264", "yuv420p"),
    ".mov": ("libx264", "yuv420p"),
    ".webm": ("libvpx-vp9", "yuv420p"),
    ".gif": ("gif", "rgb8"),
}


def ramp(count, *, start=0, step=8, height=48, width=80):
    """Grey frames, each ``step`` brighter than the one before: the brightness tells the frame's number."""
    values = (start + step * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames, *, step=8, start=0):
    """The numbers of :func:`ramp`'s frames, read back from the middle of each."""
    middle = frames[:, frames.shape[1] // 2, frames.shape[2] // 2].mean(-1)
    return np.round((middle - start) / step).astype(int).tolist()


def dot(count, *, size=64, seed=0):
    """A bright square that wanders over a dim background."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, size, size, 3), (40, 60, 40), np.uint8)
    place, speed = rng.integers(8, size - 16, 2), rng.choice([-2, -1, 1, 2], 2)
    for frame in frames:
        speed = np.where((place + speed < 0) | (place + speed > size - 8), -speed, speed)
        place = place + speed
        frame[place[0] : place[0] + 8, place[1] : place[1] + 8] = (230, 180, 90)
    return frames


def record(path, frames, *, fps=25, times=None, turn=0):
    """Write a file of the kind that its suffix names.

    Args:
      times: of each frame in milliseconds, for a rate that varies.
      turn: degrees by which players are told to turn the picture, as telephones write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, layout = KINDS[path.suffix.lower()]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = layout
        if codec == "libx264":
            stream.options = {"crf": "4", "preset": "ultrafast"}
        if turn:
            stream.set_display_rotation(turn)
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = int(times[index]), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
