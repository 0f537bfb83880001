"""Inspection: attention that is what the model reads, runs at every stage of their life, and whole pages."""

import dataclasses
import io
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image
from rich.console import Console
from test_data_tfds import moving_mnist, pixels

from worldsim import cli
from worldsim.cli.inspect import EVERY, with_seconds
from worldsim.config import ActionConfig, StageConfig, TrainConfig
from worldsim.data.video import write_video
from worldsim.evaluate.plots import Line, Panel
from worldsim.inspect import attention, heat, pages, played, runs
from worldsim.inspect.findings import Bars, Curves, Findings, Section, Sheet, Table, duration, size
from worldsim.inspect.kinds import STAGES, kind_of
from worldsim.inspect.terminal import render, sparkline
from worldsim.inspect.watch import watch
from worldsim.inspect.worlds import world_findings
from worldsim.models.dynamics import Chunks
from worldsim.ops.attention import KNOWN, QUERY
from worldsim.train.metrics import PLAN_FILE
from worldsim.train.run import _write_plan


def chunks(world, orders, stream, *, seed=0, masked=False):
    """Chunks of noise at times that are no order, with actions."""
    count, f = len(orders), world.config.tokenizer.frames_per_chunk
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, world.config.tokenizer.codebook, (1, count, *world.config.tokenizer.grid))
    if masked:
        codes = np.full_like(codes, world.config.tokenizer.codebook)
    return Chunks(
        codes=jnp.asarray(codes, jnp.int32),
        times=jnp.asarray(np.asarray(orders)[None] * f, jnp.float32),
        ids=tiny.chunk_ids(0, np.asarray(orders)[None], stream),
        noise=jnp.zeros((1, count), jnp.float32),
        actions=jnp.asarray(rng.integers(0, 3, (1, count, f)), jnp.int32),
    )


@partial(jax.jit, static_argnames="graph")
def predicted(graph, params, known, query):
    """What the model says where nobody looks."""
    model = nnx.merge(graph, params)
    return model.predict(query, model.past(model.remember(known), query))


@pytest.fixture(scope="module")
def looked():
    """Known chunks of orders 0 to 5 beside a query of order 3, for every token of it."""
    world = tiny.make_world(tiny.config(around=True), parts=("tokenizer", "dynamics"))
    known, query = chunks(world, range(6), KNOWN), chunks(world, [3], QUERY, seed=1, masked=True)
    tokens = nnx.merge(*world.dynamics).tokens
    each = [attention.token_weights(*world.dynamics, known, query, jnp.int32(n)) for n in range(tokens)]
    return world, known, query, each


@pytest.mark.law
def test_weights_sum_to_one(looked):
    for found, _, _ in looked[3]:
        np.testing.assert_allclose(np.asarray(found).sum(-1), 1.0, atol=1e-6)


@pytest.mark.law
def test_weights_times_values_are_what_the_models_attention_reads(looked):
    for found, (values, read), _ in looked[3]:
        made = np.einsum("lkm,lkme->lke", found, values)
        np.testing.assert_allclose(made, read, atol=2e-5)
        assert np.abs(read).max() > 0.1


@pytest.mark.law
def test_chunks_of_higher_order_get_nothing_and_earlier_ones_do(looked):
    world, _, _, each = looked
    tokens = nnx.merge(*world.dynamics).tokens
    for found, _, _ in each:
        parts = np.asarray(found).reshape(*found.shape[:2], -1, tokens)
        assert (parts[:, :, 3:6] == 0).all()
        assert (parts[:, :, :3].sum(-1) > 0).all()
        assert (parts[:, :, 6].sum(-1) > 0).all()


@pytest.mark.law
def test_to_be_looked_at_changes_nothing(looked):
    world, known, query, each = looked
    want = predicted(*world.dynamics, known, query)
    np.testing.assert_allclose(each[0][2], want, atol=1e-5)


@pytest.mark.law
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_only_what_comes_before_in_the_plan_is_seen(pair_world, direction):
    clip = tiny.make_clip(17, seed=3)
    found = attention.look(pair_world, clip, token=(1, 0), frame=9, direction=direction)
    assert found.frames[found.own] == 8 and found.token == (1, 0)
    assert list(found.frames) == ([0, 2, 4, 6, 8] if direction == "forward" else [8, 10, 12, 14])
    np.testing.assert_allclose(found.weights.sum((-1, -2)), 1.0, atol=1e-6)
    assert found.weights.shape == (2, 2, len(found.frames), 2 + 4)
    other = attention.look(pair_world, tiny.make_clip(17, seed=4), token=(1, 0), frame=9, direction=direction)
    assert not np.allclose(other.weights, found.weights, atol=1e-3)


