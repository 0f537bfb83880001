"""Laws of packing: a clip trains beside others in a row as it does alone, and padding does nothing."""

from __future__ import annotations

import collections
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.config import MixConfig, StageConfig, TrainConfig
from worldsim.data.arrays import ArraySource
from worldsim.data.loader import Loader
from worldsim.models.dynamics import Dynamics
from worldsim.models.world import split_module
from worldsim.ops.attention import PADDING
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.placement import place_batch
from worldsim.parallel.sharding import by_path
from worldsim.train.checkpoints import check_record, make_record
from worldsim.train.loop import train_stage
from worldsim.train.losses import dynamics_loss
from worldsim.train.plans import sample_plan
from worldsim.train.stages import dynamics_stage, plan_batch

pytestmark = pytest.mark.law

WORLD = tiny.config(context=11, conditions=tiny.CONDITIONS)
MIX = MixConfig(chunks=12, queries=8, segments=3)
CLIPS = (5, 4, 2)  # chunks of the clips in the packed row, which leave one chunk of padding
GRAPH, PARAMS = split_module("dynamics", WORLD)[0], tiny.params("dynamics", WORLD)


def config(mix=MIX, *, frames=12, batch=2, **changes):
    stage = StageConfig(batch=batch, frames=frames, save_every=0, sample_every=0, log_every=1, steps=2)
    return TrainConfig(world=WORLD, dynamics=stage, mix=mix, **changes)


def codes(lengths, *, longest=None, seed=0):
    """Records of these lengths, of which no two chunks are alike."""
    rng, longest = np.random.default_rng(seed), longest or max(lengths)
    shape = (len(lengths), longest)
    return {
        "codes": rng.integers(0, 9, (*shape, 2, 2)).astype(np.uint16),
        "actions": rng.integers(0, 3, (*shape, 1)).astype(np.int32),
        "condition_class": rng.integers(0, 4, shape).astype(np.int32),
        "condition_speed": rng.normal(size=(*shape, 2)).astype(np.float32),
        "lengths": np.asarray(lengths),
    }


def rows_of(clips, *, width):
    """Clips in rows of their own, padded to ``width`` with what must not matter."""
    rng = np.random.default_rng(9)

    def pad(array):
        missing = width - len(array)
        return np.concatenate([array, rng.permutation(np.resize(array, (missing, *array.shape[1:])))])

    out = {name: np.stack([pad(clip[name]) for clip in clips]) for name in clips[0]}
    for row, clip in enumerate(clips):
        out["segments"][row, len(clip["codes"]) :] = PADDING
        out["queries"][row, len(clip["queries"]) :] = -1
    return out


@pytest.fixture(scope="module")
def packed():
    """A batch of two packed rows, and its clips one by one as they were planned."""
    arrays = codes((11, 11), longest=12)
    arrays.pop("lengths")
    arrays["segments"] = np.tile(np.append(np.repeat(np.arange(3), CLIPS), PADDING), (2, 1)).astype(np.int32)
    batch = plan_batch(arrays, config(), step=3)
    clips = []
    for row in range(2):
        for segment in range(3):
            mine = batch["segments"][row] == segment
            clip = {name: a[row][mine] for name, a in batch.items() if name != "queries"}
            asked = [q for q in batch["queries"][row] if q >= 0 and mine[q]]
            clip["queries"] = np.searchsorted(np.flatnonzero(mine), asked).astype(np.int32)
            clip["segments"] = np.zeros_like(clip["segments"])
            clips.append(clip)
    return batch, clips


@partial(jax.jit, static_argnames="segments")
def loss(params, batch, *, segments):
    mix = dataclasses.replace(MIX, segments=segments, null_actions=0.5, null_conditions=0.5)
    return dynamics_loss(nnx.merge(GRAPH, params), batch, jax.random.key(4), digits=(3, 3), mix=mix)[0]


gradient = jax.jit(jax.value_and_grad(loss), static_argnames="segments")


def assert_close(found, want):
    for path, array in by_path(want).items():
        scale = np.sqrt(np.mean(np.square(array)))
        error = np.sqrt(np.mean(np.square(by_path(found)[path] - array)))
        assert error <= 2e-5 * max(scale, 1e-6), path


