"""Laws of plans and configs: the pictures in plan.py, what training draws, what is refused when built."""

from __future__ import annotations

import collections
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim import plan as plans
from worldsim.cli.options import load_config
from worldsim.config import (
    ActionConfig,
    ConditionConfig,
    DynamicsConfig,
    MixConfig,
    OptimConfig,
    StageConfig,
    TokenizerConfig,
    TokenizerLossConfig,
    TrainConfig,
    WorldConfig,
)
from worldsim.models.world import MAKERS, init_params, split_module
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.sharding import PARAM_RULES, by_path, logical_axes, param_shardings
from worldsim.plain import from_dict, to_dict
from worldsim.train.looks import with_looks
from worldsim.train.losses import dynamics_loss, tokenizer_loss
from worldsim.train.optim import make_optimizer
from worldsim.train.plans import sample_plan
from worldsim.train.stages import plan_batch
from worldsim.train.state import Stage
from worldsim.train.step import init_state, state_shardings

pytestmark = pytest.mark.law


def test_times_end_where_float32_knows_no_single_frames():
    last = plans.make_plan(np.arange(2), 2**23 + np.arange(-1, 1), frames_per_chunk=2)
    assert np.diff(last.times[-2:]).tolist() == [2.0]
    with pytest.raises(ValueError, match=r"frame 16777218; .* whole up to 16777216"):
        plans.make_plan(np.arange(2), -(2**23) - np.arange(2), frames_per_chunk=2)


PICTURES = {
    "forward": (plans.forward(3, 2), [0, 1, 2], [3, 4], 0),
    "backward": (plans.backward(3, 2), [2, 1, 0], [-1, -2], 0),
    "infill": (plans.infill(2, 2, 2), [4, 5, 0, 1], [2, 3], 2),
    "keyframes": (plans.keyframes(1, 16), [0], [16, 8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15], 0),
    "loop": (plans.loop(2, 8), [8, 9, 0, 1], [2, 7, 3, 6, 4, 5], 2),
    "forward in pairs": (plans.forward(2, 2, frames_per_chunk=2), [0, 2], [4, 6], 0),
    "loop in fours": (plans.loop(1, 3, frames_per_chunk=4), [12, 0], [4, 8], 1),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_the_docstring(name):
    plan, known, new, pinned = PICTURES[name]
    np.testing.assert_array_equal(plan.times, known + new)
    assert plan.known.tolist() == [True] * len(known) + [False] * len(new)
    assert plan.pinned.tolist() == [i < pinned for i in range(len(plan))]
    np.testing.assert_array_equal(plan.orders, np.arange(len(plan)))


@pytest.mark.parametrize(("known", "new"), [(1, 0), (1, 1), (3, 2), (2, 7), (1, 31)])
def test_keyframes_fill_every_place_once(known, new):
    plan = plans.keyframes(known, new)
    assert sorted(plan.times.tolist()) == list(range(known + new))
    if new:
        assert plan.times[known] == known + new - 1


def test_a_plan_that_goes_on_counts_on():
    assert dataclasses.replace(plans.forward(0, 3), first_order=7).orders.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("known", "pinned", "words"),
    [
        ([True, False, True], [False] * 3, "known chunk comes after a generated one"),
        ([True, False, False], [False, True, False], "generated chunk is pinned"),
    ],
)
def test_impossible_plans_are_refused(known, pinned, words):
    with pytest.raises(ValueError, match=words):
        plans.Plan(np.arange(3, dtype=np.float32), np.array(known), np.array(pinned))


def test_loops_without_anything_to_make_are_refused():
    with pytest.raises(ValueError, match=r"loop of 3 chunks with 3 known ones; give from 1 to 2"):
        plans.loop(3, 3)


MIX = MixConfig(chunks=8, queries=3, forward=0.4, backward=0.15, infill=0.2, shuffled=0.15, keyframes=0.1)
KEYFRAMES = (0, 7, 3, 1, 5, 2, 4, 6)


def kind_of(row):
    """Which order positions are in, counted from their first; infills with the gap before their suffix."""
    row = np.asarray(row) - min(row)
    if tuple(row) == KEYFRAMES:
        return "keyframes"
    step = np.diff(row)
    if (step == 1).all():
        return "forward"
    if (step == -1).all():
        return "backward"
    if row[0] == 0 or 0 not in row[1:]:
        return "shuffled"
    suffix = int(np.argmin(row))
    runs = (step[: suffix - 1] == 1).all() and (step[suffix:] == 1).all()
    return "infill" if runs and row[0] >= len(row) - suffix else "shuffled"


@pytest.fixture(scope="module")
def drawn():
    """Many training plans of eight chunks over twelve, with up to four pinned."""
    return [sample_plan(np.random.default_rng((5, i)), (12,), mix=MIX, pinned=4) for i in range(4000)]


