"""How a world is trained."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal, get_args

from worldsim.config.world import WorldConfig
from worldsim.plain import added, check_ranges, freeze

NATURAL, SHARE = "[1, inf)", "[0, 1]"

Remat = Literal["none", "layer", "attention"]
"""What is computed anew in the backward pass; see :class:`StageConfig`."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW or Muon with warm-up, a schedule, clipping and a moving average of the weights.

    Attributes:
      optimizer: ``adamw`` for all parameters, or ``muon`` for the matrices of the hidden layers and AdamW for
        the rest.
      learning_rate: peak.
      warmup: steps of linear warm-up.
      schedule: ``wsd`` (warm-up, stable, linear decay over the last ``decay`` share) or ``cosine``.
      decay: share of all steps in which ``wsd`` falls to zero.
      weight_decay: decoupled, on matrices only.
      clip: global gradient norm.
      b1, b2: moment decay rates.
      ema: decay of the averaged weights (they are what is shipped).
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay: float = 0.3
    weight_decay: float = 0.01
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    ema: float = 0.999

    def __post_init__(self) -> None:
        if self.schedule not in ("wsd", "cosine"):
            raise ValueError(f"OptimConfig: schedule {self.schedule!r}; take 'wsd' or 'cosine'.")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"OptimConfig: optimizer {self.optimizer!r}; take 'adamw' or 'muon'.")
        check_ranges(self, **{"[0, inf)": ("learning_rate", "warmup", "weight_decay"), "(0, inf)": ("clip",)})
        check_ranges(self, **{SHARE: ("decay",), "[0, 1)": ("b1", "b2", "ema")})


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """How long and on what one stage trains.

    Attributes:
      steps: optimizer steps.
      batch: clips per step, over all processes.
      frames: frames per clip that the loader cuts.
      optim: optimizer.
      log_every, save_every, sample_every: in steps; 0 turns the last two off.
      remat: what the dynamics' layers compute anew in the backward pass instead of keeping it: ``none``;
        ``layer``, all but their inputs, which takes the least memory; or ``attention``, all but their inputs
        and what attention gave, which costs the time of the projections alone.
    """

    steps: int = 1000
    batch: int = 8
    frames: int = 1
    optim: OptimConfig = OptimConfig()
    log_every: int = 20
    save_every: int = 500
    sample_every: int = 500
    remat: Remat = "none"

    def __post_init__(self) -> None:
        if self.remat not in get_args(Remat):
            raise ValueError(f"StageConfig: remat {self.remat!r}; take one of {list(get_args(Remat))}.")
        counts = ("steps", "batch", "frames", "log_every")
        check_ranges(self, **{NATURAL: counts, "[0, inf)": ("save_every", "sample_every")})


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
    """Weights of the tokenizer's loss terms, each on frames scaled to [-1, 1].

    Attributes:
      charbonnier, haar, temporal, ms_ssim: reconstruction terms.
      rarity: weight of the squared error where truth or output differs from the data's median frame;
        without it small moving things vanish.
      commitment: weight of ``|z - q|^2``.
      continuous: share of samples that the decoder draws from z instead of q.
      soft: share that it draws from the unrounded q, through which the encoder learns where to put
        small things before rounding can hide them; of VQ that is z itself.
      crop: side in pixels of the squares trained on, cut around what differs from the median frame; a
        multiple of the tokenizer's stride, or 0 for whole frames.
    """

    charbonnier: float = 1.0
    haar: float = 0.5
    temporal: float = 0.5
    ms_ssim: float = 0.1
    rarity: float = 100.0
    commitment: float = 0.02
    continuous: float = 0.1
    soft: float = 0.2
    crop: int = 0

    def __post_init__(self) -> None:
        terms = ("charbonnier", "haar", "temporal", "ms_ssim", "rarity", "commitment", "crop")
        check_ranges(self, **{"[0, inf)": terms, SHARE: ("continuous", "soft")})
        if self.continuous + self.soft > 1:
            raise ValueError(
                f"TokenizerLossConfig: continuous {self.continuous} and soft {self.soft} exceed 1 together."
            )


