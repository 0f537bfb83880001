"""``worldsim bench blocks``: the blocks of attention on one device, beside cuDNN's plain causal attention.

A cost is in seconds per thousand million visible pairs of a query and a key, in one head, so that patterns of
different density compare: the ratio to cuDNN's is the share of its speed that is reached on what is visible.
Floors are the products alone at the rate of a large product in the same type, measured in turn with the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldsim.bench import layouts
from worldsim.bench.ring import short
from worldsim.bench.rows import SQUARE, Row, clock_of, interleaved, machine, product
from worldsim.ops import attention, blocks
from worldsim.progress import Counter

PRODUCTS = {"forward": 2, "both": 7}
"""Products per visible pair, of ``2 width`` flops each: of the forward pass, and with the backward one."""

PATTERNS: dict[str, Callable[[int, int], np.ndarray]] = {
    "causal": lambda tokens, _: layouts.causal(tokens),
    "chunk_causal": lambda tokens, chunk: layouts.causal(tokens) // np.array([1, chunk, 1], np.int32),
    "two_stream": lambda tokens, chunk: layouts.two_streams(tokens, chunk, 1),
}
"""Ids ``[tokens 3]`` of each pattern, with chunks of so many tokens."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      tokens: lengths of a row.
      widths: of a head.
      total: tokens in all rows together.
      channels: width of all heads together.
      chunk: tokens per chunk.
      rounds, repeat: how often each case runs in turn, and at a time.
    """

    tokens: tuple[int, ...] = (4096, 16_384, 65_536)
    widths: tuple[int, ...] = (64, 128)
    total: int = 65_536
    channels: int = 1024
    chunk: int = 64
    rounds: int = 5
    repeat: int = 4


FULL = Sizes()
SMALL = Sizes((1024, 4096), total=4096, channels=256, rounds=3, repeat=1)
"""What CPUs measure: the full sizes would take them hours."""
QUICK = Sizes((256,), (32,), total=256, channels=64, chunk=16, rounds=1, repeat=1)


def programs(attend: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """An attention of ``q, k, v`` forward, and with its gradients for a given ``do``, compiled."""

    def both(q, k, v, do):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(do)

    return {
        "forward": jax.jit(lambda q, k, v, _: attend(q, k, v)).lower(*args).compile(),
        "both": jax.jit(both).lower(*args).compile(),
    }


def cudnn(width: int, dtype: Any) -> tuple[Callable[..., Any] | None, str]:
    """cuDNN's causal attention, or why there is none."""
    plain = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    try:
        tokens = jnp.ones((1, 256, 1, width), dtype)
        jax.block_until_ready(jax.jit(plain)(tokens, tokens, tokens))
    except Exception as error:  # whatever a compiler, or what is missing, says
        return None, f"no cuDNN: {' '.join(str(error).split())[:80]}"
    return plain, "baseline: cuDNN, plain causal; goal: ratio at least 0.7"


def cases_of(sizes: Sizes, tokens: int, width: int) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    """Programs by name and pass, the visible pairs of each name, and a word on each that is missing."""
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    rows, heads = max(1, sizes.total // tokens), max(1, sizes.channels // width)
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.standard_normal((rows, tokens, heads, width)), dtype) for _ in range(4)]
    cases, pairs, notes = {}, {}, {}

    def add(name: str, attend: Callable[..., Any], ids: np.ndarray) -> None:
        pairs[name] = layouts.visible_pairs(ids) * rows * heads
        for which, program in programs(attend, *args).items():
            cases[f"{name}_{which}"] = partial(_repeated, program, args, sizes.repeat)

    plain, notes["cudnn"] = cudnn(width, dtype)
    if plain is not None:
        add("cudnn", plain, layouts.causal(tokens))
    for block in ("jax", "pallas"):
        for pattern, make in PATTERNS.items():
            ids = make(tokens, sizes.chunk)
            wide = jnp.asarray(np.broadcast_to(ids, (rows, *ids.shape)))
            attend = lambda q, k, v, ids=wide: attention.attend(q, k, v, ids, ids, unit=sizes.chunk)
            name = f"{block}_{pattern}"
            try:
                with blocks.use_block(block):
                    add(name, attend, ids)
            except RuntimeError as error:
                notes[name] = str(error)
    return cases, pairs, notes


def _repeated(program: Any, args: list[jax.Array], times: int) -> None:
    """Run a program so often, and wait for the last."""
    out = None
    for _ in range(times):
        out = program(*args)
    jax.block_until_ready(out)


def measure(sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what measured them; the full sizes are for GPUs, CPUs take smaller ones."""
    device = jax.devices()[0]
    sizes = SMALL if sizes == FULL and device.platform == "cpu" else sizes
    about, (clock, unit) = machine([device]), clock_of(device.platform)
    dtype = jnp.bfloat16 if device.platform == "gpu" else jnp.float32
    multiply, flops = product(device, dtype, side=8192 if device.platform == "gpu" else SQUARE)
    tell, found, rates = Counter("measuring"), [], []
    todo = [(tokens, width) for width in sizes.widths for tokens in sizes.tokens]
    for done, (tokens, width) in enumerate(todo):
        tell("blocks", done, len(todo))
        cases, pairs, notes = cases_of(sizes, tokens, width)
        costs = interleaved({**cases, "product": multiply}, rounds=sizes.rounds, clock=clock)
        rates.append(flops / costs.pop("product"))
        each = {key: cost / sizes.repeat / pairs[key.rpartition("_")[0]] * 1e9 for key, cost in costs.items()}
        for which, products in PRODUCTS.items():
            work = products * 2.0 * width * 1e9
            best = each.get(f"cudnn_{which}")
            for name in (f"{block}_{pattern}" for block in ("jax", "pallas") for pattern in PATTERNS):
                value = each.get(f"{name}_{which}")
                done_at = f"{work / value / 1e12:.3g} TFLOP/s; {notes['cudnn']}" if value else ""
                note = notes.get(name, done_at)
                label = f"{name}_{which}_{short(tokens)}_w{width}"
                found.append(Row(label, value, f"{unit} per 10^9 pairs", best, work / rates[-1], note))
    tell("blocks", len(todo), len(todo))
    return found, {**about, "gflops": round(float(np.median(rates)) / 1e9, 1), "dtype": jnp.dtype(dtype).name}
