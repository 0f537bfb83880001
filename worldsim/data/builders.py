"""Writing a TFDS dataset: episodes become ArrayRecord files, without TensorFlow.

A record is one piece of an episode: its per-frame arrays, and ``episode`` (number in the split),
``start`` (first frame within the episode) and ``last`` (the piece ends the episode). Pieces follow
one another without overlap and never cross an episode's end.
"""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.episode import Episode, Statistics, pieces
from worldsim.data.info import DataInfo, SplitInfo, write_info

VERSION = "1.0.0"

Progress = Callable[[str, int, int], None]
"""Called with the split, the frames written and the frames expected."""


def load_tfds() -> Any:
    """The ``tensorflow_datasets`` module.

    Raises:
      ModuleNotFoundError: it is not installed; the remedy is named.
    """
    try:
        importlib.import_module("importlib_resources")  # TFDS 4.9.10 needs it without declaring it.
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"This needs tensorflow-datasets ({error}); install it with: pip install tensorflow-datasets "
            "importlib_resources array_record. On a machine without it, train from an .npz made by "
            "worldsim.data.export_arrays elsewhere."
        ) from error


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """How episodes are cut into records.

    Attributes:
      size: most frames of a record; longer ones cost more to read per clip, shorter ones hold fewer
        clip starts.
      minimum: fewest frames; shorter remainders at an episode's end are dropped (and counted).
    """

    size: int = 64
    minimum: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.size:
            raise ValueError(
                f"RecordConfig: minimum {self.minimum}, size {self.size}; the minimum goes from 1 to the size."
            )


def write_dataset(
    out: str | Path,
    splits: Mapping[str, Iterable[Episode]],
    info: DataInfo,
    *,
    records: RecordConfig = RecordConfig(),
    expected: Mapping[str, int] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DataInfo:
    """Write episodes as a TFDS dataset at ``out/1.0.0`` and return its completed info.

    Counts, hashes, statistics and ``keys`` of ``info`` are filled in here; the mean, deviation and
    median are those of the first split. Nothing appears at ``out`` before all is written.

    Args:
      out: folder to make; its last part names the dataset in TFDS.
      splits: episodes per split; read once, one after the other.
      expected: frames per split, for ``progress`` only.
      overwrite: replace a dataset that is there.

    Raises:
      FileExistsError: ``out`` holds something and ``overwrite`` is False, or it is no dataset.
      ValueError: a split has no episode, or none long enough for a record.
    """
    tfds = load_tfds()
    root = Path(out).absolute()
    refuse_overwrite(root, overwrite)
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    statistics = Statistics()
    tallies: dict[str, _Tally] = {}
    written, features, keys = [], None, ()
    try:
        for split, episodes in splits.items():
            tallies[split] = tally = _Tally(split, (expected or {}).get(split, 0), progress)
            shards = _Shards(tfds, partial, dataset_name(root.name), split)
            for index, episode in enumerate(episodes):
                if features is None:
                    features, keys = _features(tfds, episode), tuple(episode.arrays())
                if len(tallies) == 1:
                    statistics.add(episode.frames)
                for record in _records(episode, index, records, tally):
                    shards.write(features.serialize_example(record))
            written.append(shards.close())
        tfds.folder_dataset.write_metadata(
            data_dir=str(partial),
            features=features,
            split_infos=written,
            version=VERSION,
            check_data=False,  # The check reads through TensorFlow.
            disable_shuffling=True,
            description=f"worldsim {info.kind} episodes: {info.name}.",
        )
        mean, std = statistics.mean_std()
        full = dataclasses.replace(
            info,
            keys=keys,
            splits={split: tally.info() for split, tally in tallies.items()},
            mean=tuple(mean.round(4).tolist()),
            std=tuple(std.round(4).tolist()),
            median=statistics.median(),
        )
        write_info(partial, full)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        partial.rename(root / VERSION)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return full


class _Shards:
    """One split's ArrayRecord files, named as TFDS names them; a new one is begun every ``limit`` bytes.

    Records are written as they come. TFDS's own writer keeps a split in memory to sort it and needs
    TensorFlow as soon as it holds more than a gigabyte.
    """

    def __init__(self, tfds: Any, folder: Path, name: str, split: str, limit: int = 1 << 30) -> None:
        self._tfds, self._folder, self._name, self._split, self._limit = tfds, folder, name, split, limit
        self._counts: list[int] = []
        self._bytes, self._room, self._writer = 0, 0, None

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._split}.{index}.unfinished"

    def write(self, record: bytes) -> None:
        from array_record.python import array_record_module

        if self._room <= 0:
            self._finish()
            path = str(self._path(len(self._counts)))
            self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
            self._counts.append(0)
            self._room = self._limit
        self._writer.write(record)
        self._counts[-1] += 1
        self._bytes += len(record)
        self._room -= len(record)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def close(self) -> Any:
        """Give the files their final names and return TFDS's account of the split."""
        self._finish()
        if not self._counts:
            raise ValueError(
                f"Split {self._split!r} got no record: no episode, or none as long as RecordConfig.minimum. "
                "Ask for more frames or lower the minimum."
            )
        total = len(self._counts)
        for index in range(total):
            final = f"{self._name}-{self._split}.array_record-{index:05d}-of-{total:05d}"
            self._path(index).rename(self._folder / final)
        template = self._tfds.core.ShardedFileTemplate(
            dataset_name=self._name, data_dir=self._folder, split=self._split, filetype_suffix="array_record"
        )
        return self._tfds.core.SplitInfo(
            name=self._split, shard_lengths=self._counts, num_bytes=self._bytes, filename_template=template
        )


