"""``worldsim bench train``: what a step of each stage costs.

The workload is the bundled world ``pong`` as it was trained, config and all, on its held-out clips; and, as
``..._ws64``, the world of ``worldsim bench rollout`` on four clips of 16 frames of 64x64, of which six carry
the dynamics' loss. State and batch are on the device when the clock starts. The floor of a step is its matrix
products and convolutions, counted in the program that is traced, at the rate of a large product in the same
run. A loop whose length the program itself works out counts once, so it is a lower bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from worldsim.bench import rollout
from worldsim.bench.rows import Row, clock_of, interleaved, machine, product
from worldsim.checkpoint import bundled_worlds, load_world
from worldsim.config import MixConfig, StageConfig, TrainConfig, WorldConfig
from worldsim.data.arrays import ArraySource
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.placement import place_batch
from worldsim.plain import from_dict, to_dict
from worldsim.progress import Counter
from worldsim.train.codes import chunk_rows, make_encoder
from worldsim.train.looks import code_vectors
from worldsim.train.optim import make_optimizer
from worldsim.train.stages import STAGES, dynamics_stage, refine_stage, tokenizer_stage
from worldsim.train.state import Stage
from worldsim.train.step import init_state, make_step, state_shardings

WORLD = "pong"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      steps: per measurement.
      rounds: how often each stage is measured.
      batch: clips per step instead of the world's own, or None.
    """

    steps: int = 3
    rounds: int = 5
    batch: int | None = None


FULL, QUICK = Sizes(), Sizes(steps=1, rounds=1, batch=2)


def workload(batch: int | None = None) -> list[Stage]:
    """The three stages of the bundled world, on the clips beside it."""
    world, params, statistics, provenance = load_world(bundled_worlds()[WORLD])
    config = from_dict(TrainConfig, _completed(provenance["train"] | {"world": to_dict(world)}))
    if batch is not None:
        short = lambda stage: dataclasses.replace(stage, batch=batch)
        config = dataclasses.replace(config, **{name: short(getattr(config, name)) for name in STAGES})
    with np.load(bundled_worlds()[WORLD] / "clips.npz", allow_pickle=False) as held:
        frames, actions = held["frames"], held["actions"]
        outcomes = {name: held[name] for name in world.dynamics.outcomes}
    encode = make_encoder(world, params["tokenizer"])
    shown = ArraySource({"frames": frames}, keys=("frames",))
    scale = world.tokenizer.frames_per_chunk
    coded = {
        "codes": np.stack([encode(rows) for rows in frames]),
        "actions": actions.reshape(len(actions), -1, scale, *actions.shape[2:]),
    }
    for name, rows in outcomes.items():
        coded[name] = np.stack([chunk_rows(name, one.reshape(-1, scale)) for one in rows])
    vectors = code_vectors(world, params["tokenizer"]) if config.looks else None
    return [
        tokenizer_stage(config, shown, statistics["median"]),
        dynamics_stage(config, ArraySource(coded, keys=None), vectors=vectors),
        refine_stage(config, shown, params["tokenizer"]),
    ]


def random_codes(world: WorldConfig, chunks: int, *, clips: int = 2) -> ArraySource:
    """Clips of codes, which no cost depends on, with discrete actions."""
    rng, tokenizer = np.random.default_rng(0), world.tokenizer
    actions = rng.integers(world.dynamics.action.size, size=(clips, chunks, tokenizer.frames_per_chunk))
    codes = rng.integers(tokenizer.codebook, size=(clips, chunks, *tokenizer.grid))
    return ArraySource({"codes": codes.astype(np.int32), "actions": actions.astype(np.int32)}, keys=None)


def sized(world: WorldConfig, *, batch: int = 4, frames: int = 16) -> list[Stage]:
    """Tokenizer and dynamics of a world of this size, on noise."""
    stage = StageConfig(steps=1000, batch=batch, frames=frames)
    mix = MixConfig(chunks=frames, queries=min(6, frames - 1))
    config = TrainConfig(world=world, tokenizer=stage, dynamics=stage, mix=mix)
    rng, size = np.random.default_rng(0), (world.tokenizer.height, world.tokenizer.width, 3)
    shown = rng.integers(0, 256, (batch, frames, *size)).astype(np.uint8)
    return [
        tokenizer_stage(config, ArraySource({"frames": shown}, keys=("frames",)), shown[0, 0]),
        dynamics_stage(config, random_codes(world, frames, clips=batch)),
    ]


