"""Where records go while a dataset is written: ArrayRecord files that TFDS reads, or one ``.npz``."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.arrays import save_arrays
from worldsim.data.episode import Episode
from worldsim.data.info import DataInfo, write_info

VERSION = "1.0.0"


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


class ArrayStore:
    """Records kept in memory and written as one ``.npz``."""

    def __init__(self, partial: Path) -> None:
        self._path = partial
        self._records: dict[str, list[dict[str, np.ndarray]]] = {}

    def write(self, split: str, episode: Episode, index: int, start: int, stop: int) -> None:
        del index
        rows = {name: array[start:stop] for name, array in episode.arrays().items()}
        self._records.setdefault(split, []).append(rows)

    def close(self, info: DataInfo) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("wb") as file:
            save_arrays(file, self._records, info)
        return self._path


class RecordStore:
    """Records written to a TFDS folder as they come."""

    def __init__(self, partial: Path, name: str, version: str = VERSION) -> None:
        self._tfds, self._folder, self._name, self._version = load_tfds(), partial, name, version
        self._features: Any = None
        self._shards: dict[str, _Shards] = {}
        partial.mkdir(parents=True)

    def write(self, split: str, episode: Episode, index: int, start: int, stop: int) -> None:
        if self._features is None:
            self._features = features_of(self._tfds, episode)
        if split not in self._shards:
            self._shards[split] = _Shards(self._folder, self._name, split)
        record = record_of(episode, index, start, stop)
        self._shards[split].write(self._features.serialize_example(record))

    def adopt(self, folder: Path) -> None:
        """Take all records of another dataset of the same features, without copying where possible.

        Its files stay as they are; the new folder holds further links to them.
        """
        builder = self._tfds.builder_from_directory(str(folder))
        self._features = builder.info.features
        for split, held in builder.info.splits.items():
            if split not in self._shards:
                self._shards[split] = _Shards(self._folder, self._name, split)
            for path, count in zip(held.filepaths, held.shard_lengths, strict=True):
                self._shards[split].adopt(Path(path), count)
            self._shards[split].size += held.num_bytes

    def close(self, info: DataInfo) -> Path:
        self._tfds.folder_dataset.write_metadata(
            data_dir=str(self._folder),
            features=self._features,
            split_infos=[shards.close(self._tfds) for shards in self._shards.values()],
            version=self._version,
            check_data=False,  # The check reads through TensorFlow.
            disable_shuffling=True,
            description=f"worldsim {info.kind} episodes: {info.name}.",
        )
        write_info(self._folder, info)
        return self._folder


class _Shards:
    """One split's ArrayRecord files, named as TFDS names them; a new one is begun every ``limit`` bytes.

    ``size`` is that of all records, in bytes before they are compressed.

    Records are written as they come. TFDS's own writer keeps a split in memory to sort it and needs
    TensorFlow as soon as it holds more than a gigabyte.
    """

    def __init__(self, folder: Path, name: str, split: str, limit: int = 1 << 30) -> None:
        self._folder, self._name, self._split, self._limit = folder, name, split, limit
        self._counts: list[int] = []
        self.size, self._room = 0, 0
        self._writer: Any = None

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._split}.{index}.unfinished"

    def write(self, record: bytes) -> None:
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        if self._room <= 0:
            self._finish()
            path = str(self._path(len(self._counts)))
            self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
            self._counts.append(0)
            self._room = self._limit
        self._writer.write(record)
        self._counts[-1] += 1
        self.size += len(record)
        self._room -= len(record)

    def adopt(self, path: Path, count: int) -> None:
        """Take a whole file of ``count`` records as it is."""
        link = self._path(len(self._counts))
        try:
            link.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, link)
        self._counts.append(count)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def close(self, tfds: Any) -> Any:
        """Give the files their final names and return TFDS's account of the split."""
        self._finish()
        total = len(self._counts)
        for index in range(total):
            final = f"{self._name}-{self._split}.array_record-{index:05d}-of-{total:05d}"
            self._path(index).rename(self._folder / final)
        template = tfds.core.ShardedFileTemplate(
            dataset_name=self._name, data_dir=self._folder, split=self._split, filetype_suffix="array_record"
        )
        return tfds.core.SplitInfo(
            name=self._split, shard_lengths=self._counts, num_bytes=self.size, filename_template=template
        )


def record_of(episode: Episode, index: int, start: int, stop: int) -> dict[str, Any]:
    """One record: frames ``start`` to ``stop`` of an episode, or of a part of it; ``index`` is its number."""
    rows = {name: array[start:stop] for name, array in episode.arrays().items()}
    last = stop == len(episode) and not episode.more
    return {**rows, "episode": index, "start": episode.offset + start, "last": last}


def features_of(tfds: Any, episode: Episode) -> Any:
    """Per-frame arrays as raw bytes where TFDS can (a plain uint8 tensor is stored as int64 lists)."""
    features = {
        name: tfds.features.Tensor(shape=(None, *rows.shape[1:]), dtype=rows.dtype.type, encoding="bytes")
        for name, rows in episode.arrays().items()
    }
    scalars = {"episode": np.int64, "start": np.int64, "last": np.bool_}
    return tfds.features.FeaturesDict({**features, **scalars})
