"""The recordings in a folder: found, known by their content, with their actions, new or known."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from worldsim.data.actions import actions_file, kind_of, read_rows
from worldsim.data.decode import SUFFIXES, UnusableError
from worldsim.data.info import FileInfo
from worldsim.types import Actions

Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""What ``map`` does: results of a function, in the order of the items."""

BESIDE = "give every recording actions of one kind, or import all without them (--no-actions)"


@dataclasses.dataclass(frozen=True)
class Found:
    """A recording in a folder.

    Attributes:
      path: of the file.
      file: its name within the folder, its hashes and, where it can't be taken, the reason.
      rows: its actions as they are stored, or None.
    """

    path: Path
    file: FileInfo
    rows: Actions | None = None

    def skipped(self, reason: str) -> Found:
        """The same recording, not to be taken for this reason."""
        return dataclasses.replace(self, file=dataclasses.replace(self.file, reason=reason))

    @property
    def place(self) -> float:
        """Where in [0, 1) its hash lies: those below the test share are held out."""
        return int(self.file.hash[:13], 16) / 16**13


def find_recordings(folder: Path, *, actions: bool, each: Each = map) -> list[Found]:
    """All recordings in a folder and those within it, in the order of their names; hidden ones are left out.

    Args:
      actions: whether to look for files of actions; a bad one makes its recording unusable.
      each: calls a function with every item of a list; ``map`` does it here, one after the other.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: there is no recording in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}; give one that holds {', '.join(SUFFIXES)} files.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    shown = [
        path for path in paths
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]  # fmt: skip
    if not shown:
        raise ValueError(f"{folder} holds no recordings: no {', '.join(SUFFIXES)} file in it or below it.")
    return list(each(functools.partial(look_at, folder=folder, actions=actions), shown))


def look_at(path: Path, *, folder: Path, actions: bool) -> Found:
    """One recording of a folder, read for its hash."""
    name = path.relative_to(folder).as_posix()
    found = Found(path, FileInfo(name))
    try:
        file = FileInfo(name, hash_of(path))
        found = Found(path, file)
        beside = actions_file(path) if actions else None
        if beside is None:
            return found
        rows = read_rows(beside)
        return Found(path, dataclasses.replace(file, actions=hash_of(beside)), rows)
    except (OSError, ValueError) as error:
        return found.skipped(str(error))


def with_rows(found: Found) -> Found:
    """The recording with its actions, read anew where it was handed over without them.

    Raises:
      UnusableError: they have gone, or can no longer be read.
    """
    if not found.file.actions or found.rows is not None:
        return found
    try:
        beside = actions_file(found.path)
        if beside is None:
            raise UnusableError("its actions have gone since it was found")
        return dataclasses.replace(found, rows=read_rows(beside))
    except ValueError as error:
        raise UnusableError(str(error)) from error


def hash_of(path: Path) -> str:
    """sha256 of a file's bytes, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_new(
    found: Iterable[Found], stored: Sequence[FileInfo]
) -> tuple[list[Found], list[FileInfo], list[Found]]:
    """Recordings that are new, the stored ones under their present names, and those not to be taken.

    A recording is known by its content: a renamed one is found again, and a copy is not taken twice.
    One that was removed from the folder, or changed in it, stays in the dataset as it was.
    """
    known = {file.hash: file for file in stored}
    present: dict[str, str] = {}
    new, skipped = [], []
    for item in found:
        file = item.file
        if file.reason:
            skipped.append(item)
            continue
        if file.hash in present:
            skipped.append(item.skipped(f"its content is that of {present[file.hash]}"))
        elif file.hash not in known:
            new.append(item)
        elif known[file.hash].actions != file.actions:
            skipped.append(item.skipped("it is stored with other actions; import all anew (--overwrite)"))
        else:
            known[file.hash] = dataclasses.replace(known[file.hash], name=file.name)
        present.setdefault(file.hash, file.name)
    return new, list(known.values()), skipped


def one_kind(new: list[Found], stored: tuple[str, int] | None) -> tuple[tuple[str, int], list[Found]]:
    """The kind of actions of a dataset, and the recordings with those of another kind marked as skipped.

    The kind is that of what is stored, else that of most recordings (of equals, one with actions, then the
    first in the order of their names).
    """
    kinds = [kind_of(item.rows) for item in new]
    counts = collections.Counter(kinds)
    order = sorted(counts, key=lambda kind: (-counts[kind], kind == ("none", 0), kinds.index(kind)))
    kind = stored if stored is not None else order[0] if order else ("none", 0)
    words = {"none": "no actions", "discrete": "discrete actions", "continuous": "continuous actions"}

    def told(kind: tuple[str, int]) -> str:
        return words[kind[0]] + (f" of size {kind[1]}" if kind[1] else "")

    return kind, [
        item if has == kind else item.skipped(f"it has {told(has)} while others have {told(kind)}; {BESIDE}")
        for item, has in zip(new, kinds, strict=True)
    ]
