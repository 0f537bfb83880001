"""The sprite world at 32x32 with five actions, sized for two CPU cores.

    worldsim data make sprites --out data/sprites
    worldsim train configs/sprites.py --workdir runs/sprites

Cost with ``--mesh data=2`` on two CPU cores, where nothing else runs: 2 minutes for the tokenizer, 4 for the
refinement, and for the dynamics 0.28 seconds a step of short sequences and 0.55 of long ones. The bundled
world ``sprites`` is this run; beside other work it took 88 minutes in all.
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

ACTIONS = ("none", "left", "right", "up", "down")


def get_config() -> TrainConfig:
    """A world of sprites: 16x16 codes of 2x2 pixels a frame, four codes a token."""
    return TrainConfig(
        name="sprites",
        world=WorldConfig(
            tokenizer=TokenizerConfig(
                height=32, width=32, haar_levels=1, widths=(64,), quantizer="vq", codes=512
            ),
            dynamics=DynamicsConfig(
                width=96,
                layers=3,
                heads=3,
                mlp=384,
                patch=2,
                around=True,
                context=11,
                action=ActionConfig("discrete", 5, ACTIONS),
            ),
            fps=10.0,
        ),
        data=DataConfig(path="data/sprites"),
        tokenizer=StageConfig(
            steps=1500,
            batch=16,
            frames=3,
            optim=OptimConfig(learning_rate=2e-3, warmup=100, ema=0.998),
            log_every=50,
        ),
        dynamics=StageConfig(
            steps=11000,
            batch=8,
            frames=24,
            optim=OptimConfig(optimizer="muon", learning_rate=6e-3, warmup=50, ema=0.998),
            log_every=50,
        ),
        refine=StageConfig(
            steps=400,
            batch=8,
            frames=4,
            optim=OptimConfig(learning_rate=1e-3, warmup=50, ema=0.995),
            log_every=50,
        ),
        tokenizer_loss=TokenizerLossConfig(crop=16, commitment=0.1),
        mix=MixConfig(
            chunks=12, queries=6, forward=0.45, backward=0.2, null_actions=0.2, clean=0.8, gaps=0.2
        ),
        looks=96,
        curriculum=(PhaseConfig(share=0.81, chunks=6, queries=4, frames=24, rope_base=1000.0),),
    )
