"""Registered TFDS video sets, ``tfds:NAME``: prepared elsewhere, read through one table of feature names.

``tfds:NAME``, ``tfds:NAME/CONFIG`` or ``tfds:NAME/CONFIG/VERSION`` stands wherever the path of a dataset
does; the sets lie under ``TFDS_DATA_DIR``, or else ``~/tensorflow_datasets``, as TFDS prepares them. A split
may be cut: ``test[:90%]`` and ``test[90%:]``. Lengths, statistics and the median frame are measured once and
stored beside the records.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from worldsim.config import ActionConfig
from worldsim.data.actions import aligned, null_row
from worldsim.data.examples import Example, RecordFiles, decode_image, prepared_splits
from worldsim.data.info import (
    INFO_FILE,
    DataInfo,
    SplitInfo,
    read_folder_info,
    with_statistics,
    write_info,
)

PREFIX = "tfds:"
_SAMPLE = 512


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a registered set calls its features.

    Attributes:
      frames: a list of images.
      actions: a flat list of floats, stored with the frame that they follow; None where there are none.
      fps: frames per second for display; the sets don't say.
    """

    frames: str
    actions: str | None = None
    fps: float = 10.0


LAYOUTS = {
    "moving_mnist": Layout("image_sequence"),
    "bair_robot_pushing_small": Layout("image_main", "action"),
    "robonet": Layout("video", "actions"),
}


def is_registered(path: str | Path) -> bool:
    """Whether a path names a registered set."""
    return str(path).startswith(PREFIX)


def find_registered(path: str | Path) -> tuple[Path, Layout]:
    """The prepared folder of ``tfds:NAME[/CONFIG[/VERSION]]``, the newest version by default, and its layout.

    Raises:
      ValueError: a name that the table does not have, or several configs to choose from.
      FileNotFoundError: the set is not prepared; how to prepare it is told.
    """
    text = str(path).removeprefix(PREFIX)
    name, *rest = text.split("/")
    if name not in LAYOUTS:
        raise ValueError(
            f"{path}: worldsim knows the registered sets {', '.join(sorted(LAYOUTS))}. An RLDS folder can be "
            "imported: worldsim data import FOLDER."
        )
    home = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    found = {
        file.parent.relative_to(home / name).parts: file.parent
        for pattern in ("*/dataset_info.json", "*/*/dataset_info.json")
        for file in (home / name).glob(pattern)
    }
    fitting = {parts: folder for parts, folder in found.items() if parts[: len(rest)] == tuple(rest)}
    if not fitting:
        there = f"; prepared are {sorted('/'.join(parts) for parts in found)}" if found else ""
        raise FileNotFoundError(
            f"{path} is not prepared under {home}{there}. Where TensorFlow and a network are, run in Python: "
            f"tensorflow_datasets.builder({'/'.join([name, *rest[:1]])!r}).download_and_prepare(); or set "
            f"TFDS_DATA_DIR to the folder that holds {name}/."
        )
    configs = sorted({parts[:-1] for parts in fitting})
    if len(configs) > 1:
        choices = ", ".join(f"{PREFIX}{name}/{'/'.join(config)}" for config in configs)
        raise ValueError(f"{path} is prepared in several configs; take one of {choices}.")
    newest = max(fitting, key=lambda parts: [int(part) for part in re.findall(r"\d+", parts[-1])])
    return fitting[newest], LAYOUTS[name]


class RegisteredSource:
    """Records of a registered set: an episode each, decoded when it is read.

    Attributes:
      lengths: frames of each record.
    """

    lengths: Int[np.ndarray, "n"]

    def __init__(self, path: str | Path, split: str, *, keys: Sequence[str] | None, cache: int) -> None:
        folder, self._layout = find_registered(path)
        info = _folder_info(folder, self._layout)
        name, cut = _parse_split(split)
        if name not in info.splits:
            raise ValueError(
                f"{path} has no split {name!r}; it has {', '.join(sorted(info.splits))}. A split can be cut, "
                f"such as {next(iter(sorted(info.splits)))}[:90%]."
            )
        missing = sorted(set(keys or ()) - set(info.keys))
        if missing:
            raise ValueError(f"{path} has no {', '.join(missing)}; its records hold {', '.join(info.keys)}.")
        self._keys = info.keys if keys is None else tuple(keys)
        self._files = RecordFiles(prepared_splits(folder)[name])
        self._picks = _cut(np.arange(len(self._files)), cut)
        self.lengths = np.array(info.splits[name].lengths, np.int64)[self._picks]
        if not len(self.lengths):
            raise ValueError(f"{path}: {split} is empty; {name} has {len(self._files)} records.")
        self._room = cache
        self._cache: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._picks)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        kept = self._cache.get(int(index))
        if kept is None:
            kept = _rows(self._files.example(int(self._picks[index])), self._layout, self._keys)
            size = sum(array.nbytes for array in kept.values())
            if size <= self._room:
                self._room -= size
                self._cache[int(index)] = kept
        return dict(kept)


