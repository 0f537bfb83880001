"""Frozen dataclass configs: what a world is made of and how it is trained."""

from worldsim.config.train import (
    DataConfig,
    MixConfig,
    OptimConfig,
    RefineLossConfig,
    StageConfig,
    TokenizerLossConfig,
    TrainConfig,
)
from worldsim.config.world import (
    ActionConfig,
    ConditionConfig,
    DynamicsConfig,
    RefineConfig,
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
    "RefineConfig",
    "RefineLossConfig",
    "StageConfig",
    "TokenizerConfig",
    "TokenizerLossConfig",
    "TrainConfig",
    "WorldConfig",
]