def test_training_plans_stay_inside_their_clip_and_repeat_nothing(drawn):
    places = np.stack([plan.positions for plan in drawn])
    assert places.min() == 0
    assert places.max() == 11
    assert all(len(set(row)) == 8 for row in places.tolist())
    starts = collections.Counter(min(row) for row in places.tolist())
    assert set(starts) == {0, 1, 2, 3, 4}  # where a clip begins is not to be learnt


def test_every_order_is_drawn_with_its_share(drawn):
    count = collections.Counter(kind_of(plan.positions) for plan in drawn)
    for name in ("forward", "backward", "infill", "shuffled", "keyframes"):
        assert abs(count[name] / len(drawn) - getattr(MIX, name)) < 0.03, count


def test_queries_come_after_what_every_sample_knows(drawn):
    """Ascending rows, none of them known: the first chunk, or the suffix of an infill and one before it."""
    seen = set()
    for plan in drawn:
        assert len(plan.queries) == 3
        assert (np.diff(plan.queries) > 0).all()
        assert plan.queries[0] >= 1
        assert plan.queries[-1] < 8
        if kind_of(plan.positions) == "infill":
            suffix = int(np.argmin(plan.positions))
            assert plan.queries[0] > suffix
            seen.add((suffix, int(plan.positions[0] - plan.positions[-1]) - 1))
    assert {suffix for suffix, _ in seen} == {1, 2, 3, 4}
    assert {gap for _, gap in seen} == {0, 1, 2, 3, 4}  # at once, and beyond a gap of what is not shown


def test_beside_a_long_suffix_are_fewer_chunks_to_ask_for():
    """All that are left then carry loss, and the places that stay empty carry none."""
    mix, left = dataclasses.replace(MIX, queries=6), set()
    for i in range(1000):
        plan = sample_plan(np.random.default_rng((5, i)), (12,), mix=mix, pinned=4)
        asked = plan.queries[plan.queries >= 0]
        assert plan.queries.tolist() == [*asked, *[-1] * (6 - len(asked))]
        if kind_of(plan.positions) == "infill":
            suffix = int(np.argmin(plan.positions))
            left.add((suffix, len(asked)))
        else:
            assert len(asked) == 6
    assert left == {(1, 6), (2, 5), (3, 4), (4, 3)}


def small_config(frames_per_chunk=1):
    f = frames_per_chunk
    return TrainConfig(
        world=tiny.config(frames_per_chunk=f, context=7),
        tokenizer=StageConfig(frames=f),
        dynamics=StageConfig(frames=12 * f, batch=4),
        mix=MixConfig(chunks=8, queries=3),
    )


def test_plans_are_a_function_of_seed_step_and_row():
    rng = np.random.default_rng(0)
    config = small_config()
    clip = {"codes": rng.integers(0, 9, (4, 12, 2, 2)), "actions": rng.integers(0, 3, (4, 12, 1))}
    first, again, later = (plan_batch(clip, config, step=step) for step in (3, 3, 4))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert (first["times"] != later["times"]).any()
    assert len({tuple(row) for row in first["times"].tolist()}) > 1  # rows differ
    other = plan_batch(clip, dataclasses.replace(config, seed=1), step=3)
    assert (first["times"] != other["times"]).any()
    half = plan_batch({name: a[:2] for name, a in clip.items()}, config, step=3)
    np.testing.assert_array_equal(half["times"], first["times"][:2])
    rest = plan_batch({name: a[2:] for name, a in clip.items()}, config, step=3, rows=(2, 3))
    np.testing.assert_array_equal(rest["times"], first["times"][2:])


