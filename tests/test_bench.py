"""Benchmarks: the form of their rows, the order of their cases, and what they count by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldsim import cli
from worldsim.bench import (
    blocks,
    child,
    large,
    layouts,
    loader,
    raster,
    ring,
    rivals,
    rollout,
    rows,
    start,
    train,
)
from worldsim.models.world import init_params
from worldsim.ops import attention
from worldsim.ops.visible import PADDING, visible

TINY = ring.Sizes(tokens=512, streams=256, dense=64, chunk=8, heads=1, width=8, rounds=1)
FOUND = {
    "rows": [
        rows.Row("fast_8", 2.0, "CPU s", baseline=5.0, floor=1.23456789, note="bar: none").plain(),
        rows.Row("missing", None, "CPU s").plain(),
    ],
    "machine": {"cores": 2, "load": None},
}


def test_a_row_says_how_many_times_less_it_takes():
    fast, missing = FOUND["rows"]
    assert fast == {
        "name": "fast_8",
        "value": 2.0,
        "unit": "CPU s",
        "baseline": 5.0,
        "ratio": 2.5,
        "floor": 1.235,
        "note": "bar: none",
    }
    assert missing == dict.fromkeys(rows.COLUMNS) | {"name": "missing", "unit": "CPU s"}


def test_the_verb_prints_a_table_or_json(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(child, "measure", lambda what, *, quick: asked.append((what, quick)) or FOUND)
    cli.main(["bench", "ring", "--json", "--quick"])
    told = capsys.readouterr().out
    assert json.loads(told, parse_constant=pytest.fail) == FOUND
    assert told.count("\n") == 1
    cli.main(["bench", "ring"])
    head, fast, note, missing, machine = capsys.readouterr().out.splitlines()
    assert head.split() == list(rows.COLUMNS)
    assert fast.split() == ["fast_8", "2", "CPU", "s", "5", "2.5", "1.235"]
    assert note.strip() == "bar: none"
    assert missing.split() == ["missing", "-", "CPU", "s", "-", "-", "-"]
    assert machine == "cores 2, load None"
    assert asked == [("ring", True), ("ring", False)]


def test_a_figure_that_is_no_number_is_refused():
    with pytest.raises(ValueError):
        rows.as_json([rows.Row("bad", float("nan"), "s").plain()], {})


def test_cases_run_in_turns_forth_and_back():
    """Costs are 1, 2, 3 ... seconds in the order of the runs; the medians are those of each case's own."""
    ran, seconds = [], [0.0]

    def case(name):
        ran.append(name)
        seconds[0] += len(ran)

    cases = {name: lambda name=name: case(name) for name in "abc"}
    found = rows.interleaved(cases, rounds=3, clock=lambda: seconds[0])
    assert "".join(ran) == "abccbaabc"
    assert found == {"a": 6, "b": 5, "c": 4}


def test_visible_pairs_are_those_of_the_law():
    rng = np.random.default_rng(0)
    kinds = [
        layouts.causal(40),
        layouts.causal(40, clips=[3, 30, 7]),
        layouts.two_streams(64, 4, 2),
        rng.integers((PADDING, 0, 0), (2, 5, 2), (50, 3)).astype(np.int32),
    ]
    for ids in kinds:
        assert layouts.visible_pairs(ids) == int(visible(*[jnp.asarray(ids)[None]] * 2).sum())
    assert layouts.visible_pairs(kinds[0]) == 40 * 41 // 2


def test_two_streams_lie_known_first_on_each_device():
    """Chunks of one token on two devices: 0 and 2 on the first, 1 and 3 on the second."""
    assert layouts.two_streams(8, 1, 2).tolist() == [
        *([0, 0, 0], [0, 2, 0], [0, 0, 1], [0, 2, 1]),
        *([0, 1, 0], [0, 3, 0], [0, 1, 1], [0, 3, 1]),
    ]


def test_balance_by_hand():
    """Eight tokens on two devices, tiles of one token.

    Contiguous: device 0 has its triangle of 10 pairs and then nothing, device 1 its 10 and then all 16.
    In stripes of one: triangles of 10 each; then device 0 (0 2 4 6) sees 0 + 1 + 2 + 3 pairs of 1 3 5 7, and
    device 1 sees 1 + 2 + 3 + 4 of 0 2 4 6.
    """
    ids = layouts.causal(8)
    contiguous = layouts.work(ids, 2, 1, 1)
    assert contiguous.tolist() == [[10, 10], [0, 16]]
    assert layouts.balance(contiguous) == (10 + 8) / (10 + 16)
    stripes = layouts.work(ids[layouts.places(8, 1, 2)], 2, 1, 1)
    assert stripes.tolist() == [[10, 10], [6, 10]]
    assert layouts.balance(stripes) == (10 + 8) / (10 + 10)