def _rows(example: Example, layout: Layout, keys: Sequence[str]) -> dict[str, np.ndarray]:
    rows = {}
    images = example[layout.frames]
    if "frames" in keys:
        rows["frames"] = np.stack([decode_image(bytes(data)) for data in images])
    if "actions" in keys and layout.actions is not None:
        rows["actions"] = _actions(np.asarray(example[layout.actions]), len(images), layout)
    return rows


def _actions(flat: np.ndarray, frames: int, layout: Layout) -> np.ndarray:
    """One row a frame, the first null; a set may leave out the row after the last frame."""
    count = frames if len(flat) % frames == 0 else frames - 1
    if count < 1 or len(flat) % count:
        raise ValueError(f"{layout.actions!r} holds {len(flat)} numbers for {frames} frames.")
    rows = flat.reshape(count, -1).astype(np.float32)
    return aligned(rows, follow=True) if count == frames else np.concatenate([null_row(rows), rows])


def _parse_split(text: str) -> tuple[str, tuple[str, str]]:
    found = re.fullmatch(r"(\w+)(?:\[(\d*%?):(\d*%?)\])?", text)
    if found is None:
        raise ValueError(f"Split {text!r}; give a name, or a cut such as test[:90%], test[90%:], test[:500].")
    return found[1], (found[2] or "", found[3] or "")


def _cut(picks: np.ndarray, cut: tuple[str, str]) -> np.ndarray:
    """Part of a split by numbers of records or by percent."""
    ends = [
        None if not text else len(picks) * int(text[:-1]) // 100 if text.endswith("%") else int(text)
        for text in cut
    ]
    return picks[slice(*ends)]


def read_registered(path: str | Path) -> DataInfo:
    """The info of a registered set, measured when it is first asked for.

    Raises:
      FileNotFoundError, ValueError: as :func:`find_registered`.
    """
    return _folder_info(*find_registered(path))


def _folder_info(folder: Path, layout: Layout) -> DataInfo:
    splits = prepared_splits(folder)
    sizes = {path.name: path.stat().st_size for paths in splits.values() for path in paths}
    if (folder / INFO_FILE).exists():
        info = read_folder_info(folder)
        if info.source.get("files") == sizes:
            return info
    info = _measure(folder, layout, splits, sizes)
    try:
        write_info(folder, info)
    except OSError:  # a folder that is only to be read is measured anew each time
        return info
    return info


def _measure(folder: Path, layout: Layout, splits: dict[str, list[Path]], sizes: dict[str, int]) -> DataInfo:
    """Count the frames of all records; decode some of the first split's for statistics."""
    counted, files = {}, {split: RecordFiles(paths) for split, paths in splits.items()}
    for split, records in files.items():
        lengths = [len(records.example(i).get(layout.frames, ())) for i in range(len(records))]
        counted[split] = SplitInfo(
            episodes=len(lengths), frames=sum(lengths), records=len(lengths), lengths=tuple(lengths)
        )
    first = "train" if "train" in splits else next(iter(splits), "")
    if not first or not len(files[first]) or 0 in counted[first].lengths:
        raise ValueError(f"{folder} holds no records with the feature {layout.frames!r} of its table entry.")
    records = files[first]
    example = records.example(0)
    keys = ("frames",) + ("actions",) * (layout.actions is not None)
    rows = _rows(example, layout, keys)
    size = rows["actions"].shape[1] if "actions" in rows else 0
    height, width, channels = rows["frames"].shape[1:]
    info = DataInfo(
        name=folder.parent.name, kind="tfds", height=height, width=width, channels=channels, fps=layout.fps,
        action=ActionConfig("continuous", size) if size else ActionConfig(), keys=keys,
        splits={first: counted.pop(first), **counted}, mean=(), std=(), source={"files": sizes},
    )  # fmt: skip
    picks = np.unique(np.linspace(0, len(records) - 1, _SAMPLE).astype(int)).tolist()
    return with_statistics(info, (_rows(records.example(i), layout, ("frames",))["frames"] for i in picks))