def test_stripes_deal_the_same_batch_out_to_devices():
    rng = np.random.default_rng(0)
    config = dataclasses.replace(small_config(), mix=MixConfig(chunks=8, queries=4))
    clip = {"codes": rng.integers(0, 9, (4, 12, 2, 2)), "actions": rng.integers(0, 3, (4, 12, 1))}
    whole, dealt = (plan_batch(clip, config, step=3, parts=parts) for parts in (1, 2))
    assert dealt["orders"][0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    for name in ("codes", "actions", "times"):
        np.testing.assert_array_equal(dealt[name], whole[name][:, dealt["orders"][0]])
    asked = np.take_along_axis(dealt["orders"], dealt["queries"], axis=1)
    np.testing.assert_array_equal(asked, whole["queries"][:, [0, 2, 1, 3]])
    with pytest.raises(ValueError, match="8 chunks .* 3 devices .* 6 or 9"):
        plan_batch(clip, config, step=3, parts=3)


@pytest.mark.parametrize("f", [1, 2])
def test_batches_carry_each_chunk_with_its_own_time_and_actions(f):
    config = small_config(f)
    place = np.broadcast_to(np.arange(12)[:, None, None], (4, 12, 2, 2))
    clip = {"codes": place, "actions": np.broadcast_to(np.arange(12)[:, None], (4, 12, f))}
    batch = plan_batch(clip, config, step=0)
    np.testing.assert_array_equal(batch["times"], f * batch["codes"][..., 0, 0])
    np.testing.assert_array_equal(batch["actions"][..., 0], batch["codes"][..., 0, 0])
    assert batch["codes"].shape == (4, 8, 2, 2)
    assert batch["queries"].shape == (4, 3)


CONFIGS = sorted(Path(__file__).parent.parent.joinpath("configs").glob("*.py"))


def looking(config, key):
    """Parameters of a dynamics stage with looks."""
    tokenizer, params = config.world.tokenizer, init_params("dynamics", config.world, key)
    vectors = np.zeros((tokenizer.codebook, tokenizer.latent), np.float32)
    return with_looks(params, config.world, config.looks, vectors, key)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_under_eval_shape(path):
    """Its models, its optimizer and both losses, without an array; and it survives being stored."""
    config = load_config(path)
    assert config.name == path.stem
    assert from_dict(TrainConfig, to_dict(config)) == config
    older = to_dict(config)
    del older["world"]["dynamics"]["around"], older["looks"]
    plain = dataclasses.replace(config.world.dynamics, around=False)
    before = dataclasses.replace(config, world=dataclasses.replace(config.world, dynamics=plain), looks=0)
    assert from_dict(TrainConfig, older) == before, "what was added since means what it was before"
    world, f = config.world, config.world.tokenizer.frames_per_chunk
    size = (world.tokenizer.height, world.tokenizer.width, world.tokenizer.channels)
    graphs, shapes = {}, {}
    for name in MAKERS:
        graphs[name], shapes[name] = split_module(name, world)
        init = partial(init_params, name, world)
        if name == "dynamics" and config.looks:
            init = partial(looking, config)
        stage = Stage(name, getattr(config, name), init, loss=lambda *_: None, batches=lambda _: iter(()))
        optimizer = make_optimizer(stage.config.optim, stage.config.steps)
        state = jax.eval_shape(partial(init_state, stage, optimizer), jax.random.key(0))
        own = {path for path in by_path(state.params) if not path.startswith("looks/")}
        assert own == set(by_path(shapes[name]))
        assert len(own) < len(by_path(state.params)) or name != "dynamics" or not config.looks
        for leaf in by_path(state_shardings(make_mesh({}), state)).values():
            assert isinstance(leaf, jax.sharding.Sharding)
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    frames = floats(config.tokenizer.batch, config.tokenizer.frames, *size)
    key, model = jax.random.key(0), lambda name, params: nnx.merge(graphs[name], params)
    loss, metrics = jax.eval_shape(
        lambda p, *given: tokenizer_loss(model("tokenizer", p), *given, key, weights=config.tokenizer_loss),
        shapes["tokenizer"], frames, floats(1, 1, *size),
    )  # fmt: skip
    assert loss.shape == metrics["psnr"].shape == ()
    clip = {"codes": np.zeros((2, config.dynamics.frames // f, *world.tokenizer.grid), np.uint16)}
    if world.dynamics.action.kind == "discrete":
        clip["actions"] = np.zeros((2, config.dynamics.frames // f, f), np.int32)
    for name in world.dynamics.outcomes:
        clip[name] = np.zeros((2, config.dynamics.frames // f), np.float32 if name == "rewards" else bool)
    loss, metrics = jax.eval_shape(
        lambda p, batch: dynamics_loss(
            model("dynamics", p), batch, key, digits=world.tokenizer.digits, mix=config.mix
        ),
        shapes["dynamics"], plan_batch(clip, config, step=0),
    )  # fmt: skip
    assert loss.shape == metrics["accuracy"].shape == ()


WORLDS = {
    **{path.stem: partial(lambda path: load_config(path).world, path) for path in CONFIGS},
    "everything": partial(
        tiny.config, frames_per_chunk=2, conditions=tiny.CONDITIONS, action=ActionConfig("continuous", 3)
    ),
}


@pytest.mark.parametrize("part", sorted(MAKERS))
@pytest.mark.parametrize("name", WORLDS)
def test_every_parameter_of_every_config_matches_exactly_one_sharding_rule(name, part):
    shapes = split_module(part, WORLDS[name]())[1]
    leaves = by_path(shapes)
    for path, leaf in leaves.items():
        assert len(logical_axes(path, leaf.shape)) == leaf.ndim
    assert len(jax.tree.leaves(param_shardings(make_mesh(), shapes))) == len(leaves)
    with pytest.raises(ValueError, match="matches 2 sharding rules"):
        param_shardings(make_mesh(), shapes, rules=(*PARAM_RULES, PARAM_RULES[-1]))
    with pytest.raises(ValueError, match="matches 0 sharding rules"):
        param_shardings(make_mesh(), shapes, rules=PARAM_RULES[:-1])


REFUSALS = {
    "action kind": (lambda: ActionConfig("none", 3), ["'none'", "size 3"]),
    "action size": (lambda: ActionConfig("discrete", 0), ["'discrete'", "size 0"]),
    "action names": (lambda: ActionConfig("discrete", 3, ("up", "down")), ["2 names for 3"]),
    "condition": (
        lambda: ConditionConfig("mood", "class", 0),
        ["size 0 must lie in [1, inf)"],
    ),
    "chunk": (lambda: TokenizerConfig(frames_per_chunk=3), ["frames_per_chunk 3", "power of two"]),
    "stride": (lambda: TokenizerConfig(height=60), ["60x64", "stride 8", "resize"]),
    "widths": (lambda: TokenizerConfig(widths=()), ["widths ()"]),
    "levels": (lambda: TokenizerConfig(levels=(8, 1)), ["(8, 1)", "at least 2"]),
    "heads": (lambda: DynamicsConfig(width=100, heads=6), ["width 100 over 6 heads", "Try width 96"]),
    "patch": (lambda: DynamicsConfig(patch=5), ["patch 5", "width 192"]),
    "pinned": (lambda: DynamicsConfig(context=4, pinned=4), ["context 4, pinned 4"]),
    "noise": (lambda: DynamicsConfig(max_noise=1.0), ["max_noise 1.0"]),
    "grid": (lambda: WorldConfig(TokenizerConfig(height=24), DynamicsConfig(patch=2)), ["3x8", "patch 2"]),
    "steps": (
        lambda: StageConfig(steps=0, save_every=-3),
        ["steps 0 must lie in [1, inf)"],
    ),
    "saves": (lambda: StageConfig(save_every=-3), ["save_every -3 must lie in [0, inf)"]),
    "rates": (
        lambda: OptimConfig(learning_rate=-1.0, warmup=-2),
        ["OptimConfig: learning_rate -1.0 must lie in [0, inf), warmup -2"],
    ),
    "not a rate": (lambda: OptimConfig(learning_rate=float("nan")), ["learning_rate nan"]),
    "average": (lambda: OptimConfig(ema=1.0), ["ema 1.0 must lie in [0, 1)"]),
    "negative share": (lambda: MixConfig(forward=1.0, backward=-0.35), ["backward -0.35 must lie in [0, 1]"]),
    "loss": (lambda: TokenizerLossConfig(haar=-1.0), ["haar -1.0"]),
    "draws": (lambda: TokenizerLossConfig(soft=0.7, continuous=0.7), ["continuous 0.7 and soft 0.7"]),
    "rate of frames": (lambda: WorldConfig(fps=0.0), ["fps 0.0 must lie in (0, inf)"]),
    "conditions": (
        lambda: DynamicsConfig(conditions=(ConditionConfig("mood"), ConditionConfig("mood"))),
        ["['mood', 'mood']", "another name"],
    ),
    "shares": (lambda: MixConfig(forward=0.6), ["sum to 1.05"]),
    "queries": (lambda: MixConfig(chunks=4, queries=4), ["4 query chunks of 4", "from 1 to 3"]),
    "context": (
        lambda: TrainConfig(mix=MixConfig(chunks=20)),
        ["mix.chunks 20", "context >= 19", "it is 15"],
    ),
    "short clips": (
        lambda: TrainConfig(dynamics=StageConfig(frames=12)),
        ["frames 12", "16 x", "at least 16"],
    ),
    "odd clips": (
        lambda: TrainConfig(
            world=WorldConfig(TokenizerConfig(frames_per_chunk=2)),
            tokenizer=StageConfig(frames=3),
            dynamics=StageConfig(frames=32),
        ),
        ["tokenizer.frames 3", "frames_per_chunk 2"],
    ),
    "unknown keys": (
        lambda: from_dict(WorldConfig, {"fps": 10.0, "colour": 1, "dept": 2}),
        ["['colour', 'dept']", "fps"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_impossible_configs_are_refused_when_built(name):
    build, words = REFUSALS[name]
    with pytest.raises(ValueError) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_schedule_is_refused():
    config = OptimConfig()
    object.__setattr__(config, "schedule", "step")  # past the type checks that tests put around configs
    with pytest.raises(ValueError, match="schedule 'step'; take 'wsd' or 'cosine'"):
        config.__post_init__()
