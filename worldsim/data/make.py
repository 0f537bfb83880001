"""Make the datasets that worldsim generates itself: Atari play and the sprite world."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path

from worldsim.config import ActionConfig
from worldsim.data import ale
from worldsim.data.builders import Progress, RecordConfig, load_tfds, refuse_overwrite, write_dataset
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

    Raises:
      FileExistsError: ``out`` holds something and ``overwrite`` is False.
      ModuleNotFoundError: gymnasium and ale-py, or tensorflow-datasets, are missing.
    """
    load_tfds()
    refuse_overwrite(Path(out), overwrite)
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
