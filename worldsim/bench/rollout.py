"""``worldsim bench rollout``: what a generated frame costs, and whether it costs the same far on.

The workload: frames of 64x64 in 64 tokens, each one of 1024 codes, and a window of 16 frames; 256 channels,
six layers of eight heads, one integer action a frame; one clip in float32. Weights are random, which no
cost depends on. One core, where the system lets a process choose.

The baseline is a GPT of the same size in PyTorch that draws code by code (:mod:`worldsim.bench.raster`).
The floor of a cost is its matrix products alone: for each masked pass those of every layer and of the head,
and for the commit of a chunk those that lead to its keys and values, in the same shapes and as one program.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from worldsim.bench import raster
from worldsim.bench.rows import Row, clock_of, interleaved, machine
from worldsim.config import ActionConfig, DynamicsConfig, TokenizerConfig, WorldConfig
from worldsim.generate import rollout
from worldsim.generate.extend import World
from worldsim.generate.render import render
from worldsim.generate.rollout import RolloutState
from worldsim.models.world import init_params
from worldsim.plan import make_plan
from worldsim.progress import Counter


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      config: of the world.
      passes: masked passes per frame; the first of them is the one that growth is measured with.
      far: the frame at which a rollout costs what it does at frame ``near``.
      near: see ``far``.
      frames: per measurement.
      rounds: how often each case runs.
    """

    config: WorldConfig
    passes: tuple[int, ...] = (4, 1, 2, 8, 64)
    near: int = 100
    far: int = 10_000
    frames: int = 16
    rounds: int = 5


def workload(
    *, side: int = 64, codes: int = 1024, width: int = 256, layers: int = 6, context: int = 16, head: int = 32
) -> WorldConfig:
    """The workload, or one of its form; ``head`` is the width of one."""
    return WorldConfig(
        tokenizer=TokenizerConfig(height=side, width=side, quantizer="vq", codes=codes),
        dynamics=DynamicsConfig(
            width=width,
            layers=layers,
            heads=width // head,
            mlp=4 * width,
            context=context,
            pinned=1,
            action=ActionConfig("discrete", 4, ("noop", "left", "right", "fire")),
        ),
    )


FULL = Sizes(workload())
QUICK = Sizes(
    workload(side=32, codes=64, width=64, layers=2, context=4),
    passes=(4, 1), near=8, far=24, frames=4, rounds=1,
)  # fmt: skip


def random_world(config: WorldConfig) -> World:
    """A world of fresh weights, with a refinement head."""
    keys = jax.random.split(jax.random.key(0), 3)
    parts = ("tokenizer", "dynamics", "refine")
    return World.make(
        config, {name: init_params(name, config, key) for name, key in zip(parts, keys, strict=True)}
    )


def go_on(world: World, state: RolloutState, frames: int, passes: int) -> tuple[RolloutState, np.ndarray]:
    """So many more frames, in the codes."""
    new = np.arange(frames)
    plan = make_plan(np.zeros(0, int), state.next_order + new)
    codes = np.zeros((1, frames, *world.config.tokenizer.grid), np.int32)
    actions = (new % world.config.dynamics.action.size).astype(np.int32)[None, :, None]
    return rollout.run(
        world.dynamics, state, plan, codes=codes, dials=world.dials(steps=passes, doubt=0.0), actions=actions
    )


class Live:
    """A rollout that goes on whenever it is called."""

    def __init__(self, world: World, *, frame: int, block: int = 400):
        self.world, self.state = world, rollout.start(*world.dynamics, keys=jax.random.key(0)[None])
        self.block = block
        self.to(frame)

    def to(self, frame: int) -> float:
        """Go on to a frame, in one pass each; the most memory that the process has had by then, in MiB."""
        while self.state.next_order < frame:
            self(min(self.block, frame - self.state.next_order), 1)
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    def __call__(self, frames: int, passes: int) -> None:
        self.state, _ = go_on(self.world, self.state, frames, passes)


