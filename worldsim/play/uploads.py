"""Clips and pictures that a page sends: read frame by frame, small, never as large as they claim."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from itertools import islice
from pathlib import Path

import numpy as np

from worldsim.config import TokenizerConfig
from worldsim.data.decode import Look, Recording
from worldsim.data.video import with_channels
from worldsim.types import Clip

KINDS = (".mp4", ".webm", ".mov", ".gif", ".png", ".jpg", ".jpeg")
LAST, MOST, PIXELS, SECONDS = 256, 20_000, 2**24, 10.0
"""Frames that are kept, frames that are read, pixels that one may have, and seconds that reading may take."""


def read_upload(data: bytes, suffix: str, tokenizer: TokenizerConfig) -> Clip:
    """The last frames of a file at the size of a world, padded, in its channels and in whole chunks.

    Raises:
      ValueError: a kind that is not taken, frames that are too large, a file that can't be read or takes too
        long.
    """
    import av
    from av.error import FFmpegError

    if suffix not in KINDS:
        raise ValueError(f"a file {suffix or 'without an ending'}; send one of {' '.join(KINDS)}")
    last: deque[np.ndarray] = deque(maxlen=LAST)
    with tempfile.TemporaryDirectory(prefix="worldsim-play-") as folder:
        path = Path(folder) / f"clip{suffix}"
        path.write_bytes(data)
        try:
            with av.open(str(path)) as container:
                sizes = [stream.width * stream.height for stream in container.streams.video]
        except (FFmpegError, OSError) as error:
            raise ValueError("it can't be read") from error
        if max(sizes, default=0) > PIXELS:
            raise ValueError(f"a frame has {max(sizes):,} pixels; at most {PIXELS:,} are read")
        look = Look(tokenizer.height, tokenizer.width, fit="pad")
        until = time.monotonic() + SECONDS
        for frame in islice(Recording(path, look).frames(), MOST):
            if time.monotonic() > until:
                raise ValueError(
                    f"it takes more than {SECONDS:g} seconds to read; send a shorter or smaller one"
                )
            last.append(frame)
    clip, f = with_channels(Clip(np.stack(last)), tokenizer.channels), tokenizer.frames_per_chunk
    if len(clip) < f:
        return Clip(np.repeat(clip.frames[:1], f, axis=0))
    return clip[len(clip) % f :]
