"""A tiny stage for tests of the loop: a linear model on data that is a function of the step.

Run as a script it trains: ``python fake_stage.py WORKDIR STEPS KILL_AT`` kills itself at a step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from worldsim.config import OptimConfig, StageConfig, TrainConfig
from worldsim.train.loop import train_stage
from worldsim.train.state import Stage

CONFIG = StageConfig(
    steps=4, batch=4, frames=1, optim=OptimConfig(warmup=2), log_every=1, save_every=2, sample_every=0
)


def make_stage(
    config: StageConfig = CONFIG, *, hook=None, traces=None, width: int = 4, samples=None
) -> Stage:
    """``hook(step, batch)`` sees, and may change, each host batch; ``traces`` collects traces of the loss."""

    def init(key):
        return {
            "head": {
                "kernel": jax.random.normal(key, (width, 8)),
                "bias": jnp.zeros((8,)),
            }
        }

    def loss(params, frozen, batch, key, _step):
        if traces is not None:
            traces.append(1)
        noise = jax.random.normal(key, batch["x"].shape)
        out = (batch["x"] + 0.1 * noise) @ params["head"]["kernel"] + params["head"]["bias"]
        value = jnp.mean((out - frozen["target"]) ** 2)
        return value, {"noise": jnp.mean(noise)}

    def batches(start):
        step = start
        while True:
            x = np.random.default_rng((7, step)).normal(size=(config.batch, width)).astype(np.float32)
            batch = {"x": x}
            if hook is not None:
                batch = hook(step, batch)
            yield batch
            step += 1

    return Stage(
        name="fake",
        config=config,
        init=init,
        loss=loss,
        batches=batches,
        frozen={"target": np.ones((8,), np.float32)},
        samples=samples,
    )


def main(workdir: str, steps: str, kill_at: str) -> None:
    import dataclasses

    def hook(step, batch):
        if step == int(kill_at):
            # The checkpoint of step 2 is written in the background: let it land, then die.
            folder = Path(workdir) / "fake" / "checkpoints" / "2"
            while int(kill_at) > 2 and not folder.is_dir():
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    stage = make_stage(dataclasses.replace(CONFIG, steps=int(steps)), hook=hook)
    train_stage(stage, workdir, seed=3, config=TrainConfig())


if __name__ == "__main__":
    main(*sys.argv[1:])
