"""``worldsim bench loader``: clips a second from a dataset on disk to batches in memory.

The workload is a dataset of the sprite world, made for the run: uint8 frames and actions, read in shuffled
clips of 16 frames. The note says how many come from arrays in memory without threads, and how many could be
copied. A rate, unlike costs, has no floor and no baseline to be divided by.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worldsim.bench.rows import Row, clock_of, interleaved, machine
from worldsim.data.loader import Loader
from worldsim.data.make import make_sprites
from worldsim.data.source import export_arrays, open_source
from worldsim.data.sprites import SpriteConfig
from worldsim.progress import Counter


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      side: of a frame in pixels.
      frames: of a clip.
      batch: clips of a batch.
      episodes: of the dataset, each ``length`` frames long.
      length: see ``episodes``.
      steps: batches per measurement.
      rounds: how often each case runs.
    """

    side: int = 64
    frames: int = 16
    batch: int = 16
    episodes: int = 200
    length: int = 64
    steps: int = 40
    rounds: int = 5


FULL = Sizes()
QUICK = Sizes(side=16, frames=4, batch=2, episodes=4, length=32, steps=4, rounds=1)


def read(loader: Loader, steps: int) -> None:
    """Take so many batches and look at none of them."""
    with contextlib.closing(loader.iterate()) as batches:
        for _ in range(steps):
            next(batches)


def measure(sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what measured them."""
    clock, unit = clock_of("cpu")
    tell, clips = Counter("measuring"), sizes.steps * sizes.batch
    tell("loader", 0, 2)
    with tempfile.TemporaryDirectory(prefix="worldsim-bench-") as folder:
        on_disk, whole = Path(folder) / "sprites", Path(folder) / "sprites.npz"
        make_sprites(
            on_disk, config=SpriteConfig(size=sizes.side), episodes=sizes.episodes, test_episodes=1,
            length=sizes.length,
        )  # fmt: skip
        export_arrays(on_disk, whole)
        tell("loader", 1, 2)
        cases: dict[str, Callable[[], Any]] = {}
        for name, path, threads in (("records", on_disk, 2), ("arrays", whole, 0)):
            source = open_source(path, "train", cache=0)
            loader = Loader(source, frames=sizes.frames, batch=sizes.batch, seed=0, threads=threads)
            cases[name] = partial(read, loader, sizes.steps)
        batch = np.full((clips, sizes.frames, sizes.side, sizes.side, 3), 1, np.uint8)
        cases["copy"] = batch.copy
        for case in cases.values():
            case()
        costs = interleaved(cases, rounds=sizes.rounds, clock=clock)
    tell("loader", 2, 2)
    rates = {name: clips / max(seconds, 1e-9) for name, seconds in costs.items()}
    row = Row(
        "loader_clips_per_cpu_s",
        rates["records"],
        f"clips a {unit}",
        note=f"more is better; {sizes.frames} frames of {sizes.side}x{sizes.side} from ArrayRecord files; "
        f"from arrays in memory {rates['arrays']:.0f}; copied {rates['copy']:.0f}",
    )
    return [row], machine(jax.devices()[:1])
