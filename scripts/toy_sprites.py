"""A small dynamics on a free sprite's true places as codes: a bed to measure generation on without pictures.

A frame is two codes, the sprite's column and its row; what is generated can be read as states without a
decoder, and how likely the next frame can be made at best is known. Five minutes on one core.
"""

from pathlib import Path

import jax
import numpy as np

from worldsim.config import (
    DataConfig,
    DynamicsConfig,
    MixConfig,
    OptimConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
    WorldConfig,
)
from worldsim.data import sprites
from worldsim.data.arrays import ArraySource
from worldsim.data.sprites import SpriteConfig
from worldsim.generate.extend import World
from worldsim.models.world import init_params
from worldsim.train.loop import train_stage
from worldsim.train.stages import dynamics_stage

TOY = SpriteConfig(size=11, side=3, sprites=2, push=1)
"""Nine places along each axis; along it a sprite is back after 8 frames at speed 2, else after 16."""


def toy_config(*, steps: int = 4000, batch: int = 32) -> TrainConfig:
    """Two codes a frame, nine values each; context and pins as the bundled worlds have them."""
    tokenizer = TokenizerConfig(height=8, width=16, widths=(8, 16), blocks=1, levels=(3, 3))
    dynamics = DynamicsConfig(width=64, layers=3, heads=2, mlp=192)
    optim = OptimConfig(learning_rate=2e-3, warmup=100, ema=0.995)
    return TrainConfig(
        name="toy",
        world=WorldConfig(tokenizer, dynamics),
        data=DataConfig(threads=0),
        dynamics=StageConfig(
            steps=steps, batch=batch, frames=40, optim=optim, log_every=100, save_every=0, sample_every=0
        ),
        mix=MixConfig(chunks=16, queries=8),
    )


def true_places(count: int, length: int, *, seed: int, config: SpriteConfig = TOY) -> np.ndarray:
    """Places ``[n t k 2]`` of the free sprites of episodes; nothing is drawn."""
    out = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        states = [sprites.reset(config, rng)]
        for _ in range(length - 1):
            states.append(sprites.step(config, states[-1], 0, rng))
        out.append(np.stack(states)[:, 1:, :2])
    return np.stack(out)


def train_toy(folder: str | Path, config: TrainConfig | None = None, *, episodes: int = 1000) -> World:
    """Train on episodes of 64 frames and save the world to ``folder``; its tokenizer is left untrained."""
    config, folder = config or toy_config(), Path(folder)
    codes = true_places(episodes, 64, seed=0).astype(np.int32)
    source = ArraySource({"codes": codes}, keys=None)
    params = train_stage(dynamics_stage(config, source), folder / "run", seed=0, config=config).ema
    tokenizer = init_params("tokenizer", config.world, jax.random.key(0))
    world = World.make(config.world, {"tokenizer": tokenizer, "dynamics": params})
    world.save(folder / "world")
    return world
