"""Recordings of your own at 64x64, without actions, sized for two CPU cores.

    worldsim data import recordings --out data/video --fps 15
    worldsim train configs/video.py --workdir runs/video

Cost on two CPU cores: some 8 minutes for the tokenizer, 4 for the refinement and 75 for the dynamics, as for
the first world of Pong, whose sizes it has (that one trained with Adam and without ``around``). How good the
world becomes depends on the recordings; there is no score to compare with. A few minutes of one scene are
learned by heart, varied film is more than a world of this size can hold.
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


def get_config() -> TrainConfig:
    """A world of 64x64 frames, one frame a chunk, that plays by itself."""
    return TrainConfig(
        name="video",
        world=WorldConfig(
            tokenizer=TokenizerConfig(
                height=64, width=64, haar_levels=2, widths=(64, 128), blocks=2, quantizer="vq"
            ),
            dynamics=DynamicsConfig(width=192, layers=4, heads=6, mlp=768, patch=2, around=True),
            fps=15.0,
        ),
        data=DataConfig(path="data/video"),
        tokenizer=StageConfig(
            steps=5000,
            batch=16,
            frames=2,
            optim=OptimConfig(learning_rate=2e-3, warmup=100, ema=0.998),
            log_every=50,
            sample_every=1000,
        ),
        dynamics=StageConfig(
            steps=4000,
            batch=8,
            frames=24,
            optim=OptimConfig(optimizer="muon", learning_rate=6e-3, warmup=50, ema=0.998),
            save_every=200,
        ),
        tokenizer_loss=TokenizerLossConfig(rarity=1.0, crop=32, commitment=0.1),
        mix=MixConfig(chunks=16, queries=8, forward=0.45, backward=0.20),
    )
