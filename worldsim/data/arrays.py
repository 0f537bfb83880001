"""Plain arrays as a dataset: episodes in memory or in one ``.npz``, for machines without TFDS.

An ``.npz`` holds ``frames`` uint8 ``[episodes t h w c]``, ``actions`` ``[episodes t ...]`` and, where
episodes differ in length, ``lengths`` ``[episodes]``. Further splits have their name before a slash
(``test/frames``); keys without a slash are the split ``train``. :func:`export_arrays` writes a
prepared dataset in this form, its info included.
"""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int

from worldsim.config import ActionConfig
from worldsim.data.episode import Statistics
from worldsim.data.info import DataInfo, SplitInfo, info_from_json, info_to_json

KEYS = ("frames", "actions")
INFO_KEY, MEDIAN_KEY = "worldsim", "median"

UNREADABLE = (
    OSError, ValueError, EOFError, SyntaxError, MemoryError, RuntimeError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises of files that are no ``.npy`` or ``.npz``, or damaged ones."""


class ArraySource:
    """Records in memory; needs only numpy.

    Attributes:
      lengths: frames of each record.
    """

    lengths: Int[np.ndarray, "n"]

    def __init__(self, arrays: Mapping[str, np.ndarray], *, keys: Sequence[str] | None = KEYS) -> None:
        """Take ``frames`` uint8 ``[episodes t h w c]``, others ``[episodes t ...]``, perhaps ``lengths``.

        Args:
          keys: arrays that records hold; None for all.

        Raises:
          ValueError: missing keys, wrong dtype or shapes, all at once.
        """
        data = {name: np.asarray(rows) for name, rows in arrays.items() if name != "lengths"}
        wanted = list(data) if keys is None else list(keys)
        problems = [f"no {name!r} (there are {sorted(data)})" for name in wanted if name not in data]
        frames = data.get("frames")
        if frames is not None and (frames.ndim != 5 or frames.dtype != np.uint8):
            problems.append(
                f"frames are {frames.dtype} {list(frames.shape)}, not uint8 [episodes, t, h, w, c]"
            )
        elif frames is not None and frames.shape[-1] not in (1, 3):
            problems.append(f"frames have {frames.shape[-1]} channels, not 1 (grey) or 3 (RGB)")
        leads = {name: list(rows.shape[:2]) for name, rows in data.items()}
        if len({tuple(lead) for lead in leads.values()}) > 1:
            problems.append(f"leading shapes [episodes, t] differ: {leads}")
        if problems or not data:
            raise ValueError(
                "Arrays can't be used as a source: " + "; ".join(problems or ["there are none"]) + "."
            )
        count, longest = next(iter(leads.values()))
        lengths = np.asarray(arrays.get("lengths", np.full(count, longest)))
        if lengths.shape != (count,) or np.any((lengths < 1) | (lengths > longest)):
            raise ValueError(
                f"Arrays can't be used as a source: lengths {lengths.tolist()[:8]}...; give {count} numbers "
                f"from 1 to {longest}, one per episode."
            )
        self.lengths = lengths.astype(np.int64)
        self._data = {name: data[name] for name in wanted}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: rows[index, : self.lengths[index]] for name, rows in self._data.items()}


def open_arrays(path: Path) -> np.lib.npyio.NpzFile:
    """The arrays of an ``.npz`` by name, each read when it is asked for.

    Raises:
      UNREADABLE: it is none; a single array as of an ``.npy`` is a ValueError.
    """
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array, as an .npy holds; save it with np.savez")
    return file


def read_arrays(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each split of an ``.npz``.

    Raises:
      FileNotFoundError, ValueError: no such file, or none that holds arrays.
    """
    if not path.exists():
        raise FileNotFoundError(f"No file {path}; give an .npz with uint8 'frames' [episodes, t, h, w, c].")
    splits: dict[str, dict[str, np.ndarray]] = {}
    try:
        with open_arrays(path) as file:
            for name in file.files:
                if name not in (INFO_KEY, MEDIAN_KEY):
                    split, _, key = name.rpartition("/")
                    splits.setdefault(split or "train", {})[key] = file[name]
    except UNREADABLE as error:
        raise ValueError(f"{path} can't be read as an .npz of plain arrays: {error}.") from error
    if not splits:
        raise ValueError(f"{path} holds no arrays; it must hold uint8 'frames' [episodes, t, h, w, c].")
    return splits


def is_dataset(path: Path) -> bool:
    """Whether an ``.npz`` was written by :func:`save_arrays` with an info."""
    try:
        with open_arrays(path) as file:
            return INFO_KEY in file.files
    except UNREADABLE:
        return False


def read_array_info(path: Path) -> DataInfo:
    """The info stored in an ``.npz`` by :func:`export_arrays`, else one worked out from its arrays.

    Raises:
      FileNotFoundError, ValueError: as :func:`read_arrays`; or its arrays can't be used.
    """
    if path.exists() and is_dataset(path):
        try:
            with open_arrays(path) as file:
                median = file[MEDIAN_KEY] if MEDIAN_KEY in file.files else None
                return info_from_json(json.loads(str(file[INFO_KEY])), median)
        except UNREADABLE as error:
            raise ValueError(f"{path}: its info can't be read: {error}") from error
    return describe_arrays(path.stem, read_arrays(path))


def describe_arrays(
    name: str, splits: Mapping[str, Mapping[str, np.ndarray]], *, fps: float = 15.0
) -> DataInfo:
    """The info of plain arrays: whole-number actions are discrete, the largest seen is the last.

    Raises:
      ValueError: frames or actions of another dtype or shape.
    """
    statistics = Statistics()
    counts = {}
    for split, arrays in splits.items():
        source = ArraySource(arrays, keys=("frames",))
        if split == next(iter(splits)):
            for index in range(len(source)):
                statistics.add(source[index]["frames"])
        total = int(source.lengths.sum())
        lengths = tuple(source.lengths.tolist())
        counts[split] = SplitInfo(episodes=len(source), frames=total, records=len(source), lengths=lengths)
    first = next(iter(splits.values()))
    height, width, channels = first["frames"].shape[2:]
    mean, std = statistics.mean_std()
    return DataInfo(
        name=name, kind="arrays", height=height, width=width, channels=channels, fps=fps,
        action=_action(name, splits), keys=tuple(key for key in first if key != "lengths"), splits=counts,
        mean=tuple(mean.tolist()), std=tuple(std.tolist()), median=statistics.median(),
    )  # fmt: skip


def _action(name: str, splits: Mapping[str, Mapping[str, np.ndarray]]) -> ActionConfig:
    """Integers ``[episodes t]`` are discrete, floats ``[episodes t a]`` continuous; nothing else is taken."""
    actions = {split: arrays["actions"] for split, arrays in splits.items() if "actions" in arrays}
    kinds = {(rows.dtype.kind.replace("u", "i"), *rows.shape[2:]) for rows in actions.values()}
    match [*kinds]:
        case []:
            return ActionConfig()
        case [("i",)]:
            return ActionConfig("discrete", int(max(rows.max() for rows in actions.values())) + 1)
        case [("f", size)]:
            return ActionConfig("continuous", size)
    told = ", ".join(f"{rows.dtype} {list(rows.shape)} in {split}" for split, rows in actions.items())
    raise ValueError(
        f"{name}: actions are {told}; give integers [episodes, t] or floats [episodes, t, size], the same in "
        "all splits."
    )


def save_arrays(
    file: Path | IO[bytes],
    splits: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    info: DataInfo | None = None,
) -> None:
    """Write records as an ``.npz``, shorter ones padded by zeros and told by ``lengths``.

    A file that is there is replaced as a whole, once all is written.
    """
    if isinstance(file, Path):
        partial = file.with_name(f".{file.name}.partial")
        try:
            with partial.open("wb") as stream:
                save_arrays(stream, splits, info)
            partial.replace(file.with_name(file.name.removesuffix(".npz") + ".npz"))  # as NumPy names it
        finally:
            partial.unlink(missing_ok=True)
        return
    flat: dict[str, np.ndarray] = {}
    for split, records in splits.items():
        lengths = np.array([len(record["frames"]) for record in records])
        flat[f"{split}/lengths"] = lengths
        for name in records[0]:
            rows = records[0][name]
            full = np.zeros((len(records), lengths.max(), *rows.shape[1:]), rows.dtype)
            for index, record in enumerate(records):
                full[index, : lengths[index]] = record[name]
            flat[f"{split}/{name}"] = full
    if info is not None:
        flat[INFO_KEY] = np.array(json.dumps(info_to_json(info)))
        if info.median is not None:
            flat[MEDIAN_KEY] = info.median
    np.savez_compressed(file, allow_pickle=False, **flat)
