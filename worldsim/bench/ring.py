"""``worldsim bench ring``: exact attention over many devices, against other ways to the same result.

All costs are those of forward and backward together (one row, float32), in CPU seconds where the CPU poses as
the devices. The floor of a cost is its products alone at the rate of a large product that is measured in turn
with it. Per visible pair and head there are seven products of ``2 width`` flops:

    forward    scores, values under the weights
    backward   scores again, and the gradients of weights, values, keys and queries

The floor of the memory is what a hop of the backward pass must hold beside what goes in and comes out, per
device: keys and values in hand, those that arrive, and as much again of their gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from worldsim.bench import layouts, rivals
from worldsim.bench.rows import Row, clock_of, interleaved, machine, product
from worldsim.ops import attention
from worldsim.parallel.mesh import make_mesh
from worldsim.progress import Counter

PRODUCTS = 7


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      tokens: of a sequence over many devices.
      streams: tokens of both streams of a training together.
      dense: tokens where all scores are in memory.
      chunk: tokens per chunk, which are dealt out to the devices in stripes.
      heads, width: of the attention.
      rounds: how often each case runs.
    """

    tokens: int = 32_768
    streams: int = 16_384
    dense: int = 4096
    chunk: int = 64
    heads: int = 4
    width: int = 64
    rounds: int = 3


FULL = Sizes()
QUICK = Sizes(tokens=2048, streams=2048, dense=512, rounds=1)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every row is measured with.

    Attributes:
      sizes: how much.
      mesh: of all devices, along ``context``.
      clock, unit: seconds, and which.
      multiply, flops: the product that floors are worked out from, and what it takes.
    """

    sizes: Sizes
    mesh: Mesh
    clock: Callable[[], float]
    unit: str
    multiply: Callable[[], Any]
    flops: float

    @property
    def parts(self) -> int:
        """Devices that the tokens are spread over."""
        return self.mesh.shape["context"]

    def name(self, what: str, tokens: int, parts: int | None = None) -> str:
        """A row's name: ``what_32k_8``."""
        return f"{what}_{short(tokens)}_{parts or self.parts}"

    def shapes(self, mesh: Mesh, tokens: int) -> list[jax.ShapeDtypeStruct]:
        """Queries, keys, values and the gradient of the outputs, as they lie."""
        where = NamedSharding(mesh, PartitionSpec(None, "context", None, None))
        shape = (1, tokens, self.sizes.heads, self.sizes.width)
        return [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)] * 4

    def arrays(self, mesh: Mesh, tokens: int) -> list[jax.Array]:
        """The same, filled with noise."""
        rng = np.random.default_rng(0)
        fill = lambda x: jax.device_put(rng.standard_normal(x.shape, np.float32), x.sharding)
        return [fill(x) for x in self.shapes(mesh, tokens)]

    def costs(self, cases: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, float], float]:
        """The median cost of each case, and the devices' flops per second in between."""
        found = interleaved({**cases, "": self.multiply}, rounds=self.sizes.rounds, clock=self.clock)
        at_once = 1 if self.unit == "CPU s" else self.parts
        return found, at_once * self.flops / found.pop("")

    def floor(self, pairs: int, rate: float) -> float:
        """Seconds that the products over so many visible pairs take at such a rate."""
        return PRODUCTS * 2.0 * self.sizes.width * self.sizes.heads * pairs / rate

    def ours(self, strategy: str) -> Callable[..., Any]:
        """This package's attention as a function of queries, keys, values and ids."""
        attend = partial(attention.attend, strategy=strategy, unit=self.sizes.chunk)
        return lambda q, k, v, ids: attend(q, k, v, ids, ids)

    def ids(self, found: np.ndarray) -> jax.Array:
        """Ids on all devices."""
        return jnp.asarray(found)[None]


def short(tokens: int) -> str:
    """``32768`` -> ``32k``."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def compiled(mesh: Mesh, attend: Callable[..., Any], *args: Any) -> Any:
    """Outputs and gradients of an attention as one program."""

    def both(q, k, v, do, *ids):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, *ids), q, k, v)
        return out, *back(do)

    with jax.set_mesh(mesh):
        return jax.jit(both).lower(*args).compile()


def ready(program: Any, *args: Any) -> Callable[[], Any]:
    """The program as a case: it returns when all is computed."""
    return lambda: jax.block_until_ready(program(*args))


def mebibytes(program: Any) -> float:
    """Memory per device that a program takes beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def striped(bench: Bench, tokens: int) -> np.ndarray:
    """Ids of one causal clip, its chunks in stripes."""
    return layouts.causal(tokens)[layouts.places(tokens, bench.sizes.chunk, bench.parts)]


