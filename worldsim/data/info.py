"""What is known about a dataset: the JSON and the median frame stored beside its records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from worldsim.config import ActionConfig, ConditionConfig
from worldsim.data.episode import Statistics
from worldsim.plain import from_dict
from worldsim.types import Frames

INFO_FILE, MEDIAN_FILE = "worldsim.json", "median.npy"


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split.

    Attributes:
      episodes, frames, records: counts of what is stored.
      dropped: frames at episode ends that were too few for a record.
      hashes: sha256 of each episode's frames and actions, in order.
      policies: frames per policy.
      seeds: of the episodes, in order.
      lengths: frames of each record, in order.
    """

    episodes: int = 0
    frames: int = 0
    records: int = 0
    dropped: int = 0
    hashes: tuple[str, ...] = ()
    policies: dict[str, int] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A recording that was found.

    Attributes:
      name: path within the folder that was imported.
      hash: sha256 of the file; it is known by it, whatever its name.
      actions: sha256 of the file of actions beside it, or empty.
      split: in which its frames are; empty where it was skipped.
      frames: stored.
      fps: of the recording itself, by its timestamps.
      reason: why it was skipped, or empty.
      missing: frames that its container counts and that are not there.
    """

    name: str
    hash: str = ""
    actions: str = ""
    split: str = ""
    frames: int = 0
    fps: float = 0.0
    reason: str = ""
    missing: int = 0


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """A dataset in words and numbers.

    Attributes:
      name: of the dataset, such as ``pong``.
      kind: where it comes from: ``ale``, ``doom``, ``sprites``, ``recall``, ``video``, ``rlds``, ``tfds``,
        ``arrays``.
      height, width, channels: of a frame.
      fps: frames per second for display.
      action: what leads from frame to frame.
      conditions: per-chunk conditions stored with the frames.
      keys: per-frame arrays of each record.
      splits: by name.
      mean, std: per channel over the first split, 0 to 255.
      source: how it was made (game, options, versions).
      files: recordings it was made from, those that were skipped and why among them.
      median: uint8 ``[h w c]``, the per-pixel median of the first split.
    """

    name: str
    kind: str
    height: int
    width: int
    channels: int
    fps: float
    action: ActionConfig
    keys: tuple[str, ...]
    splits: dict[str, SplitInfo]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    conditions: tuple[ConditionConfig, ...] = ()
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[FileInfo, ...] = ()
    median: np.ndarray | None = dataclasses.field(default=None, compare=False)


def find_dataset(path: str | Path) -> Path:
    """The folder that holds the records: ``path`` itself or its newest version folder.

    Raises:
      FileNotFoundError: there is no dataset.
    """
    root = Path(path)
    if (root / "dataset_info.json").exists():
        return root
    found = [child.parent for child in root.glob("*/dataset_info.json")] if root.is_dir() else []
    if not found:
        state = "is a folder without a prepared dataset" if root.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"No dataset at {root}: it {state}. Make one with 'worldsim data make ale --game pong --out "
            f"{root}' or give the path of a prepared TFDS folder or of an .npz file."
        )
    return max(found, key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdigit()])


def with_statistics(info: DataInfo, clips: Iterable[Frames]) -> DataInfo:
    """The info with the mean, deviation and median of frames, given in clips that are read once."""
    statistics = Statistics()
    for frames in clips:
        statistics.add(frames)
    mean, std = statistics.mean_std()
    return dataclasses.replace(
        info,
        mean=tuple(mean.round(4).tolist()),
        std=tuple(std.round(4).tolist()),
        median=statistics.median(),
    )


def info_to_json(info: DataInfo) -> dict[str, Any]:
    """The info as plain JSON values, without the median."""
    values = {
        field.name: getattr(info, field.name) for field in dataclasses.fields(info) if field.name != "median"
    }
    values |= {
        "action": dataclasses.asdict(info.action),
        "conditions": [*map(dataclasses.asdict, info.conditions)],
    }
    values["files"] = [*map(dataclasses.asdict, info.files)]
    values["splits"] = {name: dataclasses.asdict(split) for name, split in info.splits.items()}
    return values


def info_from_json(values: dict[str, Any], median: UInt8[np.ndarray, "h w c"] | None) -> DataInfo:
    """Rebuild the info from :func:`info_to_json`'s values and the median.

    Raises:
      ValueError: keys that the info does not have.
    """

    def tuples(stored: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(item) if isinstance(item, list) else item for name, item in stored.items()}

    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(DataInfo)})
    if unknown:
        raise ValueError(
            f"{INFO_FILE}: unknown keys {unknown}; it was written by another version of worldsim."
        )
    rebuilt = {
        **tuples(values),
        "action": from_dict(ActionConfig, values["action"]),
        "conditions": tuple(from_dict(ConditionConfig, item) for item in values["conditions"]),
        "files": tuple(FileInfo(**item) for item in values.get("files", ())),
        "splits": {name: SplitInfo(**tuples(stored)) for name, stored in values["splits"].items()},
    }
    return DataInfo(**rebuilt, median=median)


def write_info(folder: Path, info: DataInfo) -> None:
    """Store the info beside the records; each of its files that is there is replaced as a whole."""
    if info.median is not None:
        partial = folder / f".{MEDIAN_FILE}.partial"
        with partial.open("wb") as file:
            np.save(file, info.median)
        partial.replace(folder / MEDIAN_FILE)
    partial = folder / f".{INFO_FILE}.partial"
    partial.write_text(json.dumps(info_to_json(info), indent=1))
    partial.replace(folder / INFO_FILE)


def read_folder_info(path: str | Path) -> DataInfo:
    """The info of a dataset folder made by worldsim.

    Raises:
      FileNotFoundError: no dataset, or one without ``worldsim.json``.
    """
    folder = find_dataset(path)
    file = folder / INFO_FILE
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} has no {INFO_FILE}: worldsim did not write it. Its records can be opened, but frame "
            "size, actions and median are not known."
        )
    median = np.load(folder / MEDIAN_FILE) if (folder / MEDIAN_FILE).exists() else None
    return info_from_json(json.loads(file.read_text()), median)