def refuse_overwrite(root: Path, overwrite: bool) -> None:
    """Stop before existing data is lost; a folder with other things in it is never replaced.

    Raises:
      FileExistsError: with the remedy.
    """
    if not root.exists() or not any(root.iterdir()):
        return
    if not any(root.glob("*/dataset_info.json")):
        raise FileExistsError(f"{root} exists and holds no dataset; choose an empty or new folder for out.")
    if not overwrite:
        raise FileExistsError(f"{root} already holds a dataset; pass overwrite (--overwrite) or another out.")


def dataset_name(text: str) -> str:
    """A name that TFDS accepts: lower case letters, digits and underscores, a letter first."""
    name = "".join(char if char.isalnum() else "_" for char in text.lower()).strip("_")
    return name if name[:1].isalpha() else f"data_{name}".rstrip("_")


class _Tally:
    """Counts of one split while it is written."""

    def __init__(self, split: str, expected: int, progress: Progress | None) -> None:
        self._split, self._expected, self._progress = split, expected, progress
        self._counts = {"episodes": 0, "frames": 0, "records": 0, "dropped": 0}
        self._hashes: list[str] = []
        self._seeds: list[int] = []
        self._lengths: list[int] = []
        self._policies: dict[str, int] = {}

    def episode(self, episode: Episode, spans: list[tuple[int, int]]) -> None:
        kept = sum(stop - start for start, stop in spans)
        for key, count in {
            "episodes": 1, "frames": kept, "records": len(spans), "dropped": len(episode) - kept
        }.items():  # fmt: skip
            self._counts[key] += count
        self._hashes.append(episode.hash())
        self._seeds.append(episode.seed)
        self._lengths.extend(stop - start for start, stop in spans)
        self._policies[episode.policy] = self._policies.get(episode.policy, 0) + kept
        if self._progress is not None:
            done = self._counts["frames"] + self._counts["dropped"]
            self._progress(self._split, done, max(self._expected, done))

    def info(self) -> SplitInfo:
        return SplitInfo(
            **self._counts, hashes=tuple(self._hashes), policies=self._policies, seeds=tuple(self._seeds),
            lengths=tuple(self._lengths),
        )  # fmt: skip


def _records(episode: Episode, index: int, config: RecordConfig, tally: _Tally) -> Iterator[dict[str, Any]]:
    spans = list(pieces(len(episode), size=config.size, minimum=config.minimum))
    for start, stop in spans:
        rows = {name: array[start:stop] for name, array in episode.arrays().items()}
        yield {**rows, "episode": index, "start": start, "last": stop == len(episode)}
    tally.episode(episode, spans)


def _features(tfds: Any, episode: Episode) -> Any:
    """Per-frame arrays as raw bytes where TFDS can (a plain uint8 tensor is stored as int64 lists)."""
    features = {
        name: tfds.features.Tensor(shape=(None, *rows.shape[1:]), dtype=rows.dtype.type, encoding="bytes")
        for name, rows in episode.arrays().items()
    }
    scalars = {"episode": np.int64, "start": np.int64, "last": np.bool_}
    return tfds.features.FeaturesDict({**features, **scalars})