def test_a_packed_row_trains_as_its_clips_do_in_rows_of_their_own(packed):
    batch, clips = packed
    apart = rows_of(clips, width=6)
    assert apart["codes"].shape[:2] == (6, 6)
    assert (apart["queries"] >= 0).sum() == (batch["queries"] >= 0).sum() > 8
    value, grads = gradient(PARAMS, batch, segments=3)
    alone, want = gradient(PARAMS, apart, segments=1)
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert_close(grads, want)


def test_the_first_clip_trains_as_it_does_with_nothing_else_in_the_batch(packed):
    """No padding at all on one side; two other clips, padding and another row on the other."""
    batch, clips = packed
    first = {name: a[None] for name, a in clips[0].items()}
    queries = np.where(batch["segments"][0][batch["queries"]] == 0, batch["queries"], -1)
    queries[1:] = -1
    value, grads = gradient(PARAMS, batch | {"queries": queries}, segments=3)
    alone, want = gradient(PARAMS, first, segments=1)
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert_close(grads, want)


def two_streams(batch, monkeypatch, *, segments=3):
    """What the model is shown in both streams, and its logits."""
    shown, run = [], Dynamics.streams

    def spy(model, *streams, **how):
        made = run(model, *streams, **how)
        shown.extend((*streams, model.logits(made[1])))
        return made

    monkeypatch.setattr(Dynamics, "streams", spy)
    loss.__wrapped__(PARAMS, {n: jnp.asarray(a) for n, a in batch.items()}, segments=segments)
    return shown


@pytest.mark.parametrize("changed", [1, PADDING, *[pytest.param(i, marks=pytest.mark.slow) for i in (0, 2)]])
def test_a_change_in_one_segment_never_changes_the_logits_of_another(packed, monkeypatch, changed):
    batch, _ = packed
    here = batch["segments"] == changed
    other = {
        name: np.where(here[(...,) + (None,) * (a.ndim - 2)], (a + 1) % 3, a).astype(a.dtype)
        for name, a in batch.items()
        if name not in ("queries", "segments", "orders")
    }
    *_, logits = two_streams(batch, monkeypatch)
    *_, moved = two_streams(batch | other, monkeypatch)
    differ = np.abs(np.asarray(moved - logits)).max((2, 3, 4)) > 1e-4
    asked = np.take_along_axis(batch["segments"], batch["queries"], axis=1)
    real = batch["queries"] >= 0
    assert not differ[real & (asked != changed)].any()
    assert changed == PADDING or differ[real & (asked == changed)].mean() > 0.9


def test_padding_gives_no_gradient_and_no_nan(packed):
    """Codes that only padding has are not learnt, and a batch of nothing but padding teaches nothing."""
    batch, _ = packed
    ours = np.where(batch["segments"][..., None, None] < 0, 8, batch["codes"] % 8).astype(np.uint16)
    clean = dataclasses.replace(MIX, clean=1.0)
    given = jax.tree.map(jnp.asarray, batch | {"codes": ours})
    asked = lambda params: dynamics_loss(
        nnx.merge(GRAPH, params), given, jax.random.key(4), digits=(3, 3), mix=clean
    )[0]
    table = by_path(jax.jit(jax.grad(asked))(PARAMS))["codes"]
    assert not np.asarray(table[8]).any()
    assert np.asarray(table[:8]).any(1).all()
    empty = {"segments": np.full_like(batch["segments"], PADDING), "queries": np.full((2, 8), -1, np.int32)}
    value, grads = gradient(PARAMS, batch | empty, segments=3)
    assert float(value) == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_random_numbers_differ_between_clips_of_a_row(packed, monkeypatch):
    """Two clips with the same codes and orders are corrupted and masked each in its own way."""
    batch, _ = packed
    twice = {name: a.copy() for name, a in batch.items()}
    for name, a in twice.items():
        if name not in ("queries", "segments"):
            a[:, 5:9] = a[:, :4]
    known, *_ = two_streams(twice, monkeypatch)
    noise = np.asarray(known.noise)
    assert (noise[:, :4] != noise[:, 5:9]).any(1).all()
    assert (noise[0] != noise[1]).any()


