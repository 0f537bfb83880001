"""Opening a dataset: a prepared TFDS folder or an ``.npz`` becomes an indexable source of records.

``len(source)`` records, ``source.lengths`` their frames, and
``source[i] -> {"frames": [t h w c], "actions": [t], ...}`` with arrays of equal length t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from worldsim.data.arrays import KEYS, ArraySource, read_array_info, read_arrays, save_arrays
from worldsim.data.info import INFO_FILE, DataInfo, find_dataset, read_folder_info
from worldsim.data.registered import RegisteredSource, is_registered, read_registered
from worldsim.data.stores import load_tfds

CACHE = 2 << 30
"""Bytes of decoded records that a source keeps, so that small sets are decoded once, not once a clip."""

PLACE = ("episode", "start", "last")
"""Scalars of a record that say where it lies in its episode."""


@runtime_checkable
class Source(Protocol):
    """What the loader reads from."""

    lengths: Int[np.ndarray, "n"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class RecordSource:
    """Records of a prepared TFDS folder, read from ArrayRecord without TensorFlow.

    Attributes:
      lengths: frames of each record.
      placed: whether records say where in their episode they lie; where others wrote them, they are episodes.
    """

    lengths: Int[np.ndarray, "n"]

    def __init__(
        self, folder: Path, split: str, *, keys: Sequence[str] | None = KEYS, cache: int = CACHE
    ) -> None:
        tfds = load_tfds()
        builder = tfds.builder_from_directory(str(folder))
        if split not in builder.info.splits:
            raise ValueError(
                f"{folder} has no split {split!r}; it has {', '.join(sorted(builder.info.splits))}."
            )
        held = [name for name in builder.info.features if name not in PLACE]
        missing = sorted(set(keys or ()) - set(held))
        if missing:
            raise ValueError(f"{folder} has no {', '.join(missing)}; its records hold {', '.join(held)}.")
        self._keys = tuple(held if keys is None else keys)
        self.placed = set(PLACE) <= set(builder.info.features)
        self._records = builder.as_data_source(split)
        self.lengths = self._stored_lengths(folder, split)
        self._room = cache
        self._cache: dict[int, dict[str, np.ndarray]] = {}

    def _stored_lengths(self, folder: Path, split: str) -> Int[np.ndarray, "n"]:
        """From the info where worldsim wrote the set, else by reading every record once."""
        info = read_folder_info(folder) if (folder / INFO_FILE).exists() else None
        stored = info.splits[split].lengths if info is not None and split in info.splits else ()
        if len(stored) != len(self._records):
            stored = [len(record["frames"]) for record in self._records]
        return np.array(stored, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        kept = self._cache.get(int(index))
        if kept is not None:
            return dict(kept)
        record = self._records[int(index)]
        rows = {name: record[name] for name in self._keys}
        size = sum(array.nbytes for array in rows.values())
        if size <= self._room:
            self._room -= size
            self._cache[int(index)] = rows
        return dict(rows)

    def place(self, index: int) -> tuple[int, int, bool]:
        """Episode, first frame within it, and whether the record ends it."""
        record = self._records[int(index)]
        return int(record["episode"]), int(record["start"]), bool(record["last"])


def open_source(
    path: str | Path, split: str, *, keys: Sequence[str] | None = KEYS, cache: int = CACHE
) -> Source:
    """Open one split of a dataset.

    Args:
      path: a prepared TFDS folder (with or without its version folder), an ``.npz`` file, or
        ``tfds:NAME`` for a registered set (see :mod:`worldsim.data.registered`).
      keys: per-frame arrays that records hold, such as ``("frames", "actions", "ram")``; None for all.
      cache: bytes of decoded records to keep in memory; the rest are decoded whenever they are read.

    Raises:
      FileNotFoundError: there is no dataset at ``path``.
      ValueError: it has no such split or key; those that exist are listed.
      ModuleNotFoundError: a TFDS folder, and tensorflow-datasets is missing.
    """
    if is_registered(path):
        return RegisteredSource(path, split, keys=keys, cache=cache)
    if Path(path).suffix == ".npz":
        splits = read_arrays(Path(path))
        if split not in splits:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(sorted(splits))}.")
        return ArraySource(splits[split], keys=keys)
    return RecordSource(find_dataset(path), split, keys=keys, cache=cache)


def read_info(path: str | Path) -> DataInfo:
    """The info of a dataset: a folder made by worldsim, an ``.npz``, or a registered set (``tfds:NAME``).

    Raises:
      FileNotFoundError: no dataset, or a TFDS folder that worldsim did not write.
    """
    if is_registered(path):
        return read_registered(path)
    return read_array_info(Path(path)) if Path(path).suffix == ".npz" else read_folder_info(path)


def read_episodes(
    path: str | Path, split: str, *, keys: Sequence[str] | None = KEYS
) -> Iterator[dict[str, np.ndarray]]:
    """Whole episodes (less dropped remainders), pieces joined again; for horizons beyond one record."""
    source = open_source(path, split, keys=keys, cache=0)
    if not isinstance(source, RecordSource) or not source.placed:
        yield from (source[index] for index in range(len(source)))
        return
    parts: list[dict[str, np.ndarray]] = []
    for index in range(len(source)):
        if parts and source.place(index)[1] == 0:
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            parts = []
        parts.append(source[index])
    if parts:
        yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def export_arrays(path: str | Path, out: str | Path, *, keys: Sequence[str] | None = None) -> Path:
    """Copy a prepared dataset into one ``.npz`` that machines without TFDS can train from.

    Args:
      path: as in :func:`open_source`.
      out: the file to write.
      keys: per-frame arrays to copy, ``frames`` among them; None for all.

    Raises:
      ValueError: ``out`` does not end in ``.npz``.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"export_arrays writes one .npz file; got out={out}. Give a name that ends in .npz.")
    info = read_info(path)
    records = {}
    for split in info.splits:
        source = open_source(path, split, keys=keys, cache=0)
        records[split] = [source[index] for index in range(len(source))]
    out.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(out, records, info if keys is None else dataclasses.replace(info, keys=tuple(keys)))
    return out
