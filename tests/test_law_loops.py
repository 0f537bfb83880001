"""Laws of loops: effort changes what it should and nothing else, and a chunk never sees itself."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from worldsim import plan as plans
from worldsim.generate import requests
from worldsim.generate.loop import APART, Effort, all_nats, apart, branches, sweep, sweep_groups, time_order
from worldsim.generate.requests import Closing
from worldsim.generate.ring import Looker, Ring, others, redraw_block, surprise_block
from worldsim.generate.rollout import rollout_block

pytestmark = pytest.mark.law

KEY = jax.random.key(1)


def some_ring(rows, total, *, seed=0, closed=True):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 9, (rows, total, 2, 2)).astype(np.int32)
    return Ring(codes, rng.integers(0, 3, (rows, total, 1)).astype(np.int32), closed=closed)


def looker(world, block=4):
    return Looker(world.dynamics, world.config, block=block)


def test_one_candidate_and_no_sweep_is_the_plain_loop(world, pair_world):
    for each in (world, pair_world):
        f = each.config.tokenizer.frames_per_chunk
        clip = tiny.make_clip(4 * f)
        request = requests.loop_request(clip, 7 * f, each.config)
        plain = each.run([request], each.dials(steps=3), keys=KEY[None])[0]
        loop = each.loop(clip, 7 * f, key=KEY, steps=3, candidates=1, sweeps=0)
        np.testing.assert_array_equal(loop.codes, plain.codes)
        np.testing.assert_array_equal(loop.clip.frames, plain.clip.frames)
        assert plain.closing is None
        assert loop.closing.nats.shape == (7,)


def test_the_candidate_is_kept_whose_least_likely_chunk_is_most_likely(world):
    clip, n, sweeps = tiny.make_clip(4, seed=4), 4, 1
    alone = [world.loop(clip, 7, key=key, candidates=1, sweeps=sweeps) for key in branches(KEY[None], n)[0]]
    worst = [one.closing.worst for one in alone]
    best = int(np.argmin(worst))
    assert best != 0  # or the test could not tell it from the first
    kept = world.loop(clip, 7, key=KEY, candidates=n, sweeps=sweeps)
    np.testing.assert_array_equal(kept.codes, alone[best].codes)
    np.testing.assert_allclose(kept.closing.nats, alone[best].closing.nats, rtol=1e-4)


def test_the_ends_of_a_loop_are_blind_to_each_other_until_they_are_near(world):
    """Of a loop of 30 chunks and a window of 6 the first one made is what would follow the opening alone; of
    one of 7, whose anchor is in view, it is not."""
    clip, how = tiny.make_clip(2), {"key": KEY, "steps": 4, "refine_steps": 0, "revisions": 0}
    clip.actions[0] = -1  # nobody knows what leads to a loop's first frame
    alone = world.extend(clip, 1, **how).codes[0]
    far, near = (world.loop(clip, n, candidates=1, sweeps=0, **how).codes[0] for n in (30, 7))
    np.testing.assert_array_equal(far, alone)
    assert (near != alone).any()


def test_a_loop_of_a_batch_is_that_loop_alone(world):
    clips = [tiny.make_clip(5, seed=seed) for seed in range(2)]
    keys, effort, dials = jax.random.split(KEY, 2), Effort(1, 1), world.dials(steps=4)
    batch = [requests.loop_request(clip, 6, world.config) for clip in clips]
    together = world.run(batch, dials, keys=keys, effort=effort)
    for i, clip in enumerate(clips):
        alone = world.loop(clip, 6, key=keys[i], steps=4, candidates=1, sweeps=1)
        np.testing.assert_array_equal(together[i].codes, alone.codes)
        np.testing.assert_allclose(together[i].closing.nats, alone.closing.nats, rtol=1e-4)
        np.testing.assert_allclose(together[i].closing.usual, alone.closing.usual, rtol=1e-4)


def test_the_picture_of_what_a_chunk_sees():
    """As in the docstring of worldsim.generate.ring."""
    away = others(1, 3, context=6, after=3, closed=True)
    assert away.tolist() == [1, 2, 4, -4, -2, -1]
    assert ((1 + away) % 3).tolist() == [2, 0, 2, 0, 2, 0]
    assert others(1, 6, context=7, after=4, closed=True).tolist() == [1, 2, 3, 4, -3, -2, -1]
    assert others(0, 3, context=15, after=4, closed=True).tolist() == [1, 2, 4, 5, -5, -4, -2, -1]
    assert others(1, 6, context=7, after=2, closed=False).tolist() == [1, 2, 3, 4, -1]  # all there are
    assert others(5, 6, context=3, after=2, closed=False).tolist() == [-3, -2, -1]


@pytest.mark.parametrize("total", [2, 3, 5, 6, 9])
def test_no_copy_of_a_chunk_is_seen_while_it_is_looked_at(world, total):
    """One chunk has a code that no other has: nobody who looks at that chunk sees the code."""
    ring, each = some_ring(2, total), looker(world)
    for place in range(total):
        marked = Ring(np.where(ring.codes == 8, 0, ring.codes), ring.actions)
        marked.codes[:, place] = 8
        row, places = marked.places()
        for index, seen, own in each.look(marked, row, places):
            mine = places[index] == place
            assert (np.asarray(own.codes)[mine] == 8).all()
            assert not (np.asarray(seen.codes)[mine] == 8).any()
            assert (np.asarray(seen.codes)[~mine] == 8).any((1, 2, 3)).all() or total > 5
        poisoned = Ring(np.where(marked.codes == 8, 7, marked.codes), ring.actions)
        draws = [
            each.redraw(
                one,
                np.array([0]),
                np.array([place]),
                keys=KEY[None],
                dials=world.dials(steps=2),
            )
            for one in (marked, poisoned)
        ]
        np.testing.assert_array_equal(*draws)


def test_neighbours_change_what_is_drawn_and_how_it_scores(world):
    ring, each = some_ring(1, 8), looker(world, block=1)
    other = dataclasses.replace(ring, codes=ring.codes.copy())
    other.codes[0, 7] = (other.codes[0, 7] + 1) % 9
    steps, place = jnp.int32(4), np.array([0])
    score = lambda r, at: each.nats(r, np.array([0]), at, steps=steps)[0]
    assert score(ring, place) != score(other, place)  # across the seam
    opened = [dataclasses.replace(r, closed=False) for r in (ring, other)]
    assert score(opened[0], place) == score(opened[1], place)  # seven away: farther than it looks


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_scores_are_the_nats_of_a_distribution(world, steps):
    """Over all 9**4 chunks the probabilities sum to one, in any number of passes."""
    codes = np.array(list(itertools.product(range(9), repeat=4)), np.int32).reshape(-1, 1, 2, 2)
    ring = some_ring(1, 3)
    rows = np.repeat(ring.codes, len(codes), axis=0)
    rows[:, 1] = codes[:, 0]
    every = Ring(rows, np.repeat(ring.actions, len(codes), axis=0))
    where = np.arange(len(codes)), np.ones(len(codes), int)
    nats = looker(world, block=729).nats(every, *where, steps=jnp.int32(steps))
    assert np.exp(-nats).sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("opening", "total"), [(1, 2), (2, 7), (4, 32), (3, 20)])
def test_a_sweep_visits_every_made_chunk_once_and_no_neighbours_together(opening, total):
    plan = plans.loop(opening, total)
    groups = sweep_groups(plan)
    visits = np.concatenate(groups).tolist()
    assert sorted(visits) == list(range(opening, total))
    for group in groups:
        for a, b in itertools.combinations(group.tolist(), 2):
            assert min((a - b) % total, (b - a) % total) >= APART
    assert visits[0] == plan.times[-1]  # where the ends met comes first
    np.testing.assert_array_equal(plan.times[time_order(plan)], np.arange(total))
    assert [group.tolist() for group in apart([0, 1, 4, 8], 11)] == [[0, 4], [1, 8]]


def test_a_sweep_leaves_the_opening_and_each_has_keys_of_its_own(world):
    ring, groups = some_ring(2, 6), sweep_groups(plans.loop(2, 6))
    keys, dials = jax.random.split(KEY, 2), world.dials(steps=4)
    first, second = (
        sweep(looker(world), ring, groups, keys=keys, number=number, dials=dials) for number in (0, 1)
    )
    np.testing.assert_array_equal(first.codes[:, :2], ring.codes[:, :2])
    assert (first.codes != second.codes).any()
    again = sweep(looker(world, block=3), ring, groups, keys=keys, number=0, dials=dials)
    np.testing.assert_array_equal(first.codes, again.codes)


def test_streams_of_keys_are_all_different():
    many = branches(jax.random.split(KEY, 3), 4)
    np.testing.assert_array_equal(
        jax.random.key_data(many[:, 0]), jax.random.key_data(jax.random.split(KEY, 3))
    )
    assert len(np.unique(np.asarray(jax.random.key_data(many)).reshape(-1, 2), axis=0)) == 12


def test_loops_of_like_sizes_run_the_same_programs(world):
    make = lambda frames, seed: world.loop(tiny.make_clip(5, seed=seed), frames, candidates=2, sweeps=1)
    make(24, 0)
    jitted = rollout_block, redraw_block, surprise_block
    before = [function._cache_size() for function in jitted]
    make(24, 1)
    make(20, 1)
    assert [function._cache_size() for function in jitted] == before


@pytest.mark.parametrize(("candidates", "sweeps"), [(0, 1), (1, -1)])
def test_no_candidate_and_negative_sweeps_are_refused(world, candidates, sweeps):
    with pytest.raises(
        ValueError, match=f"{candidates} candidates and {sweeps} sweeps; take at least 1 and 0"
    ):
        world.loop(tiny.make_clip(3), 5, candidates=candidates, sweeps=sweeps)


def test_the_clip_is_scored_as_it_is_and_the_loop_as_a_ring(world):
    clip = tiny.make_clip(5)
    closing = world.loop(clip, 6, key=KEY, candidates=1, sweeps=0).closing
    assert closing.usual.shape == (5,)
    same = world.loop(clip, 8, key=KEY, candidates=1, sweeps=0).closing
    np.testing.assert_allclose(closing.usual, same.usual, rtol=1e-5)
    other = world.loop(tiny.make_clip(5, seed=3), 6, key=KEY, candidates=1, sweeps=0).closing
    assert (closing.usual != other.usual).any()
    assert world.loop(tiny.make_clip(1), 5, key=KEY, candidates=1, sweeps=0).closing.motion is None
    assert all_nats(looker(world), some_ring(1, 4), steps=jnp.int32(2)).shape == (1, 4)


def closing(nats=(1.0, 2.0), usual=(1.0, 3.0), motion=1.0, faults=()):
    return Closing(np.array(nats), np.array(usual), motion, tuple(faults))


def test_a_closing_says_why_and_never_closes_without_motion():
    assert closing().why() == ""
    assert closing().report()["holds"] is True
    assert "its least likely chunk takes 8.00 nats a frame, where up to 7.60" in closing((0.0, 8.0)).why()
    assert "rare at this length: given all others a chunk takes 5.00" in closing((5.0, 5.0)).why()
    assert closing(motion=0.3).why() == "it moves 0.30 times as much as the clip"
    assert closing(faults=["mirrored"]).why() == "its frames are mirrored"
    assert "rare" in closing((0.1, 0.1, 0.1, 6.0), usual=()).why()
    assert closing(usual=(), motion=None).why() == ""
    report = closing(faults=["copied"], motion=None).report()
    assert (report["holds"], report["motion_ratio"], report["faults"]) == (False, None, ["copied"])
    assert (report["closing_nats"], report["closing_nats_worst"], report["clip_nats"]) == (1.5, 2.0, 2.0)