def test_four_clips_share_no_tile():
    """Clips of 2, 2, 1 and 3 tokens: triangles of 3, 3, 1 and 6 pairs."""
    work = layouts.work(layouts.causal(8, clips=[2, 2, 1, 3]), 1, 1, 1)
    assert work.tolist() == [[3 + 3 + 1 + 6]]


def bench_of(sizes):
    used = ring.devices()
    mesh = ring.make_mesh({"context": len(used)}, devices=used)
    return ring.Bench(sizes, mesh, iter(range(10**6)).__next__, "ticks", lambda: None, 1e9)


@pytest.fixture
def bench():
    return bench_of(TINY)


def test_balance_counts_the_tiles_that_attention_takes(bench, monkeypatch):
    """Tiles of a chunk: the triangle of each hop's shards, with or without its diagonal."""
    monkeypatch.setattr(attention, "tile_sizes", lambda *_, **__: (8, 8))
    one, four = ring.balance_rows(bench)
    each = [[36 - 8 * (device < hop) for device in range(8)] for hop in range(8)]
    assert bench.parts == 8
    assert one.name == "balance_one_clip_8"
    assert one.value == pytest.approx(np.mean(each, 1).sum() / np.max(each, 1).sum())
    assert 0 < four.value <= 1


def test_balance_holds_its_bars_at_full_length():
    """Nothing is computed: 32k tokens on 8 devices, in the tiles that attention takes."""
    found = {row.name: row for row in ring.balance_rows(bench_of(ring.FULL))}
    assert found["balance_one_clip_8"].value >= 0.95, found
    assert found["balance_four_clips_8"].value >= 0.88, found
    assert "[32768] tokens" in found["balance_one_clip_8"].note


@pytest.mark.slow
def test_memory_holds_its_bars_at_full_length():
    """Compiled and not run: what a device holds beside arguments and results, at 32k and 64k tokens."""
    bench, held = bench_of(ring.FULL), []
    for tokens in (bench.sizes.tokens, 2 * bench.sizes.tokens):
        args = *bench.shapes(bench.mesh, tokens), bench.ids(ring.striped(bench, tokens))
        held.append(ring.mebibytes(ring.compiled(bench.mesh, bench.ours("ring"), *args)))
    assert bench.parts == 8 and tokens == 65_536
    assert held[0] <= 95, held
    assert held[1] <= 2.1 * held[0], held


def test_without_ringattention_its_rows_say_so(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "ringattention", None)
    found = {row.name: row.plain() for row in ring.long_rows(bench)}
    assert list(found) == [
        *("ratio_over_ringattention_512_8", "ratio_over_allgather_512_8", "temp_mib_512_8"),
        "growth_1k_over_512",
    ]
    row = found["ratio_over_ringattention_512_8"]
    assert row["baseline"] is row["ratio"] is None
    assert row["value"] > 0
    assert "pip install 'worldsim[bench]'" in row["note"]
    assert found["ratio_over_allgather_512_8"]["ratio"] > 0
    assert found["temp_mib_512_8"]["value"] > 0
    assert not hasattr(jax.lib, "xla_bridge")


def test_a_ringattention_that_is_wrong_shows(bench, monkeypatch):
    """One in the package's place that is ours but for a tenth of its values."""

    def near(q, k, v, *_):
        order = jax.lax.axis_index("context") * q.shape[1] + np.arange(q.shape[1])
        ids = jnp.stack([order * 0, order, order * 0], -1)[None].astype("int32")
        every = [jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (k, v, ids)]
        return attention.reference(q, *(every[:2]), ids, every[2]) * scale

    monkeypatch.setitem(sys.modules, "ringattention", types.SimpleNamespace(ringattention_jax=near))
    theirs, why = rivals.ringattention()
    assert not why
    scale = 1.0
    assert ring.difference(bench, theirs) < 2e-6
    monkeypatch.setattr(rivals, "BLOCKS", ((16, 32), (32, 128)))
    blocks, why = ring.best_blocks(bench, theirs, 512)  # each costs one tick of the clock
    assert blocks == (16, 32)
    assert why == "blocks of 16x32, the fastest of 16x32, 32x128 at 512 tokens"
    scale = 1.1
    assert ring.difference(bench, theirs) == pytest.approx(0.1 / 1.1, rel=0.02)


