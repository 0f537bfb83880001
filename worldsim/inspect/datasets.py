"""A dataset in short: counts, arrays, actions, and frames from every split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worldsim.data import overview
from worldsim.data.info import DataInfo
from worldsim.data.source import open_source, read_info
from worldsim.inspect.findings import Bars, Findings, Section, Sheet, Table, duration, size

_LOOKED = 24
"""Records of a split, at an even distance, whose actions are counted."""


def data_findings(path: str | Path) -> Findings:
    """What a dataset holds.

    Raises:
      FileNotFoundError, ValueError, ModuleNotFoundError: as :func:`worldsim.data.source.read_info`.
    """
    known, info = overview.describe(path), read_info(path)
    height, width, channels = known["frame"]
    frames = sum(split["frames"] for split in known["splits"].values())
    actions = known["action"]
    names = f": {', '.join(actions['names'])}" if actions["names"] else ""
    long = f", {duration(frames / info.fps)} of video" if info.fps else ""
    lead = (
        f"{frames:,} frames of {height}x{width}x{channels}{long}, {size(known['bytes'])}; "
        f"actions: {actions['kind']}{', ' + str(actions['size']) if actions['size'] else ''}{names}."
    )
    rows, labels = overview.sheet_rows(path)
    shares = action_shares(path, info)
    taken = [Bars([*info.action.names] or [*map(str, range(len(shares)))], shares)] if shares else []
    note = f"In up to {_LOOKED} records of the first split, at an even distance." if shares else ""
    sections = [
        Section("Splits", [_splits(known), *_policies(known)]),
        Section(
            "Frames", _sheets(rows, labels), "Some records of every split, their frames at an even distance."
        ),
        *([Section("Actions taken", taken, note)] if taken else []),
        Section("What is stored", [Table(("", ""), _stored(known, info)), *_median(info)]),
    ]
    if known["files"] or known["skipped"]:
        sections.append(Section("Recordings", [_files(known)]))
    facts = {"what": "data", **known, "action_shares": shares or None}
    return Findings(f"{known['name']} ({known['kind']})", lead, facts, sections)


def action_shares(path: str | Path, info: DataInfo) -> list[float]:
    """How often each discrete action was taken; empty where there are none."""
    split = next((name for name, split in info.splits.items() if split.records), None)
    if split is None or info.action.kind != "discrete" or "actions" not in info.keys:
        return []
    source = open_source(path, split, keys=("actions",), cache=0)
    picks = np.unique(np.linspace(0, len(source) - 1, min(_LOOKED, len(source))).astype(int))
    taken = np.concatenate([np.asarray(source[int(at)]["actions"]).reshape(-1) for at in picks])
    counts = np.bincount(taken[taken >= 0].astype(int), minlength=info.action.size)
    return (counts / max(1, counts.sum())).tolist()


def _splits(known: dict[str, Any]) -> Table:
    head = ("split", "episodes", "frames", "records", "frames dropped", "video")
    rows = []
    for name, split in known["splits"].items():
        video = duration(split["seconds"]) if split["seconds"] else "-"
        rows.append([name, *(split[key] for key in ("episodes", "frames", "records", "dropped")), video])
    return Table(head, rows)


def _policies(known: dict[str, Any]) -> list[Table]:
    """Who played, where that is told."""
    rows = [
        [f"{name}, {policy}", count]
        for name, split in known["splits"].items()
        for policy, count in split["policies"].items()
        if policy
    ]
    return [Table(("played by", "frames"), rows)] if rows else []


def _sheets(rows: list[np.ndarray], labels: list[str]) -> list[Sheet]:
    """A sheet a split."""
    splits = dict.fromkeys(label.split(" ")[0] for label in labels)
    sheets = []
    for split in splits:
        chosen = [at for at, label in enumerate(labels) if label.split(" ")[0] == split]
        own = [rows[at] for at in chosen]
        columns = [""] * max(map(len, own))
        sheets.append(Sheet(own, [labels[at] for at in chosen], columns=columns, name=f"frames of {split}"))
    return sheets


def _stored(known: dict[str, Any], info: DataInfo) -> list[list[Any]]:
    rows: list[list[Any]] = [["path", known["path"]], ["bytes", size(known["bytes"])]]
    rows += [[name, shape] for name, shape in known["shapes"].items()]
    rows += [["mean of a channel", ", ".join(f"{x:.1f}" for x in info.mean)]] if info.mean else []
    rows += [["deviation", ", ".join(f"{x:.1f}" for x in info.std)]] if info.std else []
    plain = {name: value for name, value in info.source.items() if isinstance(value, str | int | float)}
    source = [f"{name} {value}" for name, value in plain.items()]
    return rows + ([["made by", ", ".join(source)]] if source else [])


def _median(info: DataInfo) -> list[Sheet]:
    """The median frame, from which the tokenizer's loss tells what is rare."""
    if info.median is None:
        return []
    frame = np.broadcast_to(info.median, (*info.median.shape[:2], 3)).astype(np.uint8)
    return [Sheet([frame[None]], ["median"], columns=[""], name="the median frame", side=128)]


def _files(known: dict[str, Any], most: int = 40) -> Table:
    """Recordings that were taken and those that were not; the first of them where they are many."""
    rows = [[file["name"], file["split"], str(file["frames"])] for file in known["files"]]
    rows += [[file["name"], "skipped", file["reason"]] for file in known["skipped"]]
    more = [[f"and {len(rows) - most} more", "", ""]] if len(rows) > most else []
    return Table(("file", "split", "frames"), rows[:most] + more)
