"""Make the datasets that worldsim generates itself: Atari and Doom play, the sprite and the recall world."""

from __future__ import annotations

import dataclasses
import itertools
from importlib import metadata
from pathlib import Path

from worldsim.config import ActionConfig
from worldsim.data import ale, doom, recall, sprites
from worldsim.data.builders import Progress, RecordConfig, check_out, write_dataset
from worldsim.data.info import DataInfo


def make_ale(
    out: str | Path,
    *,
    config: ale.AleConfig = ale.AleConfig(),
    frames: int = 100_000,
    test_frames: int = 10_000,
    seed: int = 0,
    records: RecordConfig = RecordConfig(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DataInfo:
    """Play a game and store it: split ``train`` and, under other seeds and policies, ``test``.

    Args:
      out: folder of the TFDS dataset to make, or an ``.npz`` file (held in memory, no TFDS needed).
      frames, test_frames: per split; the last episode is cut there.
      progress: called with the split, the frames written and the frames expected.

    Raises:
      FileExistsError: ``out`` is there and ``overwrite`` is False.
      ModuleNotFoundError: gymnasium and ale-py, or tensorflow-datasets, are missing.
      ValueError: the emulator has no such game; a split of fewer frames than a record.
    """
    if min(frames, test_frames) < records.minimum:
        raise ValueError(
            f"make_ale: {frames} frames, {test_frames} test_frames; give each {records.minimum} or more."
        )
    check_out(Path(out), overwrite)
    names = ale.action_names(config)
    sizes = {"train": frames, "test": test_frames}
    seeds = {"train": 2 * seed, "test": 2 * seed + 1}
    splits = {
        split: ale.episodes(config, ale.default_mix(config.game, split), frames=count, seed=seeds[split])
        for split, count in sizes.items()
    }
    info = DataInfo(
        name=config.game, kind="ale", height=config.size, width=config.size, channels=3, fps=config.fps,
        action=ActionConfig("discrete", len(names), names), keys=(), splits={}, mean=(), std=(),
        source={**dataclasses.asdict(config), "seed": seed, "ale_py": metadata.version("ale-py")},
    )  # fmt: skip
    return write_dataset(
        out, splits, info, records=records, expected=sizes, overwrite=overwrite, progress=progress
    )


def make_doom(
    out: str | Path,
    *,
    config: doom.DoomConfig = doom.DoomConfig(),
    frames: int = 100_000,
    test_frames: int = 10_000,
    seed: int = 0,
    records: RecordConfig = RecordConfig(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DataInfo:
    """Play a scenario of Doom and store it: split ``train`` and, under other seeds and policies, ``test``.

    The info's ``source["names"]`` says what the first number of each of ``objects`` stands for.

    Args:
      out: folder of the TFDS dataset to make, or an ``.npz`` file (held in memory, no TFDS needed).
      frames, test_frames: per split; the last episode is cut there.
      progress: called with the split, the frames written and the frames expected.

    Raises:
      FileExistsError: ``out`` is there and ``overwrite`` is False.
      ModuleNotFoundError: vizdoom or tensorflow-datasets is missing.
      ValueError: no such scenario; a split of fewer frames than a record.
    """
    if min(frames, test_frames) < records.minimum:
        raise ValueError(
            f"make_doom: {frames} frames, {test_frames} test_frames; give each {records.minimum} or more."
        )
    check_out(Path(out), overwrite)
    actions = doom.action_names(config)
    sizes = {"train": frames, "test": test_frames}
    mixes = {"train": (doom.TRAIN, 2 * seed), "test": (doom.TEST, 2 * seed + 1)}
    names: list[str] = []  # filled while the episodes are played, and stored after them
    splits = {
        split: doom.episodes(config, mixes[split][0], frames=count, seed=mixes[split][1], names=names)
        for split, count in sizes.items()
    }
    versions = {"vizdoom": metadata.version("vizdoom")}
    info = DataInfo(
        name=f"doom_{config.scenario}", kind="doom", height=config.size, width=config.size, channels=3,
        fps=config.fps, action=ActionConfig("discrete", len(actions), actions), keys=(), splits={}, mean=(),
        std=(), source={**dataclasses.asdict(config), "seed": seed, "names": names, **versions},
    )  # fmt: skip
    return write_dataset(
        out, splits, info, records=records, expected=sizes, overwrite=overwrite, progress=progress
    )


def make_sprites(
    out: str | Path,
    *,
    config: sprites.SpriteConfig = sprites.SpriteConfig(),
    episodes: int = 1000,
    test_episodes: int = 100,
    length: int = 64,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DataInfo:
    """Store the sprite world: split ``train``, half its episodes with actions drawn anew each frame and
    half with held ones, and ``test`` under other seeds and another hold.

    Args:
      out: folder of the TFDS dataset to make, or an ``.npz`` file (held in memory, no TFDS needed).
      length: frames of an episode.
      progress: called with the split, the frames written and the frames expected.

    Raises:
      ValueError: a length under the fewest frames of a record, or no episodes.
      FileExistsError: ``out`` is there and ``overwrite`` is False.
      ModuleNotFoundError: tensorflow-datasets is missing and ``out`` is a folder.
    """
    least = RecordConfig().minimum
    if length < least or min(episodes, test_episodes) < 1:
        raise ValueError(
            f"make_sprites: length {length}, episodes {episodes}, test_episodes {test_episodes}; records "
            f"have {least} frames or more and each split an episode: try --length {max(length, least)}."
        )
    check_out(Path(out), overwrite)
    half = episodes // 2
    train = itertools.chain(
        sprites.episodes(config, count=episodes - half, length=length, seed=3 * seed),
        sprites.episodes(config, count=half, length=length, seed=3 * seed + 1, hold=4),
    )
    test = sprites.episodes(config, count=test_episodes, length=length, seed=3 * seed + 2, hold=2)
    entropy = {} if config.falling else {"next_entropy": sprites.next_entropy(config)}
    info = DataInfo(
        name="sprites", kind="sprites", height=config.size, width=config.size, channels=3, fps=10.0,
        action=ActionConfig("discrete", len(sprites.ACTIONS), sprites.ACTIONS), keys=(), splits={}, mean=(),
        std=(), source={**dataclasses.asdict(config), "seed": seed, **entropy},
    )  # fmt: skip
    expected = {"train": episodes * length, "test": test_episodes * length}
    return write_dataset(
        out, {"train": train, "test": test}, info,
        expected=expected, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def make_recall(
    out: str | Path,
    *,
    config: recall.RecallConfig = recall.RecallConfig(),
    episodes: int = 2000,
    test_episodes: int = 100,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DataInfo:
    """Store the recall world: splits ``train`` and, under other seeds, ``test``, whose episodes are all of
    full length; an episode is a record.

    Args:
      out: folder of the TFDS dataset to make, or an ``.npz`` file (held in memory, no TFDS needed).
      progress: called with the split, the frames written and the frames expected.

    Raises:
      ValueError: no episodes.
      FileExistsError: ``out`` is there and ``overwrite`` is False.
      ModuleNotFoundError: tensorflow-datasets is missing and ``out`` is a folder.
    """
    if min(episodes, test_episodes) < 1:
        raise ValueError(
            f"make_recall: episodes {episodes}, test_episodes {test_episodes}; give each split one."
        )
    check_out(Path(out), overwrite)
    full = dataclasses.replace(config, shortest=config.length)
    splits = {
        "train": recall.episodes(config, count=episodes, seed=2 * seed),
        "test": recall.episodes(full, count=test_episodes, seed=2 * seed + 1),
    }
    info = DataInfo(
        name="recall", kind="recall", height=config.size, width=config.size, channels=3, fps=10.0,
        action=ActionConfig(), keys=(), splits={}, mean=(), std=(),
        source={**dataclasses.asdict(config), "seed": seed},
    )  # fmt: skip
    return write_dataset(
        out, splits, info, records=RecordConfig(size=config.length, minimum=config.shortest),
        expected={"test": test_episodes * config.length}, overwrite=overwrite, progress=progress,
    )  # fmt: skip
