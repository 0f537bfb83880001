"""A dataset at a glance: what it holds in words and numbers, and a sheet of frames from every split."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data.info import DataInfo, find_dataset
from worldsim.data.registered import find_registered, is_registered
from worldsim.data.sheet import contact_sheet
from worldsim.data.source import open_source, read_info

ROWS, COLUMNS = 4, 10


def describe(path: str | Path) -> dict[str, Any]:
    """What a dataset holds, as plain JSON values; ``bytes`` are those of its record files.

    Raises:
      FileNotFoundError, ValueError: as :func:`worldsim.data.source.read_info`.
    """
    info = read_info(path)
    place = _place(path)
    return {
        "name": info.name,
        "kind": info.kind,
        "path": str(place),
        "bytes": sum(file.stat().st_size for file in _files(place)),
        "frame": [info.height, info.width, info.channels],
        "fps": info.fps,
        "action": dataclasses.asdict(info.action),
        "keys": list(info.keys),
        "shapes": _shapes(path, info),
        "splits": {
            name: {
                **{key: getattr(split, key) for key in ("episodes", "frames", "records", "dropped")},
                "seconds": round(split.frames / info.fps, 1) if info.fps else None,
                "policies": split.policies,
            }
            for name, split in info.splits.items()
        },
        "mean": list(info.mean),
        "std": list(info.std),
        "files": [dataclasses.asdict(file) for file in info.files if not file.reason],
        "skipped": [{"name": file.name, "reason": file.reason} for file in info.files if file.reason],
    }


def _place(path: str | Path) -> Path:
    if is_registered(path):
        return find_registered(path)[0]
    return Path(path) if Path(path).suffix == ".npz" else find_dataset(path)


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [p for p in place.iterdir() if "record-" in p.name]


def _shapes(path: str | Path, info: DataInfo) -> dict[str, str]:
    """Type and shape of each per-frame array, t being a record's frames."""
    split = next((name for name, split in info.splits.items() if split.records), None)
    if split is None:
        return {}
    record = open_source(path, split, keys=None, cache=0)[0]
    return {
        name: f"{rows.dtype} [{' '.join(['t', *map(str, rows.shape[1:])])}]" for name, rows in record.items()
    }


def lines(known: dict[str, Any]) -> list[str]:
    """What :func:`describe` found, to be read."""
    height, width, channels = known["frame"]
    action = known["action"]
    names = f": {', '.join(action['names'])}" if action["names"] else ""
    told = [
        f"{known['name']} ({known['kind']}), {known['bytes'] / 1e6:.1f} MB in {known['path']}",
        f"frames   {height}x{width}x{channels}, {known['fps']:g} a second",
        f"actions  {action['kind']}" + (f", {action['size']}{names}" if action["size"] else ""),
    ]
    told += [f"array    {name}: {shape}" for name, shape in known["shapes"].items()]
    for name, split in known["splits"].items():
        told.append(
            f"{name:8} {split['episodes']} episodes, {split['frames']} frames, {split['records']} records"
            + (f", {split['dropped']} frames dropped" if split["dropped"] else "")
        )
        told += [
            f"         {count} frames by {policy}" for policy, count in split["policies"].items() if policy
        ]
    for file in known["files"]:
        early = f", {file['missing']} missing at its end" if file["missing"] else ""
        told.append(f"file     {file['name']}: {file['split']}, {file['frames']} frames{early}")
    told += [f"skipped  {file['name']}: {file['reason']}" for file in known["skipped"]]
    return told


def draw(path: str | Path, out: Path) -> None:
    """Write a picture of some records of every split, frames at an even distance."""
    from PIL import Image

    rows, labels = sheet_rows(path)
    columns = [""] * max(map(len, rows))
    Image.fromarray(contact_sheet(rows, labels=labels, columns=columns)).save(out)


def sheet_rows(path: str | Path) -> tuple[list[np.ndarray], list[str]]:
    """Some frames ``[t h w 3]`` of some records of every split, at an even distance, and what they are of."""
    rows, labels = [], []
    for name, split in read_info(path).splits.items():
        if not split.records:
            continue
        source = open_source(path, name, keys=("frames",), cache=0)
        for index in np.unique(np.linspace(0, len(source) - 1, ROWS).astype(int)).tolist():
            frames = source[index]["frames"]
            picks = np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).astype(int)
            rows.append(np.broadcast_to(frames[picks], (len(picks), *frames.shape[1:3], 3)))
            labels.append(f"{name} {index}")
    return rows, labels
