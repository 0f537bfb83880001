"""A room of Doom at 64x64, seen from within, with six actions: textures that codes cannot hold.

    worldsim data make doom --scenario health_gathering --out data/doom
    worldsim train configs/doom.py --workdir runs/doom

Cost on two CPU cores: about 8 minutes for the tokenizer (28.8 dB from codes), 7 for the refinement and 25 for
the dynamics. The bundled world ``doom`` is this run.
"""

from worldsim.config import (
    ActionConfig,
    DataConfig,
    DynamicsConfig,
    MixConfig,
    OptimConfig,
    RefineConfig,
    StageConfig,
    TokenizerConfig,
    TokenizerLossConfig,
    TrainConfig,
    WorldConfig,
)

ACTIONS = (
    "noop", "move_forward", "turn_left", "turn_right", "move_forward+turn_left", "move_forward+turn_right",
)  # fmt: skip


def get_config() -> TrainConfig:
    """A world of one scenario, with detail for the refinement head to draw."""
    tokenizer = TokenizerConfig(
        height=64, width=64, haar_levels=2, widths=(64, 128), cell_local=False, latent=16, quantizer="vq"
    )
    actions = ActionConfig("discrete", len(ACTIONS), ACTIONS)
    return TrainConfig(
        name="doom",
        world=WorldConfig(
            tokenizer=tokenizer,
            dynamics=DynamicsConfig(width=192, layers=4, heads=6, mlp=768, patch=2, action=actions),
            refine=RefineConfig(width=96, layers=3, heads=4, mlp=192),
            fps=8.75,
        ),
        data=DataConfig(path="data/doom"),
        tokenizer=StageConfig(
            steps=4000,
            batch=16,
            frames=3,
            optim=OptimConfig(learning_rate=2e-3, warmup=100, ema=0.998),
            log_every=50,
        ),
        refine=StageConfig(
            steps=3000,
            batch=8,
            frames=4,
            optim=OptimConfig(learning_rate=1e-3, warmup=100, ema=0.998),
            log_every=50,
        ),
        dynamics=StageConfig(
            steps=1600,
            batch=8,
            frames=24,
            optim=OptimConfig(optimizer="muon", learning_rate=6e-3, warmup=50, ema=0.998),
            log_every=20,
        ),
        tokenizer_loss=TokenizerLossConfig(crop=32, rarity=4.0, commitment=0.1, continuous=0.4, soft=0.0),
        mix=MixConfig(chunks=16, queries=8),
    )