@dataclasses.dataclass(frozen=True)
class RefineLossConfig:
    """How the refinement head is trained.

    Attributes:
      noise_mean, noise_std: of the logarithm of the noise level.
      null: share of clips trained without their codes, for guidance.
    """

    noise_mean: float = -0.4
    noise_std: float = 1.2
    null: float = 0.1

    def __post_init__(self) -> None:
        check_ranges(self, **{"(0, inf)": ("noise_std",), "[0, 1)": ("null",)})


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """The order mix and the noise of dynamics training.

    Attributes:
      chunks: chunks per row of training, the known ones included; at most ``context + 1``.
      queries: chunks of them that carry loss; in packed rows and beside a long suffix, as many as there are
        with something before them.
      segments: most clips that are packed into a row, each with a plan of its own. With 1, recordings that
        are shorter than a row are skipped; with more they are used, and what they leave of it is padding.
      forward, backward, infill, shuffled, keyframes: shares of the generation orders.
      null_actions: share of samples that lose their actions, half of them only from some row on.
      null_conditions: share of samples trained without conditions.
      clean: share of chunks in the known stream that are left uncorrupted.
      gaps: share of forward and backward plans that leave out chunks after their first ones, as many as the
        clip has left over: what a rollout with sinks sees.
      resampled: share of the chunks that carry loss which those after them see as the model itself draws
        them, from the share ``resampled_from`` of the steps on. It costs a forward pass.
      resampled_from: see there.
    """

    chunks: int = 16
    queries: int = 6
    segments: int = 1
    forward: float = 0.55
    backward: float = 0.10
    infill: float = 0.20
    shuffled: float = 0.10
    keyframes: float = 0.05
    null_actions: float = 0.15
    null_conditions: float = 0.15
    clean: float = 0.5
    gaps: float = added(0.0)
    resampled: float = added(0.0)
    resampled_from: float = added(0.7)

    def __post_init__(self) -> None:
        shares = ("forward", "backward", "infill", "shuffled", "keyframes")
        others = ("null_actions", "null_conditions", "clean", "gaps", "resampled", "resampled_from")
        check_ranges(self, **{SHARE: (*shares, *others)})
        total = self.forward + self.backward + self.infill + self.shuffled + self.keyframes
        if abs(total - 1) > 1e-6:
            raise ValueError(f"MixConfig: the shares of the orders sum to {total:.4f}; make them sum to 1.")
        check_ranges(self, **{NATURAL: ("segments",)})
        if not 1 <= self.queries < self.chunks:
            raise ValueError(
                f"MixConfig: {self.queries} query chunks of {self.chunks}; take from 1 to {self.chunks - 1}."
            )


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """A part of the dynamics' training with other sequences than at its end.

    Attributes:
      share: of the optimizer steps.
      chunks, queries: as in :class:`MixConfig`.
      frames, batch: as in :class:`StageConfig`; without a batch, it is the stage's.
      rope_base: as in :class:`worldsim.config.DynamicsConfig`.
    """

    share: float
    chunks: int
    queries: int
    frames: int
    rope_base: float
    batch: int | None = None

    def __post_init__(self) -> None:
        sizes = ("chunks", "queries", "frames") + (() if self.batch is None else ("batch",))
        check_ranges(self, **{NATURAL: sizes, "(0, 1]": ("share",)})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where clips come from.

    Attributes:
      path: folder of a prepared dataset, an ``.npz`` with arrays ``[episodes, t, ...]``, or ``tfds:NAME``.
      split, eval_split: names of the splits.
      threads: read threads of the loader.
    """

    path: str = "data/pong"
    split: str = "train"
    eval_split: str = "test"
    threads: int = 2


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a training run needs; a file in ``configs/`` returns one.

    ``looks`` are the hidden channels of a network by which the dynamics, while it trains, reads and tells
    codes by their vectors in the codebook, beside what it learns of each (:mod:`worldsim.train.looks`); 0 is
    none.

    ``curriculum`` is what the dynamics begins with, phase by phase: shorter sequences, as a rule, and a lower
    rotary base. What the config itself says is the last phase and what the world becomes, and
    ``dynamics.steps`` counts the steps of all (see :func:`worldsim.config.lengthen`).
    """

    name: str = "world"
    seed: int = 0
    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)
    data: DataConfig = DataConfig()
    tokenizer: StageConfig = StageConfig()
    dynamics: StageConfig = StageConfig(frames=16)
    refine: StageConfig = StageConfig(frames=4)
    tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()
    refine_loss: RefineLossConfig = RefineLossConfig()
    mix: MixConfig = MixConfig()
    curriculum: tuple[PhaseConfig, ...] = ()
    looks: int = added(0)

    @property
    def phases(self) -> tuple[tuple[int, TrainConfig], ...]:
        """The step at which each phase of the dynamics' training ends, and the config that it trains by."""
        parts = [(end, self.during(phase)) for end, phase in zip(self._ends, self.curriculum, strict=True)]
        return (*parts, (self.dynamics.steps, self))

    @property
    def _ends(self) -> list[int]:
        """The steps at which the phases of the curriculum end."""
        ends = itertools.accumulate(phase.share for phase in self.curriculum)
        return [round(end * self.dynamics.steps) for end in ends]

    def during(self, phase: PhaseConfig, *, context: int | None = None) -> TrainConfig:
        """The config of a phase: of all steps, with its sequences; the context is theirs if none is given.

        Short sequences know a suffix of half their chunks at most.
        """
        context = phase.chunks - 1 if context is None else context
        pinned = max(1, min(self.world.dynamics.pinned, phase.chunks // 2))
        dynamics = dataclasses.replace(
            self.world.dynamics, context=context, pinned=pinned, rope_base=phase.rope_base
        )
        return dataclasses.replace(
            self,
            curriculum=(),
            world=dataclasses.replace(self.world, dynamics=dynamics),
            mix=dataclasses.replace(self.mix, chunks=phase.chunks, queries=phase.queries),
            dynamics=dataclasses.replace(
                self.dynamics, frames=phase.frames, batch=phase.batch or self.dynamics.batch
            ),
        )

    def __post_init__(self) -> None:
        freeze(self)
        check_ranges(self, **{"[0, inf)": ("looks", "seed")})
        before = sum(phase.share for phase in self.curriculum)
        if before >= 1:
            raise ValueError(
                f"TrainConfig: the phases of the curriculum take {before:.4f} of the steps; leave some "
                "for the last phase, which is the config's own."
            )
        ends = [*self._ends, self.dynamics.steps]
        if any(end <= begin for begin, end in itertools.pairwise((0, *ends))):
            raise ValueError(
                f"TrainConfig: the phases end at steps {ends}; give each a step or more, by more "
                "dynamics.steps or other shares of the curriculum."
            )
        for number, phase in enumerate(self.curriculum):
            try:
                self.during(phase)
            except ValueError as error:
                raise ValueError(f"curriculum, phase {number}: {error}") from error
        f = self.world.tokenizer.frames_per_chunk
        crop, stride = self.tokenizer_loss.crop, self.world.tokenizer.stride
        if crop % stride or not 0 <= crop <= min(self.world.tokenizer.height, self.world.tokenizer.width):
            raise ValueError(
                f"TrainConfig: tokenizer_loss.crop {crop}; take a multiple of the stride {stride} up to the "
                f"frame's shorter side, such as {4 * stride}, or 0 for whole frames."
            )
        if self.mix.chunks > self.world.dynamics.context + 1:
            raise ValueError(
                f"TrainConfig: mix.chunks {self.mix.chunks} needs dynamics.context >= {self.mix.chunks - 1}; "
                f"it is {self.world.dynamics.context}."
            )
        if self.mix.gaps and self.dynamics.frames <= self.mix.chunks * f:
            raise ValueError(
                f"TrainConfig: mix.gaps {self.mix.gaps}, but plans of {self.mix.chunks} chunks leave nothing "
                f"out of dynamics.frames {self.dynamics.frames}; raise these."
            )
        if self.dynamics.frames < self.mix.chunks * f:
            raise ValueError(
                f"TrainConfig: dynamics.frames {self.dynamics.frames} is less than mix.chunks "
                f"{self.mix.chunks} x frames_per_chunk {f}; raise it to at least {self.mix.chunks * f}."
            )
        if other := [name for name in ("tokenizer", "refine") if getattr(self, name).remat != "none"]:
            raise ValueError(f"TrainConfig: {' and '.join(other)} with remat; only the dynamics has it.")
        frames = {name: getattr(self, name).frames for name in ("tokenizer", "dynamics", "refine")}
        if odd := [f"{name}.frames {count}" for name, count in frames.items() if count % f]:
            raise ValueError(f"TrainConfig: {', '.join(odd)} must divide by frames_per_chunk {f}.")
