"""Pong at 64x64 with six actions, sized for two CPU cores.

    worldsim data make ale --game pong --out data/pong
    worldsim train configs/pong.py --workdir runs/pong

Cost with ``--mesh data=2`` on two CPU cores when nothing else runs: about 15 minutes for the tokenizer (49.9
dB; the ball in 98.8 % of the held-out frames that have one), 4 for the refinement, and for the dynamics 0.42
seconds a step of short sequences and 0.95 of long ones.
The bundled world ``pong`` is this run; its length was cut from 9000 to 8000 steps at step 5909.
"""

from worldsim.config import (
    ActionConfig,
    DataConfig,
    DynamicsConfig,
    MixConfig,
    OptimConfig,
    PhaseConfig,
    StageConfig,
    TokenizerConfig,
    TokenizerLossConfig,
    TrainConfig,
    WorldConfig,
)

ACTIONS = ("noop", "fire", "right", "left", "rightfire", "leftfire")


def get_config() -> TrainConfig:
    """A world of Pong: 8x8 codes of 8x8 pixels a frame, four codes a token."""
    return TrainConfig(
        name="pong",
        world=WorldConfig(
            tokenizer=TokenizerConfig(
                height=64, width=64, haar_levels=2, widths=(64, 128), blocks=2, quantizer="vq"
            ),
            dynamics=DynamicsConfig(
                width=192,
                layers=4,
                heads=6,
                mlp=768,
                patch=2,
                around=True,
                action=ActionConfig("discrete", 6, ACTIONS),
                outcomes=("rewards", "ends"),
            ),
            fps=15.0,
        ),
        data=DataConfig(path="data/pong"),
        tokenizer=StageConfig(
            steps=5000,
            batch=16,
            frames=3,
            optim=OptimConfig(learning_rate=2e-3, warmup=100, ema=0.998),
            log_every=50,
            save_every=500,
            sample_every=1000,
        ),
        dynamics=StageConfig(
            steps=8000,
            batch=8,
            frames=40,
            optim=OptimConfig(optimizer="muon", learning_rate=6e-3, warmup=50, ema=0.998),
            log_every=20,
            save_every=200,
            sample_every=400,
        ),
        refine=StageConfig(
            steps=1000,
            batch=8,
            frames=4,
            optim=OptimConfig(learning_rate=1e-3, warmup=100, ema=0.998),
            log_every=50,
        ),
        tokenizer_loss=TokenizerLossConfig(crop=32, commitment=0.1),
        mix=MixConfig(chunks=16, queries=11, forward=0.45, backward=0.20),
        looks=96,
        curriculum=(PhaseConfig(share=0.75, chunks=6, queries=4, frames=40, rope_base=1000.0),),
    )
