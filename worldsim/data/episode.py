"""One recorded episode, its hash, the pieces it is stored in, and running statistics over many."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float, UInt8

from worldsim.types import Actions, Frames


@dataclasses.dataclass(frozen=True)
class Episode:
    """What a simulator or an importer hands to the dataset builder.

    Attributes:
      frames: uint8 ``[t h w c]``.
      actions: int32 ``[t]`` or float32 ``[t a]``; ``actions[i]`` leads from frame i-1 to frame i, the
        first is null (-1 or NaN). None for video without actions.
      extra: further per-frame arrays, such as ``rewards`` ``[t]``, ``ram`` ``[t 128]`` or ``state``.
      seed: of the policy and the simulator.
      policy: who acted, in words.
      offset: frames of the same episode that came before; a long one may be handed over in parts.
      more: further parts of it follow.
    """

    frames: Frames
    actions: Actions | None
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    seed: int = 0
    policy: str = ""
    offset: int = 0
    more: bool = False

    def __post_init__(self) -> None:
        for name, rows in self.arrays().items():
            if len(rows) != len(self.frames):
                raise ValueError(
                    f"Episode: {name!r} has {len(rows)} rows for {len(self.frames)} frames; give one "
                    "row a frame."
                )

    def __len__(self) -> int:
        return len(self.frames)

    def arrays(self) -> dict[str, np.ndarray]:
        """All per-frame arrays by name."""
        actions = {} if self.actions is None else {"actions": self.actions}
        return {"frames": self.frames, **actions, **self.extra}

    def hash(self) -> str:
        """sha256 over shape and bytes of frames and actions: the identity of held-out data."""
        digest = hashlib.sha256()
        for name in ("frames", "actions"):
            rows = self.arrays().get(name)
            if rows is not None:
                digest.update(f"{name} {rows.dtype.str} {list(rows.shape)}".encode())
                digest.update(np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()


def pieces(length: int, *, size: int, minimum: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the pieces of one episode; a last piece shorter than ``minimum`` is dropped.

    With ``size=4, minimum=2`` and ten frames::

        0 1 2 3 | 4 5 6 7 | 8 9
    """
    for start in range(0, length, size):
        stop = min(start + size, length)
        if stop - start >= minimum:
            yield start, stop


class Statistics:
    """Running mean, deviation and an approximate median frame, in bounded memory.

    The median is taken over frames at an even stride, doubled whenever ``limit`` frames are kept.
    """

    def __init__(self, limit: int = 2048) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._kept: list[np.ndarray] = []
        self._total = np.zeros(3)
        self._square = np.zeros(3)
        self._pixels = 0

    def add(self, frames: Frames) -> None:
        """Count the frames of one episode."""
        first = -self._seen % self._stride
        self._kept.extend(frame.copy() for frame in frames[first :: self._stride])
        self._seen += len(frames)
        while len(self._kept) > self._limit:
            self._kept = self._kept[::2]
            self._stride *= 2
        values = frames.reshape(-1, frames.shape[-1]).astype(np.float64)
        self._total = self._total[: values.shape[1]] + values.sum(0)
        self._square = self._square[: values.shape[1]] + np.square(values).sum(0)
        self._pixels += len(values)

    def median(self) -> UInt8[np.ndarray, "h w c"]:
        """Per-pixel median of the kept frames."""
        return np.median(np.stack(self._kept), axis=0).astype(np.uint8)

    def mean_std(self) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
        """Per-channel mean and standard deviation in [0, 255]."""
        mean = self._total / self._pixels
        return mean, np.sqrt(np.maximum(self._square / self._pixels - mean**2, 0))
