"""What a world is judged on: held-out windows, other real play, and what it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Shaped, UInt8

from worldsim.config import WorldConfig
from worldsim.config.world import Outcome
from worldsim.data.info import DataInfo
from worldsim.data.source import Source, open_source, read_episodes, read_info
from worldsim.generate.check import action_problems, check_clip
from worldsim.types import Clip

KNOWN = 16
"""Frames known at one end, fewer where episodes are short."""

FRAMES = 20_000
"""Most frames read from the held-out split, unless twice the windows that are asked for take more."""

POOL = 2 << 30
"""Most bytes of frames that are read from the training split; of a larger one, evenly spaced records."""

TRUTH = ("ram", "state")
"""What datasets may say of the true state of each frame."""

OUTCOMES = get_args(Outcome)
"""What they may say of an episode beside its pictures."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Windows of ``known + horizon`` frames and what they are compared with.

    Attributes:
      frames: ``[n t H W c]``, one window a clip.
      actions: ``[n t ...]``, or None where the world or the data has none.
      truth: per name ``[n t ...]``: the emulator's RAM, the sprites' state.
      others: ``[m t H W c]``: held-out windows that are no clips, or halves of those that are.
      episodes: of how many episodes the clips are.
      train: the training split's frames by record, or None.
      median: ``[H W c]`` of the training data.
      known, horizon: frames of a window.
      info: of the dataset, or None where nobody wrote one.
      notes: what was cut or left out, in words.
      pieces: what outcomes are told of: ``frames [k s H W c]`` of ``context + 1`` chunks or fewer, with
        ``actions`` and each of ``OUTCOMES [k s]`` that the data has; empty where it has none.
    """

    frames: UInt8[np.ndarray, "n t H W c"]
    actions: Shaped[np.ndarray, "n t *a"] | None
    truth: dict[str, np.ndarray]
    others: UInt8[np.ndarray, "m t2 H W c"]
    episodes: int
    train: Iterable[UInt8[np.ndarray, "_ H W c"]] | None
    median: UInt8[np.ndarray, "H W c"]
    known: int
    horizon: int
    info: DataInfo | None
    notes: tuple[str, ...] = ()
    pieces: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def clip(self, index: int) -> Clip:
        """One window with its actions."""
        return Clip(self.frames[index], None if self.actions is None else self.actions[index])

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def game(self) -> str | None:
        """Whose state can be read from frames: ``pong``, ``sprites`` or None."""
        if self.info is None:
            return None
        if self.info.kind == "sprites" and "state" in self.truth:
            return "sprites"
        return "pong" if self.info.source.get("game") == "pong" and "ram" in self.truth else None


def load_held_out(
    data: str | Path,
    config: WorldConfig,
    *,
    clips: int,
    horizon: int,
    split: str = "test",
    trained: str = "train",
) -> HeldOut:
    """Cut evenly spaced windows from a split, as long as half of its episodes allow.

    Args:
      data: a dataset's folder or ``.npz``.
      config: of the world.
      clips: windows to take; fewer where there are fewer.
      horizon: frames to predict; less where episodes are short.
      split: to cut them from.
      trained: the split that the world was trained on.

    Raises:
      FileNotFoundError, ValueError: no such dataset or split; data that the world can't take; too few frames.
    """
    if clips < 2 or horizon < 1:
        raise ValueError(
            f"evaluate: {clips} clips, horizon {horizon}; take 2 clips and 1 frame, or more of each."
        )
    info = _info(data)
    episodes, all_of_it = _episodes(data, split, info, most=max(FRAMES, 2 * clips * (KNOWN + horizon)))
    _check_fit(episodes[0], config)
    known, reach = _lengths([len(one["frames"]) for one in episodes], config, horizon)
    notes = [] if reach >= horizon else [f"horizon cut from {horizon} to {reach}: episodes are short"]
    places = _places([len(one["frames"]) for one in episodes], known + reach)
    chosen = np.unique(np.linspace(0, len(places) - 1, min(clips, len(places))).round().astype(int))
    if len(chosen) < clips:
        notes.append(f"{len(chosen)} clips instead of {clips}: the split {split!r} has no more")
    if not all_of_it:
        notes.append(f"windows are cut from the first {len(episodes)} episodes of the split {split!r}")
    cut = lambda name, at: np.stack([episodes[e][name][s : s + known + reach] for e, s in at])
    mine = [places[i] for i in chosen]
    rest = [place for i, place in enumerate(places) if i not in set(chosen.tolist())]
    if len(rest) >= 2:
        rest = [rest[i] for i in np.unique(np.linspace(0, len(rest) - 1, 4 * clips).round().astype(int))]
    else:
        notes.append("no other held-out windows: the Fréchet distance compares with the clips themselves")
    return HeldOut(
        frames=cut("frames", mine),
        actions=_actions(episodes[0], config, notes, lambda: cut("actions", mine)),
        truth={name: cut(name, mine) for name in TRUTH if name in episodes[0]},
        others=cut("frames", rest if len(rest) >= 2 else mine),
        episodes=len({e for e, _ in mine}),
        train=_training_frames(data, trained, config, notes),
        median=_median(info, episodes),
        known=known,
        horizon=reach,
        info=info,
        notes=tuple(notes),
        pieces=_pieces(episodes, config, clips=clips, longest=known + reach),
    )


def splits_of(provenance: Mapping[str, Any], split: str | None = None) -> tuple[str, str]:
    """The split to judge a world on, by default its own held-out one, and the one that it was trained on.

    Args:
      provenance: of the world.
      split: to judge it on.
    """
    data = (provenance.get("train") or {}).get("data") or {}
    return split or data.get("eval_split", "test"), data.get("split", "train")


def provenance_notes(
    provenance: Mapping[str, Any], info: DataInfo | None, split: str
) -> tuple[bool | None, list[str]]:
    """Whether a dataset is the one that a world was trained on, by the hashes of its episodes.

    Args:
      provenance: of the world, with its data's splits and their hashes.
      info: of the dataset that it is judged on.
      split: that it is judged on.

    Returns:
      Whether the dataset's training split holds any episode that the world was trained on (None where no
      hashes tell), and what a reader of the figures must know.
    """
    own = splits_of(provenance)[1]
    trained = _hashes((provenance.get("data") or {}).get("splits") or {}, own)
    if info is None or not trained:
        return None, ["no hashes tell whether the world was trained on these episodes"]
    here = {name: set(one.hashes) for name, one in info.splits.items()}
    notes = []
    if seen := len(here.get(split, set()) & trained):
        notes.append(
            f"{seen} of {len(here[split])} episodes of the split {split!r} are among those that the world "
            "was trained on: these figures are not held out"
        )
    same = bool(here.get(own, set()) & trained)
    if not same:
        notes.append(
            "the training split is not what the world was trained on (no episode in common): the distance to "
            "training frames says nothing about memorising"
        )
    return same, notes


def _hashes(splits: Mapping[str, Any], name: str) -> set[str]:
    return set((splits.get(name) or {}).get("hashes") or ())


def _info(data: str | Path) -> DataInfo | None:
    """The dataset's info, or None where it is a TFDS set that others wrote."""
    try:
        return read_info(data)
    except FileNotFoundError:
        open_source(data, "train", keys=None)  # says so where there is no dataset at all
        return None