def test_inputs_are_dropped_clip_by_clip(monkeypatch):
    arrays = codes((12,) * 40) | {"segments": np.tile(np.repeat(np.arange(3), 4), (40, 1)).astype(np.int32)}
    arrays.pop("lengths")
    batch = plan_batch(arrays, config(), step=0)
    known, *_ = two_streams(batch, monkeypatch)
    gone = (np.asarray(known.actions)[..., 0] == -1).reshape(40, 3, 4)
    null = (np.asarray(known.conditions["class"]) == -1).reshape(40, 3, 4)
    assert (np.diff(gone.astype(int), axis=2) >= 0).all()  # from some chunk of the clip on
    assert (null.all(2) | ~null.any(2)).all()
    for lost in (gone.any(2), null.any(2)):
        assert 0.35 < lost.mean() < 0.65
        assert (lost.any(1) & ~lost.all(1)).any()  # in some rows of some clips only


def test_plans_of_packed_rows_are_those_of_the_picture():
    """Whole clips in orders of their own, counted from 0; queries among what has something before it."""
    kinds = collections.Counter()
    for seed in range(300):
        plan = sample_plan(np.random.default_rng(seed), (5, 4, 2), mix=MIX, pinned=2)
        assert plan.segments.tolist() == [0] * 5 + [1] * 4 + [2] * 2 + [PADDING]
        assert plan.orders.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 0]
        assert sorted(plan.positions[:11].tolist()) == list(range(11))
        for start, stop in ((0, 5), (5, 9), (9, 11)):
            assert sorted(plan.positions[start:stop].tolist()) == list(range(start, stop))
        asked = plan.queries[plan.queries >= 0]
        assert (np.diff(asked) > 0).all() and not {0, 5, 9, 11} & set(asked.tolist())
        assert 4 <= len(asked) <= 8 and (plan.queries[len(asked) :] == -1).all()
        kinds[tuple(plan.positions[5:9])] += 1
    assert len(kinds) > 10  # the second clip has every order too
    forward = dataclasses.replace(MIX, forward=1.0, backward=0.0, infill=0.0, shuffled=0.0, keyframes=0.0)
    plan = sample_plan(np.random.default_rng(0), (5, 4, 2), mix=forward, pinned=2)
    assert plan.queries.tolist() == [1, 2, 3, 4, 6, 7, 8, 10]  # all that have something before them
    cut = sample_plan(np.random.default_rng(0), (7, 9), mix=MIX, pinned=2)
    assert cut.segments.tolist() == [0] * 7 + [1] * 5
    assert (cut.positions[7:] >= 7).all() and cut.positions.max() < 16


def test_times_count_from_the_beginning_of_each_clip(packed):
    batch, _ = packed
    for row in range(2):
        for segment, length in enumerate(CLIPS):
            mine = batch["segments"][row] == segment
            assert sorted(batch["times"][row][mine]) == list(range(length))


def source(lengths):
    """Records whose actions tell record and place."""
    arrays = codes(lengths)
    arrays["actions"] = np.arange(len(lengths))[:, None, None] * 100 + np.arange(max(lengths))[None, :, None]
    return ArraySource({name: a for name, a in arrays.items() if "condition" not in name}, keys=None)


