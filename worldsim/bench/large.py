"""``worldsim bench large``: what a world of 300 million parameters costs to train and to run.

Frames of 128x128 in 256 tokens; 1024 channels, 24 layers of 16 heads. A training step reads one clip of 48
chunks and asks for 16 of them anew, 16,448 tokens in all; a rollout sees 16 frames. Made for GPUs and TPUs,
where the models compute in bfloat16; CPUs measure a small world of the same form. Weights are random.

The floor of training is the model's own products, three times those of the forward pass, with attention
counted on the pairs that see each other, at the rate of a large product: floor over value tells how much of
the machine is used. The floor of a generated frame is the time to read weights and window once a pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from worldsim.bench.layouts import visible_pairs
from worldsim.bench.rollout import go_on, random_world, workload
from worldsim.bench.rows import Row, clock_of, interleaved, machine, product
from worldsim.bench.train import Running, random_codes
from worldsim.config import DataConfig, MixConfig, OptimConfig, StageConfig, TrainConfig, WorldConfig
from worldsim.generate import rollout
from worldsim.generate.render import render
from worldsim.generate.stream import PIECE
from worldsim.ops import attention
from worldsim.ops.visible import KNOWN, QUERY
from worldsim.parallel.mesh import compute_dtype
from worldsim.progress import Counter
from worldsim.train.stages import dynamics_stage
from worldsim.types import Clip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      config: of the world, as it rolls out.
      chunks, queries: of the one row that a training step reads, and those of them that carry loss.
      passes: masked passes per frame.
      frames: per measurement of a rollout.
      memory: bytes of the array whose copy says how fast memory is read and written.
      rounds: how often each case runs.
    """

    config: WorldConfig
    chunks: int = 48
    queries: int = 16
    passes: tuple[int, ...] = (4, 1)
    frames: int = 16
    memory: int = 2**30
    rounds: int = 5


FULL = Sizes(workload(side=128, width=1024, layers=24, head=64))
QUICK = Sizes(
    workload(side=32, codes=64, width=64, layers=2, context=4), chunks=4, queries=2, passes=(2,), frames=2,
    memory=2**20, rounds=1,
)  # fmt: skip
SMALL = dataclasses.replace(
    QUICK, config=workload(side=64, width=128, layers=4, context=8), chunks=8, queries=4, passes=(4, 1),
    frames=8, memory=2**26, rounds=3,
)  # fmt: skip
"""What CPUs measure: the full sizes would take them hours."""


def training(sizes: Sizes) -> TrainConfig:
    """The run of which one step is measured."""
    dynamics = dataclasses.replace(sizes.config.dynamics, context=max(2, sizes.chunks - 1))
    return TrainConfig(
        name="large",
        world=dataclasses.replace(sizes.config, dynamics=dynamics),
        data=DataConfig(),
        dynamics=StageConfig(
            steps=1000,
            batch=1,
            frames=sizes.chunks * sizes.config.tokenizer.frames_per_chunk,
            optim=OptimConfig(optimizer="muon"),
            remat="layer" if sizes.chunks > 16 else "none",
        ),
        mix=MixConfig(chunks=sizes.chunks, queries=sizes.queries),
    )


def token_ids(sizes: Sizes, batch: dict[str, Any]) -> Int[np.ndarray, "n 3"]:
    """Ids of all tokens of a step's one row: those known, then those asked for."""
    rows, columns = sizes.config.tokenizer.grid
    order = np.asarray(batch["orders"])[0]
    orders = [(order, KNOWN), (order[np.asarray(batch["queries"])[0]], QUERY)]
    ids = [np.stack([np.zeros_like(o), o, np.full_like(o, stream)], axis=-1) for o, stream in orders]
    return np.repeat(np.concatenate(ids), rows * columns + 1, axis=0).astype(np.int32)


def model_flops(sizes: Sizes, ids: Int[np.ndarray, "n 3"]) -> float:
    """Of the products of one training step: forward, and twice as much backward."""
    dynamics, codebook = sizes.config.dynamics, sizes.config.tokenizer.codebook
    weights = dynamics.layers * (4 * dynamics.width**2 + 2 * dynamics.width * dynamics.mlp)
    told = int((ids[:, 2] == QUERY).sum()) * dynamics.width * codebook
    pairs = visible_pairs(ids) * dynamics.layers * 2 * dynamics.width
    return 3 * 2.0 * (len(ids) * weights + told + pairs)


def read_bytes(params: Any, config: WorldConfig, *, passes: int) -> float:
    """Bytes of weights and window that the passes of a frame, and its commit, read once each."""
    dynamics, (rows, columns) = config.dynamics, config.tokenizer.grid
    window = 2 * dynamics.layers * dynamics.context * (rows * columns + 1) * dynamics.width
    kept = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (passes + 1.0) * (kept + window) * compute_dtype().itemsize