def difference(bench: Bench, theirs: Callable[..., Any]) -> float:
    """Relative root mean square between the package ringattention and ours, outputs and gradients."""
    tokens = bench.sizes.chunk * bench.parts * 2
    block = (bench.sizes.chunk, bench.sizes.chunk)
    place = layouts.places(tokens, bench.sizes.chunk, bench.parts)
    args, ids = bench.arrays(bench.mesh, tokens), bench.ids(striped(bench, tokens))
    want = compiled(bench.mesh, partial(rivals.attend, theirs=theirs, blocks=block), *args)(*args)
    laid = [jax.device_put(np.asarray(x)[:, place], x.sharding) for x in args]
    found = compiled(bench.mesh, bench.ours("ring"), *laid, ids)(*laid, ids)
    pairs = [(np.asarray(a), np.asarray(b)[:, place]) for a, b in zip(found, want, strict=True)]
    return max(float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))) for a, b in pairs)


def best_blocks(bench: Bench, theirs: Callable[..., Any], tokens: int) -> tuple[tuple[int, int], str]:
    """The blocks with which the package ringattention is fastest at so many tokens, and a word on them."""
    args, shard = bench.arrays(bench.mesh, tokens), tokens // bench.parts
    tried = {f"{i}x{j}": (min(i, shard), min(j, shard)) for i, j in rivals.BLOCKS}
    attends = {name: partial(rivals.attend, theirs=theirs, blocks=pair) for name, pair in tried.items()}
    cases = {name: ready(compiled(bench.mesh, attend, *args), *args) for name, attend in attends.items()}
    costs, _ = bench.costs(cases)
    best = min(costs, key=lambda name: costs[name])
    return tried[best], f"blocks of {best}, the fastest of {', '.join(tried)} at {tokens} tokens"