def test_the_nats_are_those_of_the_true_codes(world):
    """Of a chunk of one token a code, by hand."""
    clip = tiny.make_clip(5)
    found = attention.look(world, clip, token=(0, 1), frame=4)
    codes = attention.tokenize(*world.tokenizer, clip.frames[None], frames_per_chunk=1)
    every = attention._chunks(codes, np.arange(5.0), clip.actions[:, None])
    logits = predicted(*world.dynamics, *attention._split(every, world.config.tokenizer.codebook))
    want = -jax.nn.log_softmax(logits[0, 0, 0, 1])[codes[0, 4, 0, 1]]
    assert found.nats == pytest.approx(float(want), abs=1e-4)


def test_the_token_that_changes_is_the_one_by_default(world):
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    frames[3, 12, 2] = 255
    clip = attention.Clip(frames)
    assert attention.look(world, clip).token == (1, 0)


def test_a_world_without_actions_leaves_those_of_a_clip_out():
    plain = tiny.make_world(tiny.config(action=ActionConfig()), parts=("tokenizer", "dynamics"))
    found = attention.look(plain, tiny.make_clip(3), token=(0, 0))
    assert found.lead == 0 and found.weights.shape[-1] == 4
    np.testing.assert_allclose(found.weights.sum((-1, -2)), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"token": (2, 0)}, "rows go from 0 to 1"),
        ({"frame": 0}, "take 1 to 7"),
        ({"frame": 99}, "take 1 to 7"),
        ({"frame": 7, "direction": "backward"}, "take 0 to 6"),
    ],
)
def test_what_is_not_there_cannot_be_looked_at(world, asked, told):
    with pytest.raises(ValueError, match=told):
        attention.look(world, tiny.make_clip(8), **asked)


def test_bars_and_facts_are_of_the_chosen_layer_and_head(world):
    clip = tiny.make_clip(8)
    found = attention.look(world, clip, token=(0, 0))
    section, facts = heat.attention_section(found, clip, layer=1, head=0)
    want = found.weights[1, 0].sum(-1)
    np.testing.assert_allclose(section.items[0].values, want, atol=1e-6)
    assert section.items[0].marked == {found.own}
    assert sum(facts["chunks"].values()) == pytest.approx(1, abs=1e-5)
    assert facts["on_actions"] == pytest.approx(float(found.weights[1, 0, :, 0].sum()), abs=1e-6)
    assert [row[0] for row in section.items[2].rows] == ["layer 1, head 0", "layer 1, head 1"]
    json.dumps(facts, allow_nan=False)
    with pytest.raises(ValueError, match="--layer 2; the world has layers 0 to 1"):
        heat.attention_section(found, clip, layer=2)


@pytest.fixture
def run(tmp_path):
    """A run of 40, 20 and 100 steps that has its plan and nothing else."""
    config = TrainConfig(
        "tiny",
        tokenizer=StageConfig(steps=40),
        refine=StageConfig(steps=20),
        dynamics=StageConfig(steps=100, frames=16),
    )
    _write_plan(config, tmp_path / "run", "all")
    return tmp_path / "run"