def _completed(stored: dict[str, Any], default: Any = None) -> dict[str, Any]:
    """A config that may have been stored before some field was there, with its default."""
    default = to_dict(TrainConfig()) if default is None else default
    full = lambda name: isinstance(default[name], dict) and name in stored
    return {
        name: _completed(stored[name], default[name]) if full(name) else stored.get(name, default[name])
        for name in default
    }


class Running:
    """A stage that takes so many steps whenever it is called.

    Attributes:
      flops: of the products of one step.
    """

    def __init__(self, stage: Stage) -> None:
        config: StageConfig = stage.config
        mesh, optimizer = make_mesh(devices=jax.devices()[:1]), make_optimizer(config.optim, config.steps)
        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(lambda key: init_state(stage, optimizer, key), jax.random.key(0))
            shardings = state_shardings(mesh, shapes)
            step = make_step(stage, optimizer, mesh, shardings=shardings)
            batches = stage.batches(0)
            batch = place_batch(mesh, next(batches), config.batch, sequence=stage.sequence)
            self._rest = stage.frozen, batch
            state = jax.device_put(init_state(stage, optimizer, jax.random.key(0)), shardings)
            traced = step.trace(state, *self._rest)  # type: ignore[attr-defined]
            self.flops = product_flops(traced.jaxpr.jaxpr)
            self._step, self._state, self._mesh = traced.lower().compile(), state, mesh
        batches.close()  # type: ignore[attr-defined]

    def __call__(self, steps: int) -> None:
        with jax.set_mesh(self._mesh):
            for _ in range(steps):
                self._state, metrics = self._step(self._state, *self._rest)
            jax.block_until_ready(metrics)


def product_flops(jaxpr: Any) -> float:
    """Two for each product that is added up in matrix products and convolutions, in all that is called."""
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [product_flops(part) for part in _inner(eqn.params)]
        match eqn.primitive.name:
            case "dot_general":
                (axes, _), _ = eqn.params["dimension_numbers"]
                shared = math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
                total += 2.0 * eqn.outvars[0].aval.size * shared
            case "conv_general_dilated":
                kernel, spec = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
                total += 2.0 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[spec[0]]
            case "scan":
                total += eqn.params["length"] * sum(inner)
            case "cond":
                total += min(inner)
            case _:
                total += sum(inner)
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that an instruction runs."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            if hasattr(part, "eqns"):
                yield part
            elif hasattr(part, "jaxpr"):
                yield part.jaxpr


def measure(sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what measured them."""
    device, tell = jax.devices()[0], Counter("measuring")
    clock, unit = clock_of(device.platform)
    prefix = unit.lower().replace(" ", "_")
    stages = {stage.name: stage for stage in workload(sizes.batch)}
    sizing = {} if sizes.batch is None else {"batch": sizes.batch, "frames": 4}
    stages |= {f"{stage.name}_ws64": stage for stage in sized(rollout.workload(), **sizing)}
    tell("train", 0, len(stages) + 1)
    running = {}
    for done, (name, stage) in enumerate(stages.items(), 1):
        running[name] = Running(stage)
        tell("train", done, len(stages) + 1)
    cases: dict[str, Callable[[], Any]]
    cases = {name: lambda one=one: one(sizes.steps) for name, one in running.items()}
    cases["product"], flops = product(device)
    for case in cases.values():
        case()
    costs = interleaved(cases, rounds=sizes.rounds, clock=clock)
    tell("train", len(stages) + 1, len(stages) + 1)
    rate = flops / costs["product"]
    rows = [
        Row(f"train_{prefix}_{name}", costs[name] / sizes.steps, f"{unit} a step", floor=one.flops / rate,
            note=f"{one.flops / 1e9:.3g} GFLOP of products; the machine does {rate / 1e9:.3g} a second")
        for name, one in running.items()
    ]  # fmt: skip
    return rows, machine([device])