def _episodes(
    data: str | Path, split: str, info: DataInfo | None, *, most: int
) -> tuple[list[dict[str, np.ndarray]], bool]:
    """Whole episodes until so many frames are read, and whether these are all of the split."""
    wanted = ("frames", "actions", *TRUTH, *OUTCOMES)
    held = wanted if info is None else info.keys
    keys = tuple(name for name in wanted if name in held)
    if info is None:
        keys = ("frames",) if "actions" not in open_source(data, split, keys=None)[0] else wanted[:2]
    episodes: list[dict[str, np.ndarray]] = []
    count, all_of_it = 0, True
    for episode in read_episodes(data, split, keys=keys):
        if count >= most:
            all_of_it = False
            break
        episodes.append(episode)
        count += len(episode["frames"])
    if not episodes:
        raise ValueError(f"evaluate: {data} has no episodes in its split {split!r}; make or import some.")
    return episodes, all_of_it


def _check_fit(episode: dict[str, np.ndarray], config: WorldConfig) -> None:
    """Refuse frames of another size and actions of another kind, all at once."""
    wants = config.dynamics.action.kind != "none"
    actions = episode.get("actions") if wants else None
    problems = []
    try:
        check_clip(Clip(episode["frames"]), config, verb="evaluate")
    except ValueError as error:
        problems.append(str(error).rstrip("."))
    if actions is not None:
        found = action_problems(actions, config.dynamics.action, len(actions))
        problems += [f"evaluate: the data's {text}" for text in found]
    if problems:
        raise ValueError(
            "; ".join(problems) + ". Give the data that the world was trained on, or data of its kind."
        )


