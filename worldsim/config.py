"""Frozen dataclass configs: what a world is made of and how it is trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ActionConfig:
    """What leads from one frame to the next.

    Attributes:
      kind: ``discrete`` (int32 ``[t]``), ``continuous`` (float32 ``[t a]``) or ``none``.
      size: number of discrete actions, or length of the continuous vector.
      names: names of the discrete actions, in order; may be empty.
    """

    kind: Literal["none", "discrete", "continuous"] = "none"
    size: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "none") != (self.size == 0):
            raise ValueError(
                f"ActionConfig: kind {self.kind!r} with size {self.size}; 'none' takes size 0, the "
                "others the number of actions or the length of the action vector."
            )
        if self.names and (self.kind != "discrete" or len(self.names) != self.size):
            raise ValueError(
                f"ActionConfig: {len(self.names)} names for {self.size} {self.kind} actions; give "
                "one name per discrete action or none."
            )


@dataclasses.dataclass(frozen=True)
class ConditionConfig:
    """A per-chunk condition: a class (int, -1 is null) or a vector (NaN is null)."""

    name: str = "class"
    kind: Literal["class", "vector"] = "class"
    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"ConditionConfig {self.name!r}: size {self.size}; it must be at least 1.")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The chunk-local tokenizer: Haar front, residual convolutions, quantizer, and back.

    Attributes:
      height, width, channels: of a frame, in pixels.
      frames_per_chunk: frames that share one grid of codes (1, 2, 4, ...).
      haar_levels: spatial halvings by the parameter-free Haar front.
      widths: channels per stage; each stage after the first halves the grid once more, so the
        spatial stride is ``2 ** (haar_levels + len(widths) - 1)``.
      blocks: residual blocks per stage.
      cell_local: the encoder sees the pixels of each code alone, so that a small thing changes one or two
        codes and leaves their neighbours as they are; the decoder always sees neighbours.
      latent: unbounded latent channels (z and q live there).
      levels: FSQ levels per digit; the codebook has their product.
    """

    height: int = 64
    width: int = 64
    channels: int = 3
    frames_per_chunk: int = 1
    haar_levels: int = 2
    widths: tuple[int, ...] = (96, 128)
    blocks: int = 2
    cell_local: bool = True
    latent: int = 8
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        f = self.frames_per_chunk
        if f < 1 or f & (f - 1):
            raise ValueError(f"TokenizerConfig: frames_per_chunk {f}; use a power of two, such as 1 or 4.")
        if not self.widths or self.haar_levels < 0:
            raise ValueError(
                f"TokenizerConfig: widths {self.widths}, haar_levels {self.haar_levels}; give at "
                "least one width and no negative level."
            )
        if self.height % self.stride or self.width % self.stride:
            raise ValueError(
                f"TokenizerConfig: frames of {self.height}x{self.width} don't divide by the stride "
                f"{self.stride} = 2**(haar_levels + len(widths) - 1); resize to a multiple of "
                f"{self.stride} or take a level or width away."
            )
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"TokenizerConfig: FSQ levels {self.levels}; each must be at least 2.")

    @property
    def stride(self) -> int:
        """Pixels per code along each side."""
        return 2 ** (self.haar_levels + len(self.widths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes per chunk."""
        return self.height // self.stride, self.width // self.stride

    @property
    def codebook(self) -> int:
        """Number of distinct codes."""
        return math.prod(self.levels)


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """The chunk-causal transformer over codes.

    Attributes:
      width, layers, heads, mlp: transformer sizes; ``width / heads`` must divide by 8.
      patch: codes along each side of a token; 2 makes four codes one token.
      context: chunks a rollout keeps in its cache (and training sees before a chunk).
      pinned: chunks of them that a rollout may keep for good: what lies beyond a gap, a loop's anchor.
      max_noise: highest corruption level of the known stream in training.
      rope_base: of the frequencies of the time rotation; see :mod:`worldsim.ops.rope`.
      action: what leads from frame to frame.
      conditions: per-chunk conditions besides the actions.
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    mlp: int = 768
    patch: int = 1
    context: int = 15
    pinned: int = 4
    max_noise: float = 0.3
    rope_base: float = 1000.0
    action: ActionConfig = ActionConfig()
    conditions: tuple[ConditionConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 8:
            raise ValueError(
                f"DynamicsConfig: width {self.width} over {self.heads} heads; the head width must "
                "be a multiple of 8 (rotary pairs for time, row and column). "
                f"Try width {8 * self.heads * max(1, round(self.width / 8 / self.heads))}."
            )
        if self.patch < 1 or self.width % self.patch**2:
            raise ValueError(
                f"DynamicsConfig: patch {self.patch} with width {self.width}; the width must divide by "
                "patch * patch."
            )
        if self.layers < 1 or not 1 <= self.pinned < self.context:
            raise ValueError(
                f"DynamicsConfig: layers {self.layers}, context {self.context}, pinned {self.pinned}; "
                "take at least 1 layer and pin from 1 to context - 1 chunks."
            )
        if not 0 <= self.max_noise < 1:
            raise ValueError(f"DynamicsConfig: max_noise {self.max_noise}; it must lie in [0, 1).")


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The parts of a world, as they are stored beside its weights."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    fps: float = 15.0

    def __post_init__(self) -> None:
        rows, columns = self.tokenizer.grid
        if rows % self.dynamics.patch or columns % self.dynamics.patch:
            raise ValueError(
                f"WorldConfig: a grid of {rows}x{columns} codes doesn't divide by dynamics.patch "
                f"{self.dynamics.patch}; use a patch that divides both."
            )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up, a schedule, clipping and a moving average of the weights.

    Attributes:
      learning_rate: peak.
      warmup: steps of linear warm-up.
      schedule: ``wsd`` (warm-up, stable, linear decay over the last ``decay`` share) or ``cosine``.
      decay: share of all steps in which ``wsd`` falls to zero.
      weight_decay: decoupled, on matrices only.
      clip: global gradient norm.
      b1, b2: moment decay rates.
      ema: decay of the averaged weights (they are what is shipped).
    """

    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay: float = 0.3
    weight_decay: float = 0.01
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    ema: float = 0.999


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """How long and on what one stage trains.

    Attributes:
      steps: optimizer steps.
      batch: clips per step, over all processes.
      frames: frames per clip that the loader cuts.
      optim: optimizer.
      log_every, save_every, sample_every: in steps; 0 turns the last two off.
    """

    steps: int = 1000
    batch: int = 8
    frames: int = 1
    optim: OptimConfig = OptimConfig()
    log_every: int = 20
    save_every: int = 500
    sample_every: int = 500

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.frames, self.log_every) < 1:
            raise ValueError(
                f"StageConfig: steps {self.steps}, batch {self.batch}, frames {self.frames}, "
                f"log_every {self.log_every}; each must be at least 1."
            )


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
        small things before rounding can hide them.
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


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """The order mix and the noise of dynamics training.

    Attributes:
      chunks: chunks per training plan, the known ones included; at most ``context + 1``.
      queries: chunks of them that carry loss.
      forward, backward, infill, shuffled, keyframes: shares of the generation orders.
      null_actions: share of samples that lose their actions, half of them only from some row on.
      null_conditions: share of samples trained without conditions.
      clean: share of chunks in the known stream that are left uncorrupted.
    """

    chunks: int = 16
    queries: int = 6
    forward: float = 0.55
    backward: float = 0.10
    infill: float = 0.20
    shuffled: float = 0.10
    keyframes: float = 0.05
    null_actions: float = 0.15
    null_conditions: float = 0.15
    clean: float = 0.5

    def __post_init__(self) -> None:
        total = self.forward + self.backward + self.infill + self.shuffled + self.keyframes
        if abs(total - 1) > 1e-6:
            raise ValueError(f"MixConfig: the shares of the orders sum to {total:.4f}; make them sum to 1.")
        if not 1 <= self.queries < self.chunks:
            raise ValueError(
                f"MixConfig: {self.queries} query chunks of {self.chunks}; take from 1 to {self.chunks - 1}."
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where clips come from.

    Attributes:
      path: folder of a prepared dataset, or an ``.npz`` with arrays ``[episodes, t, ...]``.
      split, eval_split: names of the splits.
      threads: read threads of the loader.
    """

    path: str = "data/pong"
    split: str = "train"
    eval_split: str = "test"
    threads: int = 2


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a training run needs; a file in ``configs/`` returns one."""

    name: str = "world"
    seed: int = 0
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    tokenizer: StageConfig = StageConfig()
    dynamics: StageConfig = StageConfig(frames=16)
    tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()
    mix: MixConfig = MixConfig()

    def __post_init__(self) -> None:
        f = self.world.tokenizer.frames_per_chunk
        crop, stride = self.tokenizer_loss.crop, self.world.tokenizer.stride
        if crop % stride or not 0 <= crop <= min(self.world.tokenizer.height, self.world.tokenizer.width):
            raise ValueError(
                f"TrainConfig: tokenizer_loss.crop {crop}; take a multiple of the stride {stride} up to the "
                f"frame's shorter side, such as {4 * stride}, or 0 for whole frames."
            )
        if self.mix.chunks > self.world.dynamics.context + 1:
            raise ValueError(
                f"TrainConfig: mix.chunks {self.mix.chunks} needs dynamics.context >= "
                f"{self.mix.chunks - 1}; it is {self.world.dynamics.context}."
            )
        room = self.mix.chunks - self.world.dynamics.pinned - 1
        if self.mix.queries > room:
            raise ValueError(
                f"TrainConfig: mix.queries {self.mix.queries} don't fit beside {self.world.dynamics.pinned} "
                f"pinned chunks in plans of {self.mix.chunks}; take at most {room}."
            )
        if self.dynamics.frames < self.mix.chunks * f:
            raise ValueError(
                f"TrainConfig: dynamics.frames {self.dynamics.frames} is less than mix.chunks "
                f"{self.mix.chunks} x frames_per_chunk {f}; raise it to at least {self.mix.chunks * f}."
            )
        if self.tokenizer.frames % f or self.dynamics.frames % f:
            raise ValueError(
                f"TrainConfig: tokenizer.frames {self.tokenizer.frames} and dynamics.frames "
                f"{self.dynamics.frames} must divide by frames_per_chunk {f}."
            )
