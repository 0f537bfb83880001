"""The recall world at 8x8: colours shown once and asked for up to 287 frames later, sized for two CPU cores.

    worldsim data make recall --out data/recall
    worldsim train configs/recall.py --workdir runs/recall
    python scripts/recall.py runs/recall/world

A frame is one token of four codes. Episodes are 12 to 288 frames long, most of them short, and packed into
rows of 288: to look a colour up is learnt among few and holds among many.

With ``--mesh data=2`` it takes seven minutes on two CPU cores where nothing else runs, and answers all 2400
questions of the held-out episodes right, at every distance.
"""

from worldsim.config import (
    DataConfig,
    DynamicsConfig,
    MixConfig,
    OptimConfig,
    StageConfig,
    TokenizerConfig,
    TokenizerLossConfig,
    TrainConfig,
    WorldConfig,
)

LENGTH = 288


def get_config() -> TrainConfig:
    """A world that remembers."""
    return TrainConfig(
        name="recall",
        world=WorldConfig(
            tokenizer=TokenizerConfig(
                height=8, width=8, haar_levels=2, widths=(64,), neighbours=False, quantizer="vq", codes=64
            ),
            dynamics=DynamicsConfig(
                width=128, layers=3, heads=4, mlp=512, patch=2, context=LENGTH - 1, rope_base=1000.0
            ),
            fps=10.0,
        ),
        data=DataConfig(path="data/recall"),
        tokenizer=StageConfig(
            steps=1000,
            batch=64,
            frames=16,
            optim=OptimConfig(learning_rate=2e-3, warmup=50, ema=0.99),
            log_every=50,
        ),
        dynamics=StageConfig(
            steps=1000,
            batch=8,
            frames=LENGTH,
            optim=OptimConfig(optimizer="muon", learning_rate=6e-3, warmup=50, ema=0.995),
            log_every=50,
            sample_every=0,
        ),
        refine=StageConfig(steps=100, batch=8, frames=4, log_every=50),
        tokenizer_loss=TokenizerLossConfig(commitment=0.1),
        mix=MixConfig(
            chunks=LENGTH, queries=240, forward=1.0, backward=0.0, infill=0.0, shuffled=0.0, keyframes=0.0,
            clean=1.0, segments=12,
        ),
    )  # fmt: skip