def attend_alone(sizes: Sizes, ids: Int[np.ndarray, "n 3"]) -> Callable[[], Any]:
    """The attention of all layers of a training step, forward and backward, and nothing else."""
    dynamics = sizes.config.dynamics
    shape = (1, len(ids), dynamics.heads, dynamics.width // dynamics.heads)
    q, k, v = (
        jax.random.normal(key, shape, compute_dtype()) for key in jax.random.split(jax.random.key(0), 3)
    )
    rows, columns = sizes.config.tokenizer.grid
    places, unit = jnp.asarray(ids)[None], rows * columns + 1

    def loss(q: Array, k: Array, v: Array) -> Array:
        return attention.attend(q, k, v, places, places, unit=unit).astype(jnp.float32).sum()

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

    def case() -> None:
        for _ in range(dynamics.layers):
            grads = run(q, k, v)
        jax.block_until_ready(grads)

    return case


def copying(size: int) -> tuple[Callable[[], Any], float]:
    """A copy of a large array, and the bytes that it reads and writes."""
    array = jnp.zeros(size // 4, jnp.float32)
    run = jax.jit(lambda x: x + 1.0)
    return lambda: jax.block_until_ready(run(array)), 2.0 * size


def train_cases(sizes: Sizes) -> tuple[dict[str, Callable[[], Any]], float]:
    """A step and its parts, by name, and the flops of the step's products."""
    stage = dynamics_stage(training(sizes), random_codes(sizes.config, 2 * sizes.chunks))
    batches: Iterator[Any] = stage.batches(0)
    batch = jax.tree.map(jnp.asarray, next(batches))
    batches.close()  # type: ignore[attr-defined]
    ids = token_ids(sizes, batch)
    params, key, zero = stage.init(jax.random.key(0)), jax.random.key(1), jnp.int32(0)
    forward = jax.jit(lambda p: stage.loss(p, stage.frozen, batch, key, zero)[0])
    backward = jax.jit(jax.grad(lambda p: stage.loss(p, stage.frozen, batch, key, zero)[0]))
    return {
        "step": partial(Running(stage), 1),
        "forward": lambda: jax.block_until_ready(forward(params)),
        "gradients": lambda: jax.block_until_ready(backward(params)),
        "attention": attend_alone(sizes, ids),
    }, model_flops(sizes, ids)


def rollout_cases(sizes: Sizes) -> tuple[dict[str, Callable[[], Any]], Any]:
    """Frames in so many passes, their pictures, and both together; and the weights that make them."""
    world, frames = random_world(sizes.config), sizes.frames
    first = max(sizes.passes)
    held = [rollout.start(*world.dynamics, keys=jax.random.key(0)[None])]

    def go(passes: int, count: int) -> np.ndarray:
        held[0], codes = go_on(world, held[0], count, passes)
        return codes

    go(1, sizes.config.dynamics.context + 1)  # a full window
    codes = go(1, frames)
    cases: dict[str, Callable[[], Any]] = {f"k{k}": partial(go, k, frames) for k in sizes.passes}
    times, key = np.arange(frames, dtype=np.float32), jax.random.key(0)[None]
    for name, steps in (("decode", 0), ("refine", 4)):
        cases[name] = partial(render, world.renderer, codes, times, key, refine_steps=steps)
    tokenizer = sizes.config.tokenizer
    blank = np.zeros((sizes.config.dynamics.context, tokenizer.height, tokenizer.width, 3), np.uint8)
    stream = world.rollout(Clip(blank), steps=first, refine_steps=4)
    cases["stream"] = lambda: next(stream)
    return cases, world.dynamics[1]


def measure(sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what measured them."""
    device, tell = jax.devices()[0], Counter("measuring")
    if device.platform == "cpu" and sizes == FULL:
        sizes = SMALL
    clock, unit = clock_of(device.platform)
    tell("large", 0, 3)
    cases, flops = train_cases(sizes)
    tell("large", 1, 3)
    made, weights = rollout_cases(sizes)
    cases |= made
    cases["product"], per_product = product(device, compute_dtype().name, side=4096 if sizes == FULL else 512)
    cases["copy"], moved = copying(sizes.memory)
    for case in cases.values():
        case()
    tell("large", 2, 3)
    costs = interleaved(cases, rounds=sizes.rounds, clock=clock)
    tell("large", 3, 3)
    rate, bandwidth = per_product / costs["product"], moved / costs["copy"]
    floor = flops / rate
    rows = [
        Row("train_step", costs["step"], f"{unit} a step", floor=floor,
            note=f"{100 * floor / costs['step']:.1f} % of {rate / 1e12:.3g} TFLOP/s ({compute_dtype()}); "
            "goal at 300 M parameters and 16 k tokens on a GPU: at least 50 %"),
        Row("train_forward", costs["forward"], f"{unit} a step", floor=floor / 3),
        Row("train_gradients", costs["gradients"], f"{unit} a step", floor=floor, note="and forward"),
        Row("train_attention", costs["attention"], f"{unit} a step", note="of all layers, both ways"),
        Row("train_rest", max(0.0, costs["step"] - costs["gradients"]), f"{unit} a step",
            note="optimizer and moving average: the step without its gradients"),
    ]  # fmt: skip
    for k in sizes.passes:
        cost = costs[f"k{k}"] / sizes.frames
        least = read_bytes(weights, sizes.config, passes=k) / bandwidth
        rows.append(
            Row(f"frame_k{k}", cost, f"{unit} a frame", floor=least,
                note=f"{1 / cost:.4g} frames a second; {bandwidth / 1e9:.4g} GB/s of memory"
                + "; goal on a GPU: at least 120 a second" * (k == 4))
        )  # fmt: skip
    per = {name: costs[name] / sizes.frames for name in ("decode", "refine")}
    whole = costs["stream"] / (PIECE * sizes.config.tokenizer.frames_per_chunk)
    parts = costs[f"k{max(sizes.passes)}"] / sizes.frames + per["refine"]
    rows += [
        Row("decode", per["decode"], f"{unit} a frame", note="frames from codes"),
        Row("refine", per["refine"], f"{unit} a frame", note="with detail in four steps, decoding included"),
        Row("stream", whole, f"{unit} a frame", baseline=parts,
            note=f"world.rollout in {max(sizes.passes)} passes with detail, {1 / whole:.4g} frames a second; "
            "beside its codes and its pictures one after the other"),
    ]  # fmt: skip
    return rows, machine([device]) | {"dtype": compute_dtype().name}
