"""Importing recordings: a folder of video files becomes a dataset, and later grows by what is new.

Files are decoded one after the other into a spool, part by part, so memory does not grow with their
length, and a file that proves damaged in its middle leaves nothing behind; or many at a time, by Beam's
workers. The new dataset is a version folder beside the old one, which goes once the new one stands;
unchanged record files are linked.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from worldsim.data import actions as beside
from worldsim.data.beam import BeamConfig, Placed, Workers
from worldsim.data.builders import Part, Progress, Tally, check_out, dataset_name, install
from worldsim.data.decode import UnusableError
from worldsim.data.info import (
    DataInfo,
    FileInfo,
    find_dataset,
    read_folder_info,
    with_statistics,
    write_info,
)
from worldsim.data.recordings import Found, find_recordings, one_kind, split_new, with_rows
from worldsim.data.source import RecordSource
from worldsim.data.spool import ImportConfig, Spool, decode
from worldsim.data.stores import RecordStore


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
    beam: BeamConfig | None = None,
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
      beam: has Beam's workers read, decode and encode the files; the dataset is the same. ``folder`` and
        ``out`` have to be on a file system that every worker has under the same path.

    Raises:
      FileNotFoundError: no such folder.
      FileExistsError: ``out`` holds something else than imported recordings.
      ValueError: an ``.npz`` as ``out``, no recording, none that can be used (all reasons are given),
        options other than those of the dataset at ``out``, or a runner or options that Beam does not take.
      ModuleNotFoundError: tensorflow-datasets is missing, or with ``beam`` apache-beam.
      RuntimeError: Beam failed; what is at ``out`` stays as it was.
    """
    root = Path(out).absolute()
    if root.suffix == ".npz":
        raise ValueError(f"{root}: recordings are imported into a folder; give one without .npz.")
    former = None if overwrite else former_info(root, config)
    if former is None:
        check_out(root, overwrite)
    folder = Path(folder) if beam is None else Path(folder).absolute()
    workers = None if beam is None else Workers(beam, root.with_name(f".{root.name}.beam"), folder)
    writer = _Writer(root, config, former, workers)
    try:
        each = map if workers is None else workers.map
        found = find_recordings(folder, actions=config.actions, each=each)
        stored = [file for file in former.files if not file.reason] if former else []
        new, kept, skipped = split_new(found, stored)
        kind, new = one_kind(new, None if former is None else _stored_kind(former))
        skipped += [item for item in new if item.file.reason]
        new = sorted((item for item in new if not item.file.reason), key=lambda item: item.file.hash)
        made, failed = writer.write(new, progress)
        bad = sorted((*(item.file for item in skipped), *failed), key=lambda file: file.name)
        if not made and not kept:
            raise ValueError(f"{folder}: no recording could be used.\n" + reasons(bad))
        info = writer.close([*kept, *made, *bad], kind, grown=bool(made))
    finally:
        writer.clean()
    names = {item.file.name for item in found}
    return Imported(info, tuple(made), tuple(bad), tuple(f.name for f in kept if f.name not in names))


def _stored_kind(info: DataInfo) -> tuple[str, int]:
    return info.action.kind, info.action.size * (info.action.kind != "discrete")


def reasons(files: Sequence[FileInfo]) -> str:
    """A line for every file that was skipped, with its reason."""
    return "\n".join(f"  {file.name}: {file.reason}" for file in files)


def former_info(root: Path, config: ImportConfig) -> DataInfo | None:
    """The info of the dataset to be added to, or None where there is none yet.

    Raises:
      FileExistsError: a dataset that was not imported.
      ValueError: it was imported with other options; all that differ are named.
    """
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


_Taken = tuple[Spool, tuple[Part, ...]]
"""A decoded recording and, where a worker decoded it, how it is cut into records."""


def take_one(found: Found, *, config: ImportConfig, home: Path) -> _Taken | str:
    """In a worker: decode a recording, given without its actions, or tell why it can't be taken."""
    try:
        found = with_rows(found)
        spool = decode(found, config, home)
    except UnusableError as error:
        return str(error)
    return spool, tuple(Part.of(episode, config.records) for episode in spool.episodes())


class _Writer:
    """The next version of a dataset while it is written."""

    def __init__(
        self, root: Path, config: ImportConfig, former: DataInfo | None, workers: Workers | None
    ) -> None:
        self._root, self._config, self._former, self._workers = root, config, former, workers
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
        self._placed: dict[str, list[Placed]] = {}  # what is left to Beam's workers to write

    def write(self, new: Sequence[Found], progress: Progress | None) -> tuple[list[FileInfo], list[FileInfo]]:
        """Decode and store recordings, given in the order of their hashes; those stored, and those skipped.

        One whole recording is always held back, so that the last of all can still go to either split.
        """
        made: list[FileInfo] = []
        failed: list[FileInfo] = []
        held: tuple[Found, _Taken] | None = None
        for item, taken in self._decoded(new, progress):
            if isinstance(taken, str):
                failed.append(item.skipped(taken).file)
                continue
            if held is not None:
                made.append(self._store_one(*held, last=False))
            held = item, taken
        if held is not None:
            made.append(self._store_one(*held, last=True))
        if self._store is not None and self._workers is not None and self._placed:
            self._store.adopt(self._workers.write(self._name, self._placed))
        if progress is not None and new:
            progress("files", len(new), len(new))
        return made, failed

    def _decoded(
        self, new: Sequence[Found], progress: Progress | None
    ) -> Iterator[tuple[Found, _Taken | str]]:
        """What was decoded of each recording, or why it can't be taken; in their order."""
        if self._workers is not None and new:
            self._open()
            if progress is not None:
                progress("files", 0, len(new))
            take = functools.partial(take_one, config=self._config, home=self._workers.home())
            plain = [dataclasses.replace(item, rows=None) for item in new]
            yield from zip(new, self._workers.map(take, plain), strict=True)
            return
        for index, item in enumerate(new):
            if progress is not None:
                progress("files", index, len(new))
            self._open()
            try:
                yield item, (decode(item, self._config, self._partial), ())
            except UnusableError as error:
                yield item, str(error)

    def _open(self) -> None:
        if self._store is None:
            self._store = RecordStore(self._partial, self._name, self._version)
            if self._former is not None:
                self._store.adopt(find_dataset(self._root))

    def _split_of(self, item: Found, last: bool) -> str:
        """Held out below the test share, and where it is needed for both splits to have a file."""
        if last and "train" not in self._tallies:
            return "train"
        low = item.place < self._config.test_share
        return "test" if low or "test" not in self._tallies else "train"

    def _store_one(self, item: Found, taken: _Taken, *, last: bool) -> FileInfo:
        spool, parts = taken
        split = self._split_of(item, last)
        tally = self._tallies.setdefault(split, Tally(split))
        rows = spool.actions()
        if rows is not None and rows.ndim == 1:
            self._largest = max(self._largest, int(rows.max()))
        if self._workers is None:
            for episode in spool.episodes():
                if self._store is not None:
                    tally.add(self._store, episode, self._config.records)
            spool.remove()
        else:
            former = self._former.splits if self._former else {}
            before = former[split].records if split in former else 0
            placed = Placed(spool, tally.episodes, tally.records - before, parts)
            self._placed.setdefault(split, []).append(placed)
            for part in parts:
                tally.count(part)
        told = {"frames": len(spool), "fps": round(spool.rate, 4), "missing": spool.missing}
        return dataclasses.replace(item.file, split=split, **told)

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
        if self._workers is not None:
            self._workers.clean()