def advance(run, stage, upto, *, every=10, pace=0.5, saved=(), half=False):
    """Log lines of a stage, and checkpoints."""
    folder = run / stage
    folder.mkdir(exist_ok=True)
    lines = [
        {"step": step, "loss": 1.0 / step, "psnr": 20.0 + step, "grad_norm": 0.1, "seconds": 3 + pace * step}
        for step in range(every, upto + 1, every)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + ('{"step": 999, "lo' if half else "")
    (folder / "metrics.jsonl").write_text(text)
    for step in saved:
        (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)


def finish(run):
    for stage, steps in (("tokenizer", 40), ("refine", 20), ("dynamics", 100)):
        advance(run, stage, steps, saved=[steps])
    (run / "world").mkdir()
    (run / "world" / "config.json").write_text("{}")


def test_a_run_that_has_written_nothing(run, tmp_path):
    for folder in (run, tmp_path / "never"):
        found = runs.run_findings(runs.read_run(folder))
        assert "Nothing is written yet" in found.lead
        assert {stage["step"] for stage in found.facts["stages"].values()} == {0}
        assert not found.facts["done"]
        pages.page(found)


def test_a_run_under_way_with_a_half_written_line(run):
    advance(run, "tokenizer", 40, saved=[40])
    advance(run, "refine", 20, saved=[10], half=True)
    state = runs.read_run(run)
    told = runs.facts(state)["stages"]
    assert [told[name]["state"] for name in STAGES] == ["done", "runs", "waits"]
    assert told["refine"]["step"] == 20 and told["dynamics"]["steps"] == 100
    assert told["refine"]["seconds_a_step"] == pytest.approx(0.5)
    advance(run, "refine", 10)
    assert runs.read_run(run).stages[1].left is None  # one line: no pace is known
    advance(run, "dynamics", 30)
    (run / "refine" / "checkpoints" / "20").mkdir()
    state = runs.read_run(run)
    assert state.stages[2].left == pytest.approx(70 * 0.5)
    assert runs.lead(state) == "Dynamics runs: step 30 of 100, 500 ms a step, 35 s left of it."


def test_a_resumed_run_whose_clock_began_again(run):
    advance(run, "dynamics", 30)
    with (run / "dynamics" / "metrics.jsonl").open("a") as log:
        log.writelines(
            json.dumps({"step": s, "loss": 1, "seconds": (s - 30) * 2.0}) + "\n" for s in (40, 50, 60)
        )
    assert runs.read_run(run).stages[2].pace == pytest.approx(1.25, abs=0.8)
    assert runs.read_run(run).stages[2].step == 60


def test_a_run_that_fell_silent_says_so(run, monkeypatch):
    advance(run, "tokenizer", 20)
    now = runs.time.time()
    monkeypatch.setattr(runs.time, "time", lambda: now + 600)
    state = runs.read_run(run)
    assert state.stages[0].state() == "silent for 10 min"
    assert "silent for 10 min: step 20 of 40" in runs.lead(state)


def test_a_run_of_one_stage_is_done_with_it(run):
    plan = json.loads((run / PLAN_FILE).read_text())
    (run / PLAN_FILE).write_text(json.dumps(plan | {"stage": "refine"}))
    advance(run, "tokenizer", 40, saved=[40])
    assert not runs.read_run(run).done
    advance(run, "refine", 20, saved=[20])
    state = runs.read_run(run)
    assert state.done and state.stages[2].state() == "not trained"


def test_a_run_without_a_plan_is_known_by_its_checkpoints(run):
    advance(run, "tokenizer", 20, saved=[20])
    config = json.loads((run / PLAN_FILE).read_text())["config"]
    (run / PLAN_FILE).unlink()
    assert runs.read_run(run).stages[0].total is None
    folder = run / "tokenizer" / "checkpoints" / "20" / "config"
    folder.mkdir()
    (folder / "metadata").write_text(json.dumps({"stage": "tokenizer", "config": config}))
    assert runs.read_run(run).stages[0].total == 40
    assert kind_of(str(run)) == "run"


def test_watching_rewrites_the_page_until_the_training_ends(run):
    seen, texts, out = [], [], run.parent / "run.html"

    def sleep(seconds):
        assert seconds == 2.5
        texts.append(out.read_text())
        if len(texts) == 1:
            advance(run, "tokenizer", 20, half=True)
        elif len(texts) == 2:
            finish(run)

    found = watch(run, 2.5, show=seen.append, out=out, sleep=sleep)
    assert len(seen) == 3 and found.facts["done"]
    assert all('http-equiv="refresh" content="2"' in text for text in texts)
    assert "step 20 of 40" in texts[1]
    assert "refresh" not in out.read_text() and "Done" in out.read_text()
    (run / "world" / "config.json").unlink()

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(run, 2.5, show=seen.append, out=out, sleep=stop)
    assert "refresh" not in out.read_text() and "Done" not in out.read_text()
    with pytest.raises(ValueError, match="--watch 0"):
        watch(run, 0, show=seen.append)


def test_samples_that_training_drew_are_in_the_page(run):
    advance(run, "tokenizer", 20)
    (run / "tokenizer" / "samples").mkdir()
    for step in (10, 20):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(run / "tokenizer" / "samples" / f"{step:07d}.png")
    text = pages.page(runs.run_findings(runs.read_run(run)))
    assert "tokenizer, samples of step 20" in text and "samples of step 10" not in text


def everything():
    """Findings with an item of each kind."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    mark = np.arange(5) < 2
    items = [
        Table(("name", "<b>"), [["a & b", 1.25]]),
        Table(("", "0"), [["layer", 0.5]], shade=True),
        Bars(["one", "two"], [0.25, 0.75], frozenset({1})),
        Sheet([frames, frames[:3]], ["truth", "made"], known=[mark, mark[:3]]),
        Curves([Panel("loss", "", [Line("", [3.0, 2.0, 1.0], at=[10, 20, 30])], axis="step", log=True)]),
    ]
    return Findings("<title>", "lead & line", {}, [Section("All", items, "a note")])


def test_a_page_needs_nothing_else():
    text = pages.page(everything())
    assert "&lt;title&gt;" in text and "<title><title>" not in text and "a &amp; b" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in text and "https://" not in text and "<script" not in text


def test_a_terminal_shows_frames_where_it_has_colours_only():
    for color in (True, False):
        out = io.StringIO()
        console = Console(
            file=out, width=100, force_terminal=color, color_system="truecolor" if color else None
        )
        console.print(render(everything(), width=100, color=color))
        text = out.getvalue()
        assert ("▀" in text) == color
        assert "75.0 %" in text and "█▆▁" in text and "a note" in text


def test_a_sparkline_follows_its_curve():
    assert sparkline(Line("", [0, 1, 2, 3, 4, 5, 6, 7])) == "▁▂▃▄▅▆▇█"
    assert sparkline(Line("", [1, 10, 100]), log=True) == sparkline(Line("", [0, 1, 2]))
    assert sparkline(Line("", [np.nan, np.nan])) == ""
    assert len(sparkline(Line("", np.arange(1000.0)), columns=20)) == 20


def test_numbers_for_reading():
    assert [size(n) for n in (12, 1234, 5_600_000, 7.8e9)] == ["12 B", "1.2 kB", "5.6 MB", "7.8 GB"]
    assert [duration(s) for s in (9, 600, 9000, 4e5)] == ["9 s", "10 min", "2.5 h", "4.6 days"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved world, a clip, and a dataset of arrays."""
    folder = tmp_path_factory.mktemp("inspect")
    world = tiny.make_world(tiny.config())
    splits = {"train": {"frames": 99, "hashes": ["deadbeef"] * 500}}
    told = {
        "name": "tiny",
        "data": {"name": "noise", "kind": "made", "splits": splits},
        "steps": {"dynamics": 7},
    }
    dataclasses.replace(world, provenance=told).save(folder / "world")
    write_video(folder / "clip.npz", tiny.make_clip(10))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 12, 16, 16, 3), np.uint8)
    np.savez(folder / "data.npz", frames=frames, actions=np.tile(np.arange(12) % 3, (3, 1)).astype(np.int32))
    return folder


