"""What a world is made of."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal, get_args

from worldsim.plain import added, check_ranges, freeze

ActionKind = Literal["none", "discrete", "continuous"]
"""What an action is: nothing, one of several, or a vector."""

ConditionKind = Literal["class", "vector"]
"""What a condition is."""


@dataclasses.dataclass(frozen=True)
class ActionConfig:
    """What leads from one frame to the next.

    Attributes:
      kind: ``discrete`` (int32 ``[t]``), ``continuous`` (float32 ``[t a]``) or ``none``.
      size: number of discrete actions, or length of the continuous vector.
      names: names of the discrete actions, in order; may be empty.
    """

    kind: ActionKind = "none"
    size: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        freeze(self)
        _check_kind(self, ActionKind)
        check_ranges(self, **{"[0, inf)": ("size",)})
        if (self.kind == "none") != (self.size == 0):
            raise ValueError(
                f"ActionConfig: kind {self.kind!r} with size {self.size}; only 'none' takes size 0."
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
    kind: ConditionKind = "class"
    size: int = 2

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.name, re.ASCII):
            raise ValueError(
                f"ConditionConfig: name {self.name!r}; take letters, digits and _, no digit first, such as "
                "'frame_rate'."
            )
        _check_kind(self, ConditionKind)
        check_ranges(self, **{"[1, inf)": ("size",)})


def _check_kind(config: ActionConfig | ConditionConfig, kinds: Any) -> None:
    """Refuse a kind that is none of a Literal's."""
    if config.kind not in get_args(kinds):
        raise ValueError(
            f"{type(config).__name__}: kind {config.kind!r}; take one of {', '.join(get_args(kinds))}."
        )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The chunk-local tokenizer: Haar front, residual convolutions, quantizer, and back.

    Attributes:
      height, width: of a frame, in pixels.
      channels: of a frame: 1 (grey) or 3 (RGB).
      frames_per_chunk: frames that share one grid of codes (1, 2, 4, ...).
      haar_levels: spatial halvings by the parameter-free Haar front.
      widths: channels per stage; each stage after the first halves the grid once more, so the
        spatial stride is ``2 ** (haar_levels + len(widths) - 1)``.
      blocks: residual blocks per stage.
      cell_local: the encoder sees the pixels of each code alone, so that a small thing changes one or two
        codes and leaves their neighbours as they are; the decoder always sees neighbouring codes.
      neighbours: the decoder sees the latents of the chunks before and after as well.
      latent: unbounded latent channels (z and q live there).
      quantizer: ``fsq`` (finite scalar) or ``vq`` (a table of vectors).
      levels: FSQ levels per digit; its codebook has their product.
      codes: vectors in the codebook of VQ.
    """

    height: int = 64
    width: int = 64
    channels: int = 3
    frames_per_chunk: int = 1
    haar_levels: int = 2
    widths: tuple[int, ...] = (96, 128)
    blocks: int = 2
    cell_local: bool = True
    neighbours: bool = True
    latent: int = 8
    quantizer: Literal["fsq", "vq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)
    codes: int = 1024

    def __post_init__(self) -> None:
        freeze(self)
        f = self.frames_per_chunk
        if f < 1 or f & (f - 1):
            raise ValueError(f"TokenizerConfig: frames_per_chunk {f}; use a power of two, such as 1 or 4.")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"TokenizerConfig: widths {self.widths}; give at least one, each at least 1.")
        check_ranges(
            self, **{"[1, inf)": ("height", "width", "latent"), "[0, inf)": ("haar_levels", "blocks")}
        )
        if self.channels not in (1, 3):
            raise ValueError(f"TokenizerConfig: channels {self.channels}; take 1 (grey) or 3 (RGB).")
        if self.height % self.stride or self.width % self.stride:
            raise ValueError(
                f"TokenizerConfig: frames of {self.height}x{self.width} don't divide by the stride "
                f"{self.stride} = 2**(haar_levels + len(widths) - 1); resize to a multiple of "
                f"{self.stride} or take a level or width away."
            )
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"TokenizerConfig: FSQ levels {self.levels}; each must be at least 2.")
        if self.quantizer not in ("fsq", "vq") or self.codes < 2:
            raise ValueError(
                f"TokenizerConfig: quantizer {self.quantizer!r} with {self.codes} codes; take 'fsq', or 'vq' "
                "with at least 2 codes."
            )

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
        return math.prod(self.digits)

    @property
    def digits(self) -> tuple[int, ...]:
        """Values per digit of a code; one of VQ has a single digit."""
        return self.levels if self.quantizer == "fsq" else (self.codes,)


Outcome = Literal["rewards", "ends"]
"""What an episode says of a frame beside its picture."""


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """The chunk-causal transformer over codes.

    Attributes:
      width, layers, heads, mlp: transformer sizes; ``width / heads`` must divide by 8.
      patch: codes along each side of a token; 2 makes four codes one token.
      around: every layer begins with a 3x3 convolution over the tokens of each chunk.
      context: chunks a rollout keeps in its cache (and training sees before a chunk).
      pinned: chunks of them that a rollout may keep for good: what lies beyond a gap, a loop's anchor.
      reach: frames beyond which what lies farther off in time is read from the cache as lying there, so that
        sinks stay as far as training has seen (clipped relative positions); 0 is no bound, else at least
        what the context spans.
      max_noise: highest corruption level of the known stream in training: the share of codes that are
        replaced, half by any, half by one whose number (of FSQ, one digit of it) lies beside. Of VQ, whose
        numbers have no order, that too is some other code, always one of two.
      rope_base: of the time rotation; see :mod:`worldsim.ops.rope`.
      action: what leads from frame to frame.
      conditions: per-chunk conditions besides the actions.
      outcomes: what it tells of each chunk beside its codes, where the data has it: ``rewards``, their sum
        over the chunk's frames, and ``ends``, whether the episode ends with it.
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    mlp: int = 768
    patch: int = 1
    around: bool = added(False)
    context: int = 15
    pinned: int = 4
    reach: float = added(0.0)
    max_noise: float = 0.3
    rope_base: float = 1000.0
    action: ActionConfig = ActionConfig()
    conditions: tuple[ConditionConfig, ...] = ()
    outcomes: tuple[Outcome, ...] = added(())

    def __post_init__(self) -> None:
        freeze(self)
        if len(set(self.outcomes)) < len(self.outcomes) or set(self.outcomes) - set(get_args(Outcome)):
            raise ValueError(
                f"DynamicsConfig: outcomes {self.outcomes}; take any of {get_args(Outcome)}, once each."
            )
        check_ranges(
            self,
            **{
                "[0, 1)": ("max_noise",),
                "[1, inf)": ("width", "heads", "mlp"),
                "(1, inf)": ("rope_base",),
                "[0, inf)": ("reach",),
            },
        )
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
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError(f"DynamicsConfig: conditions {names}; give each another name.")


