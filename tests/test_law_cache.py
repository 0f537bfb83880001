"""Laws of the cache: what generation reads from it is what training saw, in any order, layout and time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim import plan as plans
from worldsim.generate import rollout
from worldsim.generate.prefill import blocks, prefill
from worldsim.models.dynamics import Chunks, Dynamics
from worldsim.models.world import split_module
from worldsim.ops import rope
from worldsim.ops.attention import KNOWN, PADDING, QUERY
from worldsim.parallel.mesh import make_mesh

pytestmark = pytest.mark.law

CONTEXT = 12
WORLDS = {
    "one frame": tiny.config(context=CONTEXT, conditions=tiny.CONDITIONS),
    "tokens see around them": tiny.config(context=CONTEXT, conditions=tiny.CONDITIONS, around=True),
    "two frames, patches": tiny.config(
        context=CONTEXT, conditions=tiny.CONDITIONS, frames_per_chunk=2, patch=2, rope_base=30.0
    ),
}


def shuffled(seed):
    """Four known and five new chunks at random places, some fractional, some negative, with gaps."""
    rng = np.random.default_rng(seed)
    times = rng.choice(np.arange(-20, 20), 9, replace=False) + rng.choice([0, 0.5], 9)
    return plans.Plan(times.astype(np.float32), np.arange(9) < 4, np.zeros(9, bool))


PLANS = {
    "forward": plans.forward(4, 5),
    "forward from nothing": plans.forward(0, 3),
    "forward from two blocks": plans.forward(10, 2),
    "backward": plans.backward(4, 5, frames_per_chunk=2),
    "infill": plans.infill(2, 2, 5),
    "keyframes": plans.keyframes(4, 5),
    "two-sided": plans.make_plan(np.arange(4), np.array([4, -1, 5, -2, 6])),
    "loop anchor": plans.loop(2, 7),
    **{f"shuffled {seed}": shuffled(seed) for seed in range(3)},
}


def known_stream(world, plan, *, seed=0, batch=2):
    """True codes, actions (some null) and conditions of every row of a plan."""
    rng = np.random.default_rng(seed)
    p, f = len(plan), world.tokenizer.frames_per_chunk
    speed = rng.normal(size=(batch, p, 2)).astype(np.float32)
    speed[:, ::3] = np.nan
    return Chunks(
        codes=jnp.asarray(rng.integers(0, 9, (batch, p, 2, 2)), jnp.int32),
        times=jnp.broadcast_to(jnp.asarray(plan.times), (batch, p)),
        ids=tiny.chunk_ids(0, np.broadcast_to(plan.orders, (batch, p)), KNOWN),
        noise=jnp.zeros((batch, p)),
        actions=jnp.asarray(rng.integers(-1, 3, (batch, p, f)), jnp.int32),
        conditions={
            "class": jnp.asarray(rng.integers(-1, 4, (batch, p)), jnp.int32),
            "speed": jnp.asarray(speed),
        },
    )


def pick(chunks, rows):
    return jax.tree.map(lambda a: a[:, np.asarray(rows)], chunks)


def masked(known, rows, *, seed=1):
    """The query stream of some rows, half of its codes masked."""
    query = pick(known, rows)
    hidden = np.random.default_rng(seed).random(query.codes.shape) < 0.5
    return dataclasses.replace(
        query, codes=jnp.where(hidden, 9, query.codes), ids=query.ids.at[..., 2].set(QUERY)
    )


two_stream = jax.jit(Dynamics.two_stream, static_argnames="strategy")
predict = jax.jit(lambda model, query, cache: model.predict(query, model.past(cache, query)))
commit = jax.jit(Dynamics.commit)


def cached(world, plan, known, query, rows, *, seed=0, model=None):
    """Logits of each generated row from the cache, its true codes committed after it is asked."""
    model = tiny.model("dynamics", world) if model is None else model
    graph, params = nnx.split(model)
    cache = model.empty_cache(known.codes.shape[0])
    slots = np.random.default_rng(seed).permutation(CONTEXT)[: len(plan)]  # any slot will do
    arrays = {
        "codes": np.asarray(known.codes),
        "actions": np.asarray(known.actions),
        "conditions": {name: np.asarray(a) for name, a in known.conditions.items()},
    }
    for _, block in blocks(plan, slots, np.flatnonzero(plan.known), context=CONTEXT, **arrays):
        cache = prefill(graph, params, cache, block, jnp.float32(jnp.inf))
    logits = []
    for i, row in enumerate(rows):
        logits.append(predict(model, pick(query, [i]), cache))
        cache = commit(model, pick(known, [row]), cache, jnp.asarray(slots[[row]]))
    return np.concatenate(logits, axis=1)


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_cached_generation_equals_the_two_stream_pass(world, plan):
    known = known_stream(world, plan)
    rows = np.flatnonzero(~plan.known)
    query = masked(known, rows)
    full = two_stream(tiny.model("dynamics", world), known, query)
    assert np.ptp(full) > 1
    np.testing.assert_allclose(cached(world, plan, known, query, rows), full, atol=1e-4)


@pytest.mark.parametrize("sight, near", [(2.0, 2), (3.5, 3), (np.inf, 5)])
def test_what_lies_out_of_sight_is_as_if_it_were_not_there(sight, near):
    """Five chunks before the one that is asked for, of which so many lie near enough."""
    world = WORLDS["one frame"]
    plan = plans.make_plan(np.arange(5), np.array([5]))
    known, model = known_stream(world, plan), tiny.model("dynamics", world)
    query, slots = masked(known, np.array([5])), jnp.arange(5)
    whole = model.commit(pick(known, np.arange(5)), model.empty_cache(len(known.codes)), slots)
    cut = dataclasses.replace(whole, ids=whole.ids.at[:, : 5 - near, 0].set(PADDING))
    seen = model.predict(query, model.past(whole, query, sight=sight))
    np.testing.assert_allclose(seen, model.predict(query, model.past(cut, query)), atol=1e-5)
    if near < 5:
        assert np.abs(seen - model.predict(query, model.past(whole, query))).max() > 1e-3


def test_bfloat16_is_near_float32_in_both_passes():
    world, plan = WORLDS["one frame"], PLANS["infill"]
    known, rows = known_stream(world, plan), np.flatnonzero(~plan.known)
    query = masked(known, rows)
    exact = np.asarray(two_stream(tiny.model("dynamics", world), known, query))
    graph, _ = split_module("dynamics", world, dtype=jnp.bfloat16)
    half = nnx.merge(graph, tiny.params("dynamics", world))
    for logits in (two_stream(half, known, query), cached(world, plan, known, query, rows, model=half)):
        error = np.sqrt(np.mean((np.asarray(logits, np.float32) - exact) ** 2)) / exact.std()
        assert 0 < error < 0.03


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_the_rollout_equals_the_two_stream_pass(world, plan):
    """The likeliest codes in one pass: each chunk was drawn from the right cache, and stands in it."""
    given, model = known_stream(world, plan), tiny.model("dynamics", world)
    graph, params = nnx.split(model)
    dials = rollout.Dials(jnp.int32(1), jnp.float32(0))
    state = rollout.start(graph, params, keys=jax.random.split(jax.random.key(0), 2))
    state, codes = rollout.run(
        (graph, params), state, plan, codes=np.asarray(given.codes), dials=dials,
        actions=np.asarray(given.actions),
        conditions={name: np.asarray(a) for name, a in given.conditions.items()},
    )  # fmt: skip
    np.testing.assert_array_equal(codes[:, plan.known], given.codes[:, plan.known])
    rows = np.flatnonzero(~plan.known)
    drawn = dataclasses.replace(given, codes=jnp.asarray(codes))
    query = pick(drawn, rows)
    query = dataclasses.replace(
        query, codes=jnp.full_like(query.codes, 9), ids=query.ids.at[..., 2].set(QUERY)
    )
    np.testing.assert_array_equal(two_stream(model, drawn, query).argmax(-1), codes[:, rows])
    assert len(np.unique(codes[:, rows])) > 2


@pytest.mark.parametrize(("strategy", "parts"), [("ring", 2), ("ring", 4), ("allgather", 2)])
def test_streams_spread_over_devices_give_the_same(strategy, parts):
    """Chunk by chunk, the heads too where there are devices left."""
    world, plan = WORLDS["one frame"], PLANS["infill"]
    model, known = tiny.model("dynamics", world), pick(known_stream(world, plan), np.arange(8))
    query = masked(known, np.array([5, 2, 7, 1]))
    full = two_stream(model, known, query)
    with jax.set_mesh(make_mesh({"context": parts, "tensor": 2})):
        spread = two_stream(model, known, query, strategy=strategy)
    np.testing.assert_allclose(spread, full, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_layout_of_chunks_does_not_matter(world):
    """Chunks laid out in any way in either stream, orders and times with them: the same answers."""
    plan, rng = PLANS["shuffled 1"], np.random.default_rng(3)
    model, known = tiny.model("dynamics", world), known_stream(world, plan)
    query = masked(known, np.arange(len(plan)))
    full = two_stream(model, known, query)
    there, asked = rng.permutation(len(plan)), rng.permutation(len(plan))
    moved = two_stream(model, pick(known, there), pick(query, asked))
    np.testing.assert_allclose(moved, full[:, asked], atol=1e-4)


@pytest.mark.parametrize("shift", [-7.0, 0.25, 1e5, 1e6])
def test_shifting_all_times_changes_nothing(shift):
    world, plan = WORLDS["one frame"], PLANS["two-sided"]
    model, known = tiny.model("dynamics", world), known_stream(world, plan)
    rows = np.flatnonzero(~plan.known)
    query = masked(known, rows)
    later = dataclasses.replace(plan, times=plan.times + np.float32(shift))
    move = lambda chunks: dataclasses.replace(chunks, times=chunks.times + shift)
    full = two_stream(model, known, query)
    np.testing.assert_allclose(two_stream(model, move(known), move(query)), full, atol=1e-4)
    np.testing.assert_allclose(cached(world, later, move(known), move(query), rows), full, atol=1e-4)
    wider = dataclasses.replace(known, times=1.5 * known.times)
    assert np.abs(two_stream(model, wider, query) - full).max() > 1e-2  # but distances matter


def later(cache, *, times, orders):
    """A cache whose chunks all lie later and were made after so many others."""
    empty = cache.ids[..., :1] == PADDING
    ids = jnp.where(empty, cache.ids, cache.ids.at[..., 1].add(orders))
    return dataclasses.replace(cache, times=cache.times + times, ids=ids)


@pytest.mark.parametrize("plan", ["forward", "two-sided", "shuffled 1"])
@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_rollouts_a_million_frames_or_chunks_later_draw_the_same_codes(world, plan):
    """After a past that was committed there, and after one that was moved there; on until it is forgotten."""
    plan, (graph, params) = PLANS[plan], nnx.split(tiny.model("dynamics", world))
    onward = plans.make_plan(np.zeros(0, int), np.arange(20, 23 + CONTEXT))
    known, new = (known_stream(world, part, seed=i) for i, part in enumerate((plan, onward)))
    dials = rollout.Dials(jnp.int32(3), jnp.float32(0))

    def go(state, part, given, *, times, slower):
        part = dataclasses.replace(part, times=np.float32(slower) * part.times + np.float32(times))
        return rollout.run(
            (graph, params), state, part, codes=np.asarray(given.codes), dials=dials,
            actions=np.asarray(given.actions),
            conditions={name: np.asarray(a) for name, a in given.conditions.items()},
        )  # fmt: skip

    def draw(*, times=0.0, orders=0, moved=(0.0, 0), slower=1.0):
        state = rollout.start(graph, params, keys=jax.random.split(jax.random.key(0), 2))
        state = dataclasses.replace(state, next_order=orders)
        state, first = go(state, plan, known, times=times, slower=slower)
        cache = later(state.cache, times=moved[0], orders=moved[1])
        state = dataclasses.replace(state, cache=cache, next_order=state.next_order + moved[1])
        state, rest = go(state, onward, new, times=times + moved[0], slower=slower)
        return np.concatenate([first, rest], axis=1)

    want = draw()
    assert len(np.unique(want[:, len(plan) :])) > 2
    for times, orders in ((1e6, 0), (0.0, 10**6), (1e6, 10**6)):
        np.testing.assert_array_equal(draw(times=times, orders=orders), want)
        np.testing.assert_array_equal(draw(moved=(times, orders)), want)
    assert (draw(slower=1.5) != want).any()  # but distances matter


def test_keys_are_rotated_when_read():
    """The same chunk at another time leaves the same keys; the time is read from beside them."""
    world = WORLDS["one frame"]
    model = tiny.model("dynamics", world)
    known = known_stream(world, plans.forward(1, 2))
    first, last = pick(known, [0]), pick(known, [2])
    later = dataclasses.replace(first, times=first.times + 7.5)
    empty, slot = model.empty_cache(2), jnp.asarray([3])
    here, there = commit(model, first, empty, slot), commit(model, later, empty, slot)
    for a, b in zip(here.keys + here.values, there.keys + there.values, strict=True):
        np.testing.assert_array_equal(a, b)
    assert there.times[0, 3] == 7.5
    moved = dataclasses.replace(here, times=there.times)
    query = masked(last, np.array([0]))
    np.testing.assert_array_equal(predict(model, query, moved), predict(model, query, there))
    assert np.abs(predict(model, query, here) - predict(model, query, there)).max() > 1e-2


def test_what_is_left_out_is_null_and_null_is_no_class():
    """Actions and conditions, classes and vectors: through one door, each felt by the answer."""
    world = WORLDS["one frame"]
    model, known = tiny.model("dynamics", world), known_stream(world, plans.forward(3, 0))
    rows = np.array([1])
    null = {
        "actions": jnp.full_like(known.actions, -1),
        "class": jnp.full_like(known.conditions["class"], -1),
        "speed": jnp.full_like(known.conditions["speed"], jnp.nan),
    }

    def answer(**changes):
        conditions = {**known.conditions, **changes}
        actions = conditions.pop("actions", known.actions)
        conditions = {name: a for name, a in conditions.items() if a is not None}
        chunks = dataclasses.replace(known, actions=actions, conditions=conditions)
        return two_stream(model, chunks, masked(chunks, rows))

    for name, nothing in null.items():
        np.testing.assert_array_equal(answer(**{name: None}), answer(**{name: nothing}))
        others = [jnp.full_like(nothing, i) for i in range(3)]
        logits = [np.asarray(answer(**{name: value})) for value in (nothing, *others)]
        for i, a in enumerate(logits):
            assert all(np.abs(a - b).max() > 1e-3 for b in logits[:i]), name


def test_a_slot_past_the_end_is_dropped_and_the_others_stay():
    world = WORLDS["one frame"]
    model, known = tiny.model("dynamics", world), known_stream(world, plans.forward(3, 0))
    cache = commit(model, known, model.empty_cache(2), jnp.asarray([4, CONTEXT, 1]))
    assert np.flatnonzero(cache.ids[0, :, 0] == 0).tolist() == [1, 4]
    assert cache.ids[0, 1].tolist() == [0, 2, KNOWN]
    slots = np.asarray(cache.keys[0]).reshape(2, 2, CONTEXT, model.tokens, -1)
    assert not slots[:, :, [0, 2, 3, *range(5, CONTEXT)]].any()
    assert slots[:, :, [1, 4]].any(axis=(0, 1, 3, 4)).all()


def test_only_differences_of_phase_matter():
    """Rotated dot products depend on distance alone, and lengths stay."""
    rng = np.random.default_rng(0)
    q, k = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 16)), jnp.float32)

    def turn(x, at):
        at = jnp.full((1, 1), at)
        return rope.rotate(x, rope.turns(rope.phases(at, 2 * at, -at, head=16, base=50.0)))

    score = lambda a, b: float((turn(q, a) * turn(k, b)).sum())

    np.testing.assert_allclose(score(3.0, 1.0), score(-4.5, -6.5), rtol=1e-4)
    assert abs(score(3.0, 1.0) - score(1.0, 3.0)) > 1e-2
    np.testing.assert_allclose(np.linalg.norm(turn(q, 5.0)), np.linalg.norm(q), rtol=1e-5)
