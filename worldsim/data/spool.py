"""A decoded recording on disk, part by part, until it is known to be whole; and how one is decoded."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data import actions as beside
from worldsim.data.builders import RecordConfig
from worldsim.data.decode import Look, Recording, UnusableError, whole_step
from worldsim.data.episode import Episode
from worldsim.data.recordings import Found
from worldsim.types import Actions


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """How recordings are imported; a dataset grows under one such config only.

    Attributes:
      look: size and rate of the frames.
      actions: whether to take the actions beside recordings.
      follow: they are stored with the frame that they follow, see :mod:`worldsim.data.actions`.
      test_share: of the files that are held out.
      records: how recordings are cut into records; one shorter than a record's minimum is skipped.
    """

    look: Look = dataclasses.field(default_factory=Look)
    actions: bool = True
    follow: bool = False
    test_share: float = 0.1
    records: RecordConfig = dataclasses.field(default_factory=RecordConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.test_share < 1:
            raise ValueError(f"ImportConfig: test_share {self.test_share} must lie in [0, 1).")

    def told(self) -> dict[str, Any]:
        """The options as plain values, by the names that the command line has for them."""
        values = dataclasses.asdict(self)
        records = {f"record_{name}": value for name, value in values.pop("records").items()}
        return values.pop("look") | values | records


@dataclasses.dataclass(frozen=True)
class Spool:
    """A recording that was decoded as a whole. What it holds lies on disk; any process can read it.

    Attributes:
      folder: with a file of frames for each part, and one of the actions where there are any.
      lengths: frames of each part.
      rate: frames per second of the recording, by its timestamps.
      missing: frames that its container counts and that are not there.
    """

    folder: Path
    lengths: tuple[int, ...]
    rate: float
    missing: int = 0

    def __len__(self) -> int:
        return sum(self.lengths)

    def actions(self) -> Actions | None:
        """One row a frame, or None."""
        file = self.folder / "actions.npy"
        return np.load(file) if file.exists() else None

    def episodes(self) -> Iterator[Episode]:
        """The parts of the one episode that a recording is."""
        start, rows = 0, self.actions()
        for index, length in enumerate(self.lengths):
            frames = np.load(self.folder / f"{index}.npy")
            part = None if rows is None else rows[start : start + length]
            yield Episode(frames, part, policy="recorded", offset=start, more=index + 1 < len(self.lengths))
            start += length

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def decode(found: Found, config: ImportConfig, home: Path) -> Spool:
    """Decode a recording into a new folder in ``home``; nothing of it is left where that fails.

    Raises:
      UnusableError: damaged, too short, or with another number of actions than frames.
    """
    folder = Path(tempfile.mkdtemp(dir=home))
    try:
        return _fill(folder, found, config)
    except UnusableError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fill(folder: Path, found: Found, config: ImportConfig) -> Spool:
    look, rows = config.look, found.rows
    recording = Recording(found.path, look)
    part: list[np.ndarray] = []
    lengths: list[int] = []

    def save() -> None:
        if part:
            np.save(folder / f"{len(lengths)}.npy", np.stack(part))
            lengths.append(len(part))
            part.clear()

    step = None if rows is None else 1 if look.fps is None else whole_step(recording.nominal(), look.fps)
    for frame in recording.frames(step=step):
        part.append(frame)
        if len(part) == 16 * config.records.size:
            save()
    save()
    if rows is not None:
        if len(rows) != recording.count:
            raise UnusableError(f"{len(rows)} rows of actions for {recording.count} frames")
        aligned = beside.aligned(rows, follow=config.follow)
        np.save(folder / "actions.npy", beside.thinned(aligned, step or 1))
    spool = Spool(folder, tuple(lengths), recording.rate, recording.missing)
    if len(spool) < config.records.minimum:
        raise UnusableError(
            f"it is too short: {len(spool)} frames, a record has {config.records.minimum} or more"
        )
    return spool