@dataclasses.dataclass(frozen=True)
class RefineConfig:
    """The refinement head: a small diffusion model of what the codes leave out.

    Attributes:
      width, layers, heads, mlp: of its blocks.
      radius: of the window of attention, in codes; 0 without ``neighbours`` is a head that looks at each code
        alone, at not one beside it (a perceptron per token).
      neighbours: it sees the codes of the chunks before and after.
      low, high: noise levels between which a draw goes, in units of the residual's deviation.
      sampler: how a draw goes from one to the other; ``ddim`` and ``flow`` are ``euler`` in other variables.
      guidance: 1 draws as trained; above it, detail more typical of these codes than of any, at twice the
        cost; for heads that trained without codes now and then (``refine_loss.null``).
      kind: ``diffusion``, or ``regression``: the mean residual in one step, a baseline.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    mlp: int = 192
    radius: int = 1
    neighbours: bool = True
    low: float = 0.2
    high: float = 2.5
    sampler: Literal["euler", "heun", "ddim", "flow"] = added("heun")
    guidance: float = added(1.0)
    kind: Literal["diffusion", "regression"] = "diffusion"

    def __post_init__(self) -> None:
        ranges = {"[1, inf)": ("width", "layers", "heads", "mlp"), "[0, inf)": ("radius", "guidance")}
        check_ranges(self, **ranges)
        if self.sampler not in ("euler", "heun", "ddim", "flow"):
            raise ValueError(f"RefineConfig: sampler {self.sampler!r}; take euler, heun, ddim or flow.")
        if self.width % self.heads or self.kind not in ("diffusion", "regression"):
            raise ValueError(
                f"RefineConfig: width {self.width} over {self.heads} heads, kind {self.kind!r}; the width "
                "must divide by the heads and the kind be 'diffusion' or 'regression'."
            )
        if not 0 < self.low < self.high:
            raise ValueError(f"RefineConfig: noise from {self.low} to {self.high}; take 0 < low < high.")


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The parts of a world, as they are stored beside its weights; one may have no weights for refine."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    refine: RefineConfig = RefineConfig()
    fps: float = 15.0

    def __post_init__(self) -> None:
        span = self.dynamics.context * self.tokenizer.frames_per_chunk
        if 0 < self.dynamics.reach < span:
            raise ValueError(
                f"WorldConfig: reach {self.dynamics.reach}, and a context of {span} frames; take that, or 0."
            )
        check_ranges(self, **{"(0, inf)": ("fps",)})
        rows, columns = self.tokenizer.grid
        if rows % self.dynamics.patch or columns % self.dynamics.patch:
            raise ValueError(
                f"WorldConfig: {rows}x{columns} codes don't divide by dynamics.patch {self.dynamics.patch}."
            )