def test_a_world_in_short(folder):
    found = world_findings(folder / "world", name="tiny")
    parts = found.facts["parts"]
    world = tiny.make_world(tiny.config())
    for name, tree in world.params.items():
        assert parts[name]["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert found.facts["parameters"] == sum(part["parameters"] for part in parts.values())
    assert found.facts["bytes"] >= sum(part["bytes"] for part in parts.values())
    text = pages.page(found)
    assert "train 99 frames" in text and "deadbeef" not in text + json.dumps(found.facts)
    assert "2x2 codes of 9" in text


def told(capsys, *words):
    cli.main(["inspect", *map(str, words)])
    return capsys.readouterr().out


def test_the_verb_on_a_world(folder, capsys):
    out = folder / "world.html"
    words = (
        "--input",
        folder / "clip.npz",
        "--frames",
        "3",
        "--steps",
        "1",
        "--token",
        "1,0",
        "--layer",
        "0",
    )
    known = json.loads(
        told(capsys, folder / "world", *words, "--out", out, "--json"), parse_constant=pytest.fail
    )
    assert known["continuation"]["frames"] == 3 and known["continuation"]["known"] == 6
    assert known["attention"]["token"] == [1, 0] and known["attention"]["frame"] == 6
    assert 1 <= known["codes"]["used"] <= 9
    text = out.read_text()
    assert text.count("data:image/png") == 3 and "What a token looks at" in text
    assert "What it makes" not in told(capsys, folder / "world", "--no-play")


def test_without_a_clip_held_out_data_is_taken(folder, monkeypatch):
    monkeypatch.chdir(folder)
    clip, source = played.held_out_clip({"train": {"data": {"path": "data.npz", "eval_split": "train"}}})
    assert clip.frames.shape == (12, 16, 16, 3) and list(clip.actions[:4]) == [0, 1, 2, 0]
    assert source == "data.npz, train record 0"
    for data in ({}, {"path": "gone", "eval_split": "train"}, {"path": "data.npz", "eval_split": "test"}):
        assert played.held_out_clip({"train": {"data": data}}) is None


def test_held_out_data_may_be_a_registered_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    data = {"path": "tfds:moving_mnist", "eval_split": "test[75%:]"}
    assert played.held_out_clip({"train": {"data": data}}) is None  # not prepared here
    moving_mnist(tmp_path, "tfrecord")
    clip, source = played.held_out_clip({"train": {"data": data}})
    np.testing.assert_array_equal(clip.frames, pixels(3, channels=1))
    assert clip.actions is None and source == "tfds:moving_mnist, test[75%:] record 0"
    with pytest.raises(ValueError, match="no split 'valid'; it has test"):
        played.held_out_clip({"train": {"data": data | {"eval_split": "valid"}}})


def test_the_verb_on_a_dataset(folder, capsys):
    out = folder / "data.html"
    known = json.loads(told(capsys, folder / "data.npz", "--out", out, "--json"))
    assert known["what"] == "data" and known["splits"]["train"]["frames"] == 36
    np.testing.assert_allclose(known["action_shares"], [1 / 3] * 3)
    assert "Actions taken" in out.read_text()
    assert "36 frames of 16x16x3" in told(capsys, folder / "data.npz")


def test_the_verb_on_a_run(run, capsys):
    finish(run)
    text = told(capsys, run)
    assert "Done: the world is" in text and "500 ms a step" in text and "100 %" in text
    assert told(capsys, run, "--watch").startswith("Done")
    assert json.loads(told(capsys, run, "--json"))["stages"]["dynamics"]["step"] == 100


def test_a_report_is_shown_beside_the_world(folder, tmp_path, capsys):
    score = {
        key: [30.0, 20.0, 10.0, 10.0]
        for key in ("mean", "low", "high", "best", "copy", "copy_low", "copy_high")
    }
    report = {
        "world": "w", "data": "d", "clips": 3, "known": 4, "curves": {"forward": {"psnr": score}},
        "nats": {"forward": {"mean": 1.5}}, "pictures": {"q": {"psnr": 41.25}}, "actions": None,
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(report))
    text = told(capsys, folder / "world", "--no-play", "--report", tmp_path)
    assert re.search(r"forward +30.00 +17.50", text) and "41.25" in text
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(folder / "world"), "--report", str(folder)])
    assert "no report at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "words", "says"),
    [
        ("world", ("--watch",), "--watch is for a training, and"),
        ("data.npz", ("--token", "1,1"), "--token: for worlds"),
        ("world", ("--token", "1;1", "--input", "clip.npz"), "give ROW,COLUMN"),
        ("world", ("--out", "a.png"), "is an .html"),
        ("clip.mp4", (), "does not exist; give a world"),
        (".", (), "none of what it takes; give a world"),
    ],
)
def test_what_cannot_be_shown_is_refused(folder, capsys, monkeypatch, what, words, says):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", what, *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_kinds_and_the_error_that_names_them(folder, run, tmp_path):
    assert kind_of("pong") == kind_of(str(folder / "world")) == "world"
    assert kind_of(str(folder / "data.npz")) == kind_of("tfds:moving_mnist") == "data"
    assert kind_of(str(run)) == "run"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        kind_of(str(tmp_path / "empty"))
    for word in ("empty folder", "pong", "weights.safetensors", "dataset_info.json", "tfds:NAME", PLAN_FILE):
        assert word in str(error.value)


def test_watch_may_stand_alone():
    assert with_seconds(["inspect", "--watch", "runs/pong"]) == ["inspect", "--watch", EVERY, "runs/pong"]
    assert with_seconds(["inspect", "a", "--watch"]) == ["inspect", "a", "--watch", EVERY]
    assert with_seconds(["inspect", "a", "--watch", "2.5"]) == ["inspect", "a", "--watch", "2.5"]


@pytest.mark.slow
def test_a_bundled_world_is_shown_with_all_it_has(tmp_path, capsys):
    out = tmp_path / "sprites.html"
    told(capsys, "sprites", "--out", out, "--frames", "4", "--steps", "2")
    text = out.read_text()
    for word in ("What it makes", "Scores", "Parts", "What a token looks at", "Codes", "Training: dynamics"):
        assert word in text
