"""Importing recordings: a folder of video files becomes a dataset, and later grows by what is new.

Files are decoded one after the other into a spool, part by part, so memory does not grow with their
length, and a file that proves damaged in its middle leaves nothing behind. The new dataset is a version
folder beside the old one, which goes once the new one stands; unchanged record files are linked.
"""

from __future__ import annotations

import collections
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data import actions as beside
from worldsim.data.builders import Progress, RecordConfig, Tally, check_out, dataset_name, install
from worldsim.data.decode import Look, Recording, UnusableError, whole_step
from worldsim.data.episode import Episode
from worldsim.data.info import (
    DataInfo,
    FileInfo,
    find_dataset,
    read_folder_info,
    with_statistics,
    write_info,
)
from worldsim.data.recordings import Found, find_recordings, one_kind, split_new
from worldsim.data.source import RecordSource
from worldsim.data.stores import RecordStore
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
class Imported:
    """What an import did.

    Attributes:
      info: of the dataset as it is now.
      new, skipped: of this time's files.
      gone: names of stored recordings that are no longer in the folder.
    """

    info: DataInfo
    new: tuple[FileInfo, ...]
    skipped: tuple[FileInfo, ...]
    gone: tuple[str, ...]


def import_recordings(
    folder: str | Path,
    out: str | Path,
    *,
    config: ImportConfig = ImportConfig(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Import the recordings of a folder that ``out`` does not hold yet.

    Splits go by file. The hash of its content says whether a file is held out; where that would leave
    ``test`` or ``train`` empty although there are two files, the file with the lowest hash is held out,
    or the one with the highest is trained on.

    Args:
      folder: with ``.mp4 .webm .mov .gif`` files, also in folders within it.
      out: folder of the TFDS dataset to make, or of one that was imported before.
      overwrite: forget what is there and import all anew.
      progress: called with ``files``, the files done and those to be done.

    Raises:
      FileNotFoundError: no such folder.
      FileExistsError: ``out`` holds something else than imported recordings.
      ValueError: no recording, none that can be used (all reasons are given), or options other than those
        of the dataset at ``out``.
    """
    root = Path(out).absolute()
    former = None if overwrite else former_info(root, config)
    if former is None:
        check_out(root, overwrite)
    found = find_recordings(Path(folder), actions=config.actions)
    stored = [file for file in former.files if not file.reason] if former else []
    new, kept, skipped = split_new(found, stored)
    kind = (former.action.kind, former.action.size * (former.action.kind != "discrete")) if former else None
    kind, new = one_kind(new, kind)
    skipped += [item for item in new if item.file.reason]
    new = sorted((item for item in new if not item.file.reason), key=lambda item: item.file.hash)
    writer = _Writer(root, config, former)
    try:
        made, failed = writer.write(new, progress)
        bad = sorted((*(item.file for item in skipped), *failed), key=lambda file: file.name)
        if not made and not kept:
            raise ValueError(f"{folder}: no recording could be used.\n" + reasons(bad))
        info = writer.close([*kept, *made, *bad], kind, grown=bool(made))
    finally:
        writer.clean()
    names = {item.file.name for item in found}
    return Imported(info, tuple(made), tuple(bad), tuple(f.name for f in kept if f.name not in names))


def reasons(files: Sequence[FileInfo]) -> str:
    """A line for every file that was skipped, with its reason."""
    return "\n".join(f"  {file.name}: {file.reason}" for file in files)


def former_info(root: Path, config: ImportConfig) -> DataInfo | None:
    """The info of the dataset to be added to, or None where there is none yet.

    Raises:
      FileExistsError: a dataset that was not imported.
      ValueError: it was imported with other options; all that differ are named.
    """
    if root.suffix == ".npz":
        raise ValueError(f"{root}: recordings are imported into a folder; give one without .npz.")
    if not root.is_dir() or not any(root.glob("*/dataset_info.json")):
        return None
    info = read_folder_info(root)
    if info.kind != "video":
        raise FileExistsError(
            f"{root} holds a dataset of kind {info.kind!r}, to which no recordings can be added; choose "
            "another out, or pass overwrite (--overwrite)."
        )
    asked, stored = config.told(), info.source["options"]
    differ = [f"{name}: stored {stored.get(name)}, asked {asked[name]}" for name in asked
              if asked[name] != stored.get(name)]  # fmt: skip
    if differ:
        raise ValueError(
            f"{root} was imported with other options ({'; '.join(differ)}). Give the stored ones, choose "
            "another out, or import all anew with overwrite (--overwrite)."
        )
    return info


class _Spool:
    """One decoded recording on disk, part by part, until it is known to be whole."""

    def __init__(self, folder: Path, found: Found, config: ImportConfig) -> None:
        self.found, self._config = found, config
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._lengths: list[int] = []
        self.actions: Actions | None = None
        self.rate = 0.0

    def fill(self) -> None:
        """Decode the recording.

        Raises:
          UnusableError: damaged, too short, or with another number of actions than frames.
        """
        look, rows = self._config.look, self.found.rows
        recording = Recording(self.found.path, look)
        part: list[np.ndarray] = []
        limit = 16 * self._config.records.size
        step = None if rows is None else 1 if look.fps is None else whole_step(recording.nominal(), look.fps)
        for frame in recording.frames(step=step):
            part.append(frame)
            if len(part) == limit:
                self._save(part)
        self._save(part)
        self.rate = recording.rate
        if rows is not None:
            if len(rows) != recording.count:
                raise UnusableError(f"{len(rows)} rows of actions for {recording.count} frames")
            self.actions = beside.thinned(beside.aligned(rows, follow=self._config.follow), step or 1)
        if len(self) < self._config.records.minimum:
            raise UnusableError(
                f"it is too short: {len(self)} frames, a record has {self._config.records.minimum} or more"
            )

    def __len__(self) -> int:
        return sum(self._lengths)

    def _save(self, part: list[np.ndarray]) -> None:
        if part:
            np.save(self._folder / f"{len(self._lengths)}.npy", np.stack(part))
            self._lengths.append(len(part))
            part.clear()

    def episodes(self) -> Iterator[Episode]:
        """The parts of the one episode that a recording is."""
        start = 0
        for index, length in enumerate(self._lengths):
            frames = np.load(self._folder / f"{index}.npy")
            rows = None if self.actions is None else self.actions[start : start + length]
            more = index + 1 < len(self._lengths)
            yield Episode(frames, rows, policy="recorded", offset=start, more=more)
            start += length

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class _Writer:
    """The next version of a dataset while it is written."""

    def __init__(self, root: Path, config: ImportConfig, former: DataInfo | None) -> None:
        self._root, self._config, self._former = root, config, former
        self._partial = root.with_name(f".{root.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._version = "1.0.0"
        if former is not None:
            major, minor, _ = find_dataset(root).name.split(".")
            self._version = f"{major}.{int(minor) + 1}.0"
        self._name = dataset_name(root.name)
        self._store: RecordStore | None = None
        self._largest = 0
        splits = former.splits if former else {}
        self._tallies = {split: Tally(split, former=info) for split, info in splits.items()}

    def write(self, new: Sequence[Found], progress: Progress | None) -> tuple[list[FileInfo], list[FileInfo]]:
        """Decode and store recordings, given in the order of their hashes; those stored, and those skipped.

        One whole recording is always held back, so that the last of all can still go to either split.
        """
        made: list[FileInfo] = []
        failed: list[FileInfo] = []
        held: _Spool | None = None
        for index, item in enumerate(new):
            if progress is not None:
                progress("files", index, len(new))
            self._open()
            spool = _Spool(self._partial, item, self._config)
            try:
                spool.fill()
            except UnusableError as error:
                failed.append(item.skipped(str(error)).file)
                spool.remove()
                continue
            if held is not None:
                made.append(self._store_one(held, last=False))
            held = spool
        if held is not None:
            made.append(self._store_one(held, last=True))
        if progress is not None and new:
            progress("files", len(new), len(new))
        return made, failed

    def _open(self) -> None:
        if self._store is None:
            self._store = RecordStore(self._partial, self._name, self._version)
            if self._former is not None:
                self._store.adopt(find_dataset(self._root))

    def _split_of(self, spool: _Spool, last: bool) -> str:
        """Held out below the test share, and where it is needed for both splits to have a file."""
        if last and "train" not in self._tallies:
            return "train"
        low = spool.found.place < self._config.test_share
        return "test" if low or "test" not in self._tallies else "train"

    def _store_one(self, spool: _Spool, *, last: bool) -> FileInfo:
        split = self._split_of(spool, last)
        tally = self._tallies.setdefault(split, Tally(split))
        for episode in spool.episodes():
            if self._store is not None:
                tally.add(self._store, episode, self._config.records)
        spool.remove()
        if spool.actions is not None and spool.actions.ndim == 1:
            self._largest = max(self._largest, int(spool.actions.max()))
        return dataclasses.replace(spool.found.file, split=split, frames=len(spool), fps=round(spool.rate, 4))

    def close(self, files: list[FileInfo], kind: tuple[str, int], *, grown: bool) -> DataInfo:
        """Put the finished version in the old one's place; where nothing is new, renew its list of files."""
        files.sort(key=lambda file: (bool(file.reason), file.name))
        former, look = self._former, self._config.look
        if self._store is None or (former is not None and not grown):
            folder = find_dataset(self._root)
            info = dataclasses.replace(read_folder_info(folder), files=tuple(files))
            write_info(folder, info)
            return info
        rates = collections.Counter[float]()
        for file in files:
            rates[file.fps] += file.frames
        action = beside.action_config(kind, self._largest, former.action if former else None)
        info = DataInfo(
            name=self._name, kind="video", height=look.height, width=look.width, channels=3,
            fps=look.fps or max(rates, key=lambda rate: rates[rate]) or 15.0, action=action,
            keys=("frames",) + ("actions",) * (kind[0] != "none"),
            splits={name: self._tallies[name].info() for name in ("train", "test") if name in self._tallies},
            mean=(), std=(), source={"options": self._config.told(), "av": metadata.version("av")},
            files=tuple(files),
        )  # fmt: skip
        made = self._store.close(info)
        source = RecordSource(made, "train", keys=("frames",), cache=0)
        write_info(made, with_statistics(info, (source[i]["frames"] for i in range(len(source)))))
        install(made, self._root, self._version)
        return read_folder_info(self._root)

    def clean(self) -> None:
        """Leave nothing behind that is not finished."""
        shutil.rmtree(self._partial, ignore_errors=True)
