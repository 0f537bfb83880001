"""Frozen dataclass configs: what a world is made of and how it is trained."""

from worldsim.config.train import (
    DataConfig,
    MixConfig,
    OptimConfig,
    StageConfig,
    TokenizerLossConfig,
    TrainConfig,
)
from worldsim.config.world import (
    ActionConfig,
    ConditionConfig,
    DynamicsConfig,
    TokenizerConfig,
    WorldConfig,
)

__all__ = [
    "ActionConfig",
    "ConditionConfig",
    "DataConfig",
    "DynamicsConfig",
    "MixConfig",
    "OptimConfig",
    "StageConfig",
    "TokenizerConfig",
    "TokenizerLossConfig",
    "TrainConfig",
    "WorldConfig",
]