def _actions(episode, config: WorldConfig, notes: list[str], cut):
    """Actions where the world takes some and the data has some."""
    if config.dynamics.action.kind == "none":
        return None
    if "actions" not in episode:
        notes.append("the data has no actions: the world runs free")
        return None
    return cut()


def _lengths(lengths: list[int], config: WorldConfig, horizon: int) -> tuple[int, int]:
    """Frames known and frames to predict, whole chunks of each, that half of the episodes have."""
    f = config.tokenizer.frames_per_chunk
    typical = int(np.sort(lengths)[len(lengths) // 2])
    if typical < 2 * f:
        raise ValueError(
            f"evaluate: half of the held-out episodes have fewer than {typical + 1} frames; the world works "
            f"in chunks of {f} and needs episodes of {2 * f} frames or more."
        )
    known = max(f, min(-(-KNOWN // f) * f, typical // 2 // f * f))
    wanted = max(f, -(-horizon // f) * f)
    return known, min(wanted, (typical - known) // f * f)


def _places(lengths: list[int], size: int) -> list[tuple[int, int]]:
    """(episode, first frame) of windows beside each other, in the middle of each episode."""
    out = []
    for episode, length in enumerate(lengths):
        count = length // size
        first = (length - count * size) // 2
        out += [(episode, first + i * size) for i in range(count)]
    return out


def _pieces(
    episodes: list[dict[str, np.ndarray]], config: WorldConfig, *, clips: int, longest: int
) -> dict[str, np.ndarray]:
    """The last piece of evenly spaced episodes, since only there they end, and evenly spaced others.

    Episodes are cut into pieces from their end. There are as many last ones as ``clips``, and four times as
    many others, or as there are.
    """
    names = [name for name in OUTCOMES if name in episodes[0] and name in config.dynamics.outcomes]
    f = config.tokenizer.frames_per_chunk
    size = min((config.dynamics.context + 1) * f, longest // f * f)
    long = [episode for episode in episodes if len(episode["frames"]) >= size]
    if not names or size < 2 * f:
        return {}

    def take(places: list, most: int) -> list:
        return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, most).round().astype(int))]

    last = take([(e, len(e["frames"]) - size) for e in long], clips)
    rest = [(e, at) for e in long for at in range(len(e["frames"]) - 2 * size, -1, -size)]
    chosen = last + (take(rest, 4 * clips) if rest else [])
    names = ["frames", *(["actions"] if "actions" in episodes[0] else []), *names]
    return {name: np.stack([e[name][at : at + size] for e, at in chosen]) for name in names}


class _Records:
    """Frames of some records of a source, read whenever they are gone through."""

    def __init__(self, source: Source, picks: np.ndarray) -> None:
        self._source, self._picks = source, picks

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._source[int(i)]["frames"] for i in self._picks)


def _training_frames(data: str | Path, split: str, config: WorldConfig, notes: list[str]) -> _Records | None:
    """The records of the training split, or as many as ``POOL`` holds."""
    try:
        source = open_source(data, split, keys=("frames",), cache=POOL)
    except ValueError:
        notes.append(f"no training split {split!r}: nearest neighbours are left out")
        return None
    one, total = config.tokenizer, int(np.sum(source.lengths))
    most = POOL // (one.height * one.width * one.channels)
    count = len(source) if total <= most else max(1, len(source) * most // total)
    if count < len(source):
        notes.append(f"nearest neighbours: among {count} of {len(source)} training records, evenly spaced")
    return _Records(source, np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)))


def _median(info: DataInfo | None, episodes: list[dict[str, np.ndarray]]) -> np.ndarray:
    if info is not None and info.median is not None:
        return np.asarray(info.median)
    every = np.concatenate([one["frames"] for one in episodes])
    return np.median(every[:: max(1, len(every) // 500)], axis=0).astype(np.uint8)