def products(config: WorldConfig, *, masked: int) -> Callable[[], Any]:
    """The matrix products of one frame in ``masked`` passes and a commit, and nothing else."""
    dynamics, rng = config.dynamics, np.random.default_rng(0)
    width, heads, rows = dynamics.width, dynamics.heads, config.tokenizer.grid[0] * config.tokenizer.grid[1]
    n = rows + 1
    noise = lambda *shape: jnp.asarray(rng.standard_normal(shape) * shape[0] ** -0.5, jnp.float32)
    shapes = [(width, width)] * 4 + [(width, dynamics.mlp), (dynamics.mlp, width)]
    layers = [[noise(*shape) for shape in shapes] for _ in range(dynamics.layers)]
    past = [noise(heads, dynamics.context * n, width // heads) for _ in range(dynamics.layers)]
    x, head = noise(n, width), noise(width, config.tokenizer.codebook)

    def mix(x: Array, weights: list[Array], past: Array) -> Array:
        q, k, v = (x @ w for w in weights[:3])
        q = q.reshape(n, heads, -1).swapaxes(0, 1)
        scores = jax.lax.optimization_barrier(jnp.einsum("hne,hme->hnm", q, past))
        read = jnp.einsum("hnm,hme->hne", scores, past).swapaxes(0, 1).reshape(n, width)
        return (((read + k + v) @ weights[3]) @ weights[4]) @ weights[5] * 1e-3

    def one_pass(_: Any, x: Array) -> Array:
        for weights, of in zip(layers, past, strict=True):
            x = mix(x, weights, of)
        return x + (x[1:] @ head).sum() * 1e-9

    @jax.jit
    def run(x: Array) -> Array:
        x = jax.lax.fori_loop(0, masked, one_pass, x)
        for weights, of in zip(layers[:-1], past, strict=False):
            x = mix(x, weights, of)
        return x @ layers[-1][1] + x @ layers[-1][2]

    return lambda: jax.block_until_ready(run(x))


def measure(sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what measured them."""
    device = jax.devices()[0]
    clock, unit = clock_of(device.platform)
    unit, tell = f"{unit} a frame", Counter("measuring")
    world, frames, first = random_world(sizes.config), sizes.frames, sizes.passes[0]
    tell("rollout", 0, 3)
    settled = min(10 * sizes.near, sizes.far)
    live, near, far = (Live(world, frame=frame) for frame in (sizes.near, sizes.near, settled))
    memory = [far.to(frame) for frame in (settled, sizes.far)]
    tell("rollout", 1, 3)
    cases: dict[str, Callable[[], Any]] = {f"k{k}": partial(live, frames, k) for k in sizes.passes}
    floors = {k: products(sizes.config, masked=k) for k in sizes.passes}
    cases |= {f"floor_k{k}": partial(_repeat, floor, frames) for k, floor in floors.items()}
    cases |= {"near": partial(near, frames, first), "far": partial(far, frames, first)}
    codes = go_on(world, rollout.fork(live.state), frames, 1)[1]
    for name, steps in (("decode", 0), ("refine", 4)):
        cases[name] = partial(
            render, world.renderer, codes, np.arange(frames, dtype=np.float32), jax.random.key(0)[None],
            refine_steps=steps,
        )  # fmt: skip
    rivals, missing = {}, ""
    try:
        for cache in raster.CACHES:
            rivals[f"torch_{cache}"] = partial(raster.Raster(sizes.config, cache=cache), frames)
    except ModuleNotFoundError as error:
        missing = str(error)
    cases |= rivals
    for case in cases.values():
        case()
    costs = interleaved(cases, rounds=sizes.rounds, clock=clock)
    costs = {name: cost / frames for name, cost in costs.items()}
    tell("rollout", 3, 3)
    bars = {4: "bar at 64 tokens and a window of 16: at most 0.08, goal 0.06; at most 1.6 times the floor"}
    rival, kind = min(((costs[name], name) for name in rivals), default=(None, ""))
    rows = []
    for k in sizes.passes:
        mine = costs[f"k{k}"]
        rows.append(
            Row(f"cpu_s_per_frame_k{k}", mine, unit, baseline=rival, floor=costs[f"floor_k{k}"],
                note=bars.get(k, ""))
        )  # fmt: skip
        rows.append(
            Row(f"ratio_over_torch_k{k}", rival / mine if rival else None, "times",
                note=missing or f"faster than {kind}" + "; bar: at least 4, goal 5" * (k == 4))
        )  # fmt: skip
    rows.append(
        Row(f"growth_{sizes.far}_over_{sizes.near}", costs["far"] / costs["near"], "times", floor=1.0,
            note="cost of a frame; bar: at most 1.05")
    )  # fmt: skip
    rows += [
        Row(f"memory_{sizes.far}_over_{settled}", memory[1] / memory[0], "times", floor=1.0,
            note=f"the most that the process has had, {memory[1]:.0f} MiB"),
        Row("decode", costs["decode"], unit, note="frames from codes"),
        Row("refine", costs["refine"], unit, note="with detail in four steps, decoding included"),
    ]  # fmt: skip
    return rows, machine([device])


def _repeat(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()
