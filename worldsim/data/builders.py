"""Writing a TFDS dataset: episodes become ArrayRecord files, without TensorFlow.

A record is one piece of an episode: its per-frame arrays, and ``episode`` (number in the split),
``start`` (first frame within the episode) and ``last`` (the piece ends the episode). Pieces follow
one another without overlap and never cross an episode's end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from worldsim.data.arrays import is_dataset
from worldsim.data.episode import Episode, Statistics, pieces
from worldsim.data.info import DataInfo, SplitInfo
from worldsim.data.stores import VERSION, ArrayStore, RecordStore, load_tfds

Progress = Callable[[str, int, int], None]
"""Called with the split, the frames written and the frames expected."""


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
                f"RecordConfig: minimum {self.minimum}, size {self.size}; the minimum goes from 1 "
                "to the size."
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
    """Write episodes as a TFDS dataset at ``out/1.0.0``, or as one ``.npz``; return its completed info.

    Counts, hashes, statistics and ``keys`` of ``info`` are filled in here; the mean, deviation and
    median are those of the first split. Nothing appears at ``out`` before all is written.

    Args:
      out: folder to make, whose last part names the dataset in TFDS, or a file ending in ``.npz``
        (records are held in memory then, and TFDS is not needed).
      splits: episodes per split; read once, one after the other.
      expected: frames per split, for ``progress`` only.
      overwrite: replace a dataset that is there.

    Raises:
      FileExistsError: ``out`` is there and ``overwrite`` is False, or it is no dataset.
      ModuleNotFoundError: ``out`` is a folder and tensorflow-datasets is missing.
      ValueError: a split has no episode, or none long enough for a record.
    """
    root = Path(out).absolute()
    check_out(root, overwrite)
    partial = root.with_name(f".{root.name}.partial")
    _remove(partial)
    statistics = Statistics()
    tallies: dict[str, Tally] = {}
    name = dataset_name(root.stem)
    store = ArrayStore(partial) if root.suffix == ".npz" else RecordStore(partial, name)
    try:
        for split, episodes in splits.items():
            tallies[split] = Tally(split, (expected or {}).get(split, 0), progress)
            for episode in episodes:
                if len(tallies) == 1:
                    statistics.add(episode.frames)
                keys = tuple(episode.arrays())
                tallies[split].add(store, episode, records)
            tallies[split].check(records)
        mean, std = statistics.mean_std()
        full = dataclasses.replace(
            info,
            keys=keys,
            splits={split: tally.info() for split, tally in tallies.items()},
            mean=tuple(mean.round(4).tolist()),
            std=tuple(std.round(4).tolist()),
            median=statistics.median(),
        )
        made = store.close(full)
        if made.is_dir():
            install(made, root, VERSION)
        else:
            made.replace(root)
    finally:
        _remove(partial)
    return full


def install(made: Path, root: Path, version: str) -> None:
    """Put a finished dataset in the place of those at ``root``; at any moment one of them can be opened."""
    root.mkdir(parents=True, exist_ok=True)
    former = [path.parent for path in root.glob("*/dataset_info.json")]
    if root / version in former:
        aside = root / ".former"
        _remove(aside)
        (root / version).rename(aside)
        former.append(aside)
    made.rename(root / version)
    for folder in former:
        if folder != root / version:
            _remove(folder)


def check_out(out: Path, overwrite: bool) -> None:
    """Stop before anything is lost or made in vain: only a dataset can be replaced, and only when told.

    Raises:
      FileExistsError: with the remedy.
      ModuleNotFoundError: ``out`` is a folder and tensorflow-datasets is missing.
    """
    if out.suffix != ".npz":
        load_tfds()
        if out.exists() and not (
            out.is_dir() and (any(out.glob("*/dataset_info.json")) or not any(out.iterdir()))
        ):
            raise FileExistsError(f"{out} exists and holds no dataset; choose an empty or new folder.")
    elif out.exists() and not is_dataset(out):
        raise FileExistsError(f"{out} exists and is no dataset; choose another file.")
    full = out.exists() and (out.is_file() or any(out.iterdir()))
    if full and not overwrite:
        raise FileExistsError(f"{out} already holds a dataset; pass overwrite (--overwrite) or another out.")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def dataset_name(text: str) -> str:
    """A name that TFDS accepts: lower case letters, digits and underscores, a letter first."""
    fine = lambda char: char.isascii() and char.isalnum()
    name = "".join(char if fine(char) else "_" for char in text.lower()).strip("_")
    return name if name[:1].isalpha() else f"data_{name}".rstrip("_")


@dataclasses.dataclass(frozen=True)
class Part:
    """What an episode, or a part of one, adds to the counts of a split.

    Attributes:
      length: its frames.
      spans: start and stop of each record cut from it.
      hash: of its frames and actions.
      policy, seed, more: as the episode has them.
    """

    length: int
    spans: tuple[tuple[int, int], ...]
    hash: str
    policy: str
    seed: int
    more: bool

    @classmethod
    def of(cls, episode: Episode, config: RecordConfig) -> Part:
        spans = pieces(len(episode), size=config.size, minimum=config.minimum)
        return cls(
            len(episode), tuple(spans), episode.hash(), episode.policy, episode.seed, episode.more
        )  # fmt: skip


class Tally:
    """Counts of one split while it is written; begins where ``former`` stopped."""

    def __init__(
        self,
        split: str,
        expected: int = 0,
        progress: Progress | None = None,
        former: SplitInfo = SplitInfo(),
    ) -> None:
        self._split, self._expected, self._progress = split, expected, progress
        self._counts = {key: getattr(former, key) for key in ("episodes", "frames", "records", "dropped")}
        self._hashes, self._parts = list(former.hashes), []
        self._seeds, self._lengths = list(former.seeds), list(former.lengths)
        self._policies = dict(former.policies)

    def add(self, store: ArrayStore | RecordStore, episode: Episode, config: RecordConfig) -> None:
        """Write an episode, or a part of one, to the store and count it."""
        part = Part.of(episode, config)
        for start, stop in part.spans:
            store.write(self._split, episode, self.episodes, start, stop)
        self.count(part)

    @property
    def episodes(self) -> int:
        """How many are complete: the number of the next one."""
        return self._counts["episodes"]

    @property
    def records(self) -> int:
        """How many there are."""
        return self._counts["records"]

    def count(self, part: Part) -> None:
        """Count what has been written, or will be."""
        kept = sum(stop - start for start, stop in part.spans)
        for key, count in {
            "episodes": not part.more, "frames": kept, "records": len(part.spans),
            "dropped": part.length - kept,
        }.items():  # fmt: skip
            self._counts[key] += count
        self._parts.append(part.hash)
        if not part.more:
            whole = hashlib.sha256("".join(self._parts).encode()).hexdigest()
            self._hashes.append(self._parts[0] if len(self._parts) == 1 else whole)
            self._seeds.append(part.seed)
            self._parts = []
        self._lengths.extend(stop - start for start, stop in part.spans)
        self._policies[part.policy] = self._policies.get(part.policy, 0) + kept
        if self._progress is not None:
            done = self._counts["frames"] + self._counts["dropped"]
            self._progress(self._split, done, max(self._expected, done))

    def check(self, config: RecordConfig) -> None:
        if not self._lengths:
            raise ValueError(
                f"Split {self._split!r} got no record: {self._counts['episodes']} episodes, none of "
                f"{config.minimum} frames or more. Ask for more frames or lower RecordConfig.minimum."
            )

    def info(self) -> SplitInfo:
        return SplitInfo(
            **self._counts, hashes=tuple(self._hashes), policies=self._policies, seeds=tuple(self._seeds),
            lengths=tuple(self._lengths),
        )  # fmt: skip
