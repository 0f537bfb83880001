"""Frozen dataclass configs: what a world is made of and how it is trained."""

from worldsim.config.curriculum import lengthen
from worldsim.config.train import (
    DataConfig,
    MixConfig,
    OptimConfig,
    PhaseConfig,
    RefineLossConfig,
    Remat,
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
    "PhaseConfig",
    "RefineConfig",
    "RefineLossConfig",
    "Remat",
    "StageConfig",
    "TokenizerConfig",
    "TokenizerLossConfig",
    "TrainConfig",
    "WorldConfig",
    "lengthen",
]