def long_rows(bench: Bench) -> list[Row]:
    """The ring at full length: its cost beside others', its memory, and how that grows."""
    sizes, mesh, n = bench.sizes, bench.mesh, bench.sizes.tokens
    theirs, why = rivals.ringattention()
    rows, args = [], bench.arrays(mesh, n)
    ids, pairs = bench.ids(striped(bench, n)), n * (n + 1) // 2
    ring = compiled(mesh, bench.ours("ring"), *args, ids)
    gather = compiled(mesh, bench.ours("allgather"), *args, ids)
    cases = {"ring": ready(ring, *args, ids), "allgather": ready(gather, *args, ids)}
    rival = None
    if theirs is not None:
        apart = difference(bench, theirs)
        small = sizes.chunk * bench.parts * 2
        note = "relative RMS of outputs and gradients; bar: at most 2e-06"
        rows.append(Row(bench.name("difference_from_ringattention", small), apart, "of RMS", note=note))
        blocks, why = best_blocks(bench, theirs, n // 4)
        rival = compiled(mesh, partial(rivals.attend, theirs=theirs, blocks=blocks), *args)
        cases["theirs"] = ready(rival, *args)
    costs, rate = bench.costs(cases)
    floor = bench.floor(pairs, rate)
    cost = partial(Row, value=costs["ring"], unit=bench.unit, floor=floor)
    wide = compiled(mesh, bench.ours("ring"), *bench.shapes(mesh, 2 * n), bench.ids(striped(bench, 2 * n)))
    held = 8 * 4 * n // bench.parts * sizes.heads * sizes.width / 2**20
    temp = mebibytes(ring)
    grown = f"growth_{short(2 * n)}_over_{short(n)}"
    return [
        *rows,
        cost(bench.name("ratio_over_ringattention", n), baseline=costs.get("theirs"),
             note=f"bar: ratio at least 1.25, goal 1.4; {why}"),
        cost(bench.name("ratio_over_allgather", n), baseline=costs["allgather"]),
        Row(bench.name("temp_mib", n), temp, "MiB", mebibytes(rival) if rival else None, held,
            "bar at 32k over 8 devices: at most 95, goal 60; baseline: ringattention"),
        Row(grown, mebibytes(wide) / temp, "times", note="memory; bar: at most 2.1"),
    ]  # fmt: skip


def dense_rows(bench: Bench) -> list[Row]:
    """One device against all scores in memory, at a length that fits."""
    n = bench.sizes.dense
    alone = make_mesh({"context": 1}, devices=list(bench.mesh.devices.flat)[:1])
    args, ids = bench.arrays(alone, n), bench.ids(layouts.causal(n))
    whole = lambda q, k, v, ids: attention.reference(q, k, v, ids, ids)
    programs = {"ours": bench.ours("local"), "materialised": whole}
    cases = {name: ready(compiled(alone, f, *args, ids), *args, ids) for name, f in programs.items()}
    costs, rate = bench.costs(cases)
    floor = bench.floor(n * (n + 1) // 2, rate)
    name = bench.name("ratio_over_materialised", n, 1)
    return [Row(name, costs["ours"], bench.unit, costs["materialised"], floor)]


def stream_rows(bench: Bench) -> list[Row]:
    """Training's two streams against attention that sees everything, on one device and on all."""
    n, chunk, rows = bench.sizes.streams, bench.sizes.chunk, []
    alone = make_mesh({"context": 1}, devices=list(bench.mesh.devices.flat)[:1])
    for mesh, parts, strategy in ((alone, 1, "local"), (bench.mesh, bench.parts, "ring")):
        args = bench.arrays(mesh, n)
        streams = layouts.two_streams(n, chunk, parts)
        share = layouts.visible_pairs(streams) / n**2
        ids = {"streams": bench.ids(streams), "full": bench.ids(streams * 0)}
        program = compiled(mesh, bench.ours(strategy), *args, ids["full"])
        costs, _ = bench.costs({name: ready(program, *args, of) for name, of in ids.items()})
        note = f"cost over the {share:.1%} that is visible of full attention's; bar at 16k: at most 1.2"
        cost = costs["streams"] / (costs["full"] * share)
        rows.append(Row(bench.name("two_stream_cost", n, parts), cost, "times", floor=1.0, note=note))
    return rows


def balance_rows(bench: Bench) -> list[Row]:
    """How evenly the tiles that are computed fall on the devices: for one clip, and for four in a row."""
    n, parts = bench.sizes.tokens, bench.parts
    chunks = n // bench.sizes.chunk
    cuts = np.array([0, chunks // 12, chunks // 4, chunks * 9 // 16, chunks]) * bench.sizes.chunk
    bars = {"one_clip": 0.95, "four_clips": 0.88}
    clips = {"one_clip": [n], "four_clips": np.diff(cuts).tolist()}
    place = layouts.places(n, bench.sizes.chunk, parts)
    q = bench.shapes(bench.mesh, n)[0]
    rows, columns = attention.tile_sizes(q, q, None, unit=bench.sizes.chunk, spread=parts)
    part = attention.part_size(bench.sizes.chunk, rows, columns)
    found = []
    for name, lengths in clips.items():
        ids = layouts.causal(n, clips=lengths)[place]
        work = layouts.work(ids, parts, rows, columns, part=part)
        seen = layouts.visible_pairs(ids) / (work.sum() * rows * columns)
        note = (
            f"bar: at least {bars[name]}; clips of {lengths} tokens in tiles of {rows} by {columns}; "
            f"{seen:.1%} of what is computed is visible"
        )
        found.append(Row(f"balance_{name}_{parts}", layouts.balance(work), "of 1", floor=1.0, note=note))
    return found


def devices() -> list[Any]:
    """All that there are, if several, else those that the CPU poses as: a power of two of them, at most 8."""
    found = jax.devices() if len(jax.devices()) > 1 else jax.devices("cpu")
    return found[: 2 ** (min(8, len(found)).bit_length() - 1)]


def measure(sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and what measured them."""
    used = devices()
    about = machine(used)
    clock, unit = clock_of(used[0].platform)
    mesh = make_mesh({"context": len(used)}, devices=used)
    bench = Bench(sizes, mesh, clock, unit, *product(used[0]))
    tell, rows = Counter("measuring"), []
    parts = (balance_rows, dense_rows, stream_rows, long_rows)
    for done, part in enumerate(parts):
        tell("ring", done, len(parts))
        rows += part(bench)
    tell("ring", len(parts), len(parts))
    _, rate = bench.costs({})
    return rows, {**about, "gflops": round(rate / 1e9, 1)}