def test_the_process_has_its_devices_whatever_the_shell_says():
    given = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_dump_to=x", "PYTHONPATH": "there"}
    flags = child.environment(given, 8)["XLA_FLAGS"].split()
    assert [flag for flag in flags if "device_count" in flag] == ["--xla_force_host_platform_device_count=8"]
    assert "--xla_dump_to=x" in flags
    assert child.environment(given, 8)["PYTHONPATH"].endswith("there")


def test_a_process_that_fails_is_told_of(monkeypatch):
    ran = subprocess.CompletedProcess([], 3, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ran)
    with pytest.raises(RuntimeError, match="bench ring: its process ended with status 3"):
        child.measure("ring")


@pytest.mark.slow
def test_a_benchmark_runs_in_its_process(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")
    cli.main(["bench", "ring", "--json", "--quick"])
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    names = {row["name"]: row for row in found["rows"]}
    assert found["machine"]["devices"] == 8
    for name in ("balance_one_clip_8", "balance_four_clips_8"):
        assert 0 < names[name]["value"] <= 1
    assert all(set(rows.COLUMNS) <= set(row) for row in found["rows"])


def test_blocks_are_measured_in_every_pattern(monkeypatch):
    monkeypatch.setattr(blocks, "PATTERNS", {"chunk_causal": blocks.PATTERNS["chunk_causal"]})
    sizes = blocks.Sizes((32,), (16,), total=64, channels=32, chunk=8, rounds=1, repeat=2)
    found, about = blocks.measure(sizes)
    kinds = [
        f"{block}_chunk_causal_{which}_32_w16" for which in ("forward", "both") for block in ("jax", "pallas")
    ]
    assert [row.name for row in found] == kinds
    ours, fused, both, _ = found
    assert 0 < ours.value < both.value and both.floor == pytest.approx(3.5 * ours.floor)
    assert ours.baseline is None and "no cuDNN" in ours.note
    assert fused.value is None and "needs a GPU" in fused.note
    assert about["dtype"] == "float32"
    ids = blocks.PATTERNS["chunk_causal"](32, 8)
    assert layouts.visible_pairs(ids) == 8 * 8 * (1 + 2 + 3 + 4)


def test_a_rollout_is_measured_beside_its_products(monkeypatch):
    config = rollout.workload(side=16, codes=16, width=32, layers=1, context=3)
    sizes = rollout.Sizes(config, passes=(2,), near=2, far=5, frames=2, rounds=1)
    monkeypatch.setitem(sys.modules, "transformers", None)
    found, about = rollout.measure(sizes)
    names = ["cpu_s_per_frame_k2", "ratio_over_torch_k2", "growth_5_over_2"]
    names += ["memory_5_over_5", "decode", "refine"]
    assert [row.name for row in found] == names
    assert all(row.value > 0 for row in found if row.name != "ratio_over_torch_k2")
    assert found[0].floor > 0 and found[0].unit == "CPU s a frame"
    assert found[1].value is None and "worldsim[rivals]" in found[1].note
    assert about["cores"]


def test_a_large_world_is_measured_in_training_and_rollout():
    config = rollout.workload(side=16, codes=16, width=32, layers=1, context=3)
    sizes = large.Sizes(config, chunks=4, queries=2, passes=(2, 1), frames=2, memory=2**16, rounds=1)
    found = {row.name: row for row in large.measure(sizes)[0]}
    assert list(found) == [
        *(f"train_{part}" for part in ("step", "forward", "gradients", "attention", "rest")),
        *("frame_k2", "frame_k1", "decode", "refine", "stream"),
    ]
    assert all(row.value > 0 for name, row in found.items() if name != "train_rest")
    assert found["train_step"].floor == pytest.approx(3 * found["train_forward"].floor)
    assert found["frame_k2"].floor == pytest.approx(1.5 * found["frame_k1"].floor)


def test_the_products_of_a_large_world_are_counted():
    """Four chunks of 5 tokens known in the order 2 0 3 1, of which those at places 0 and 3 are asked for."""
    config = rollout.workload(side=16, codes=16, width=32, layers=3, context=3)
    sizes = large.Sizes(config, chunks=4, queries=2)
    ids = large.token_ids(sizes, {"orders": np.array([[2, 0, 3, 1]]), "queries": np.array([[0, 3]])})
    pairs = 25 * ((1 + 2 + 3 + 4) + (2 + 1) + (1 + 1))
    places = jnp.asarray(ids)[None]
    assert visible(places, places).sum() == pairs
    weights, mlp = 4 * 32 * 32, 2 * 32 * 128
    assert large.model_flops(sizes, ids) == 6 * (30 * 3 * (weights + mlp) + 10 * 32 * 16 + pairs * 3 * 2 * 32)


def test_the_large_world_has_300_million_parameters_and_16_k_tokens():
    dynamics = large.FULL.config.dynamics
    made = jax.eval_shape(lambda key: init_params("dynamics", large.FULL.config, key), jax.random.key(0))
    assert 290e6 < sum(leaf.size for leaf in jax.tree.leaves(made)) < 330e6
    assert (large.FULL.chunks + large.FULL.queries) * (256 + 1) == 16_448
    assert large.training(large.FULL).world.dynamics.context == 47
    assert large.FULL.config.tokenizer.grid == (16, 16) and dynamics.width // dynamics.heads == 64


@pytest.mark.parametrize("cache", raster.CACHES)
def test_the_raster_rival_keeps_the_window_and_no_more(cache):
    pytest.importorskip("transformers", reason="extra rivals")
    config = rollout.workload(side=16, codes=16, width=32, layers=1, context=3)
    draw = raster.Raster(config, cache=cache)
    for _ in range(2):
        draw(2)
        assert int(draw.kept.get_seq_length()) == 3 * (1 + 4)


def test_products_are_counted_through_loops_and_calls():
    square = jnp.ones((8, 8))

    def program(x):
        x = jax.lax.fori_loop(0, 3, lambda _, y: y @ square, x)
        x = jax.lax.cond(x.sum() > 0, lambda y: y @ square @ square, lambda y: y @ square, x)
        return jax.jit(jnp.einsum, static_argnums=0)("ij,jk->ik", x, square[:, :4])

    flops = train.product_flops(jax.make_jaxpr(program)(jnp.ones((2, 8))).jaxpr)
    assert flops == 2 * 2 * 8 * 8 * (3 + 1) + 2 * 2 * 8 * 4
    image, kernel = jnp.ones((1, 3, 5, 5)), jnp.ones((4, 3, 2, 2))
    conv = jax.make_jaxpr(lambda x: jax.lax.conv(x, kernel, (1, 1), "VALID"))(image)
    assert train.product_flops(conv.jaxpr) == 2 * (4 * 4 * 4) * (3 * 2 * 2)


@pytest.mark.slow
def test_the_steps_of_all_stages_are_measured():
    found = {row.name: row for row in train.measure(train.QUICK)[0]}
    names = ("tokenizer", "dynamics", "refine", "tokenizer_ws64", "dynamics_ws64")
    assert list(found) == [f"train_cpu_s_{name}" for name in names]
    assert all(0 < row.floor < row.value for row in found.values())


def test_the_loader_is_measured_beside_memory():
    (row,) = loader.measure(loader.QUICK)[0]
    assert row.name == "loader_clips_per_cpu_s"
    assert row.value > 0 and row.floor is None and row.ratio is None and "in memory" in row.note


def test_a_live_rollout_stands_where_it_is_asked_to():
    config = rollout.workload(side=16, codes=16, width=32, layers=1, context=3)
    live = rollout.Live(rollout.random_world(config), frame=7, block=3)
    assert live.state.next_order == 7
    live(2, 1)
    assert live.state.next_order == 9
    assert sorted(np.asarray(live.state.cache.times)[0].tolist()) == [6, 7, 8]


def test_a_start_is_measured_in_processes_of_its_own(monkeypatch):
    monkeypatch.setattr(start, "IMPORT", "import time; time.sleep(0.2)")
    monkeypatch.setattr(start, "FRAME", "import os; assert os.environ['JAX_COMPILATION_CACHE_DIR']")
    found = {row.name: row for row in start.measure(start.Sizes(rounds=1))[0]}
    assert list(found) == ["import_s", "first_frame_warm_s"]
    assert found["import_s"].value > 0.2 and found["first_frame_warm_s"].baseline > 0
    with pytest.raises(RuntimeError, match="status 1"):
        start.seconds("raise SystemExit(1)", {})