def test_rows_are_filled_with_whole_clips_and_the_last_is_cut():
    lengths = (5, 3, 30, 7, 1)
    loader = Loader(source(lengths), frames=12, batch=4, seed=1, threads=0, segments=3)
    assert loader.skipped == 1  # a single chunk has nothing before it
    seen, cut = collections.Counter(), 0
    for step in range(60):
        batch = loader[step]
        assert batch["segments"].shape == (4, 12)
        for segments, actions in zip(batch["segments"], batch["actions"][..., 0], strict=True):
            used = (segments >= 0).sum()
            assert (segments[:used] >= 0).all() and (np.diff(segments[:used]) >= 0).all()
            for segment in range(segments.max() + 1):
                clip = actions[segments == segment]
                record, last = clip[0] // 100, segment == segments.max()
                assert (np.diff(clip) == 1).all() and (clip // 100 == record).all()
                whole = min(lengths[record], 12)
                assert len(clip) == whole or (last and used == 12 and 2 <= len(clip) < whole)
                cut += len(clip) < whole
                seen[record] += 1
            full = used >= 11 or segments.max() == 2
            assert full
    assert set(seen) == {0, 1, 2, 3} and cut > 10


@pytest.mark.parametrize("threads", [0, 2])
def test_packed_batches_are_a_function_of_the_step_for_any_process(threads):
    make = partial(Loader, source((5, 3, 30, 7)), frames=12, batch=4, seed=1, segments=3)
    whole, parts = make(threads=0), [make(rows=rows, threads=threads) for rows in ((0, 3), (1, 2))]
    streams = [part.iterate(3) for part in parts]
    for step in (3, 4, 5):
        local = [next(stream) for stream in streams]
        for name, array in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in local])[[0, 2, 3, 1]], array)
    for stream in streams:
        stream.close()


def test_stripes_deal_packed_rows_out_to_devices(packed):
    batch, _ = packed
    arrays = codes((11, 11), longest=12)
    arrays.pop("lengths")
    arrays["segments"] = np.tile(np.append(np.repeat(np.arange(3), CLIPS), PADDING), (2, 1)).astype(np.int32)
    dealt = plan_batch(arrays, config(), step=3, parts=4)
    order = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    for name in ("codes", "times", "orders", "segments"):
        np.testing.assert_array_equal(dealt[name], batch[name][:, order])
    found = [sorted(np.asarray(order)[row[row >= 0]]) for row in dealt["queries"]]
    assert found == [sorted(row[row >= 0]) for row in batch["queries"]]


def test_a_mesh_that_spreads_packed_rows_gives_the_same_gradients():
    found = {}
    for parts in (1, 2):
        mesh, run = make_mesh({"context": parts}), config()
        stage = dynamics_stage(run, ArraySource(codes((5, 4, 3, 7)), keys=None), mesh=mesh)
        batch = next(stage.batches(0))
        assert (batch["segments"] == 1).any()
        with jax.set_mesh(mesh):
            placed = place_batch(mesh, batch, 2, sequence=True)
            grads = jax.jit(jax.grad(stage.loss, has_aux=True))
            given = grads(PARAMS, None, placed, jax.random.key(2), jnp.int32(0))[0]
        found[parts] = jax.tree.map(np.asarray, given)
    assert_close(found[2], found[1])


def test_recordings_shorter_than_a_row_are_trained_on(tmp_path):
    short = ArraySource(codes((5, 4, 3, 7)), keys=None)
    with pytest.raises(ValueError, match=r"no record has 12 frames.*mix\.segments"):
        dynamics_stage(config(dataclasses.replace(MIX, segments=1)), short)
    run = config()
    state = train_stage(dynamics_stage(run, short), tmp_path, seed=0, config=run)
    assert int(state.step) == 2


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match=r"segments 0 must lie in \[1, inf\)"):
        MixConfig(segments=0)
    with pytest.raises(ValueError, match="3 segments in rows of 1 frames"):
        Loader(source((5, 3)), frames=1, batch=1, seed=0, segments=3)
    with pytest.raises(ValueError, match="no record has 2 frames"):
        Loader(source((1, 1)), frames=4, batch=1, seed=0, segments=2)


def test_a_checkpoint_from_before_there_was_packing_goes_on(tmp_path):
    record = make_record("dynamics", seed=0, frozen=None, config=config(MixConfig(chunks=12, queries=8)))
    old = {**record, "config": {**record["config"], "mix": dict(record["config"]["mix"])}}
    del old["config"]["mix"]["segments"]
    check_record(old, record, folder=tmp_path)
    packed = make_record("dynamics", seed=0, frozen=None, config=config())
    with pytest.raises(ValueError, match=r"mix\.segments: 1 in the checkpoint, 3 now"):
        check_record(old, packed, folder=tmp_path)
