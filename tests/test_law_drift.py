"""What holds long rollouts together: sinks, bounded times, told noise, guidance, gaps, own draws."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import worldsim
from worldsim import plan as plans
from worldsim.config import MixConfig
from worldsim.generate import rollout
from worldsim.generate.simulate import graft
from worldsim.models.dynamics import Dynamics
from worldsim.train.losses import dynamics_loss
from worldsim.train.plans import sample_plan

pytestmark = pytest.mark.law

KEY = jax.random.key(0)
ACTIONS = np.random.default_rng(0).integers(0, 3, 20).astype(np.int32)


@pytest.fixture(scope="module")
def world():
    return tiny.make_world(tiny.config(context=6, pinned=3))


def test_sinks_stay_in_the_cache_for_good(world):
    clip = tiny.make_clip(5)
    made = world.extend(clip, 14, actions=ACTIONS[:14], sinks=2, steps=1, refine_steps=0, key=KEY)
    assert sorted(np.asarray(made.state.cache.times[0])) == [0, 1, 15, 16, 17, 18]
    plain = world.extend(clip, 14, actions=ACTIONS[:14], steps=1, refine_steps=0, key=KEY)
    assert sorted(np.asarray(plain.state.cache.times[0])) == [13, 14, 15, 16, 17, 18]
    np.testing.assert_array_equal(made.codes[:1], plain.codes[:1])
    assert (made.codes != plain.codes).any(), "what is seen is another past"
    back = world.extend(clip, 10, direction="backward", sinks=1, steps=1, refine_steps=0, key=KEY)
    assert sorted(np.asarray(back.state.cache.times[0])) == [-10, -9, -8, -7, -6, 4]


def test_sinks_are_the_same_in_pieces_in_streams_and_in_the_simulator(world):
    clip, how = tiny.make_clip(5), {"steps": 1, "refine_steps": 0}
    whole = world.extend(clip, 20, actions=ACTIONS, sinks=2, key=KEY, **how)
    part = world.extend(clip, 9, actions=ACTIONS[:9], sinks=2, key=KEY, **how)
    more = world.extend(part, 11, actions=ACTIONS[9:], **how)
    np.testing.assert_array_equal(more.codes, whole.codes)
    frames = np.concatenate([
        piece.frames for piece in world.rollout(clip, 20, actions=ACTIONS, sinks=2, key=KEY, **how)
    ])  # fmt: skip
    np.testing.assert_array_equal(frames, whole.clip.frames[5:])
    sim = worldsim.Simulator(world, sinks=2, render="codes", steps=1)
    state, codes = sim.reset(clip, KEY), []
    for action in ACTIONS:
        state, shown = sim.step(state, action[None])
        codes.append(shown[0])
    np.testing.assert_array_equal(np.stack(codes), whole.codes)


def test_grafted_worlds_keep_their_sinks(world):
    sim = worldsim.Simulator(world, sinks=2, temperature=0.0, render="codes", steps=1)
    old = sim.reset([tiny.make_clip(4, seed=i) for i in range(2)], KEY)
    for action in ACTIONS[:7]:
        old, _ = sim.step(old, np.full(2, action))
    new = sim.reset([tiny.make_clip(5, seed=i) for i in (5, 6)], KEY)
    both = graft(old, new, np.array([True, False]))
    for action in ACTIONS:
        old, first = sim.step(old, np.full(2, action))
        new, second = sim.step(new, np.full(2, action))
        both, shown = sim.step(both, np.full(2, action))
        np.testing.assert_array_equal(shown, np.stack([second[0], first[1]]))


def test_times_past_the_reach_are_read_as_the_reach(world):
    bound = dataclasses.replace(world.config, dynamics=dataclasses.replace(world.config.dynamics, reach=8.0))
    near, free = bound, world.config

    def answer(config, first):
        made = tiny.make_world(config)
        plan = plans.make_plan(np.array([first, 18, 19]), np.zeros(0, int))
        state = rollout.start(*made.dynamics, keys=KEY[None])
        rows = _rows(plans.make_plan(np.array([first, 18, 19]), np.array([20])))
        told = {"codes": rows.codes[:, :3], "actions": rows.actions[:, :3], "dials": made.dials(steps=1)}
        state, _ = rollout.run(made.dynamics, state, plan, **told)
        row = rollout._row(rows, jnp.int32(3)).chunks(stream=1)
        model = nnx.merge(*made.dynamics)
        masked = dataclasses.replace(row, codes=jnp.full_like(row.codes, model.mask))
        return np.asarray(model.predict(masked, model.past(state.cache, masked)))

    np.testing.assert_allclose(answer(near, 0), answer(near, 9), atol=1e-4)
    assert np.abs(answer(free, 0) - answer(free, 9)).max() > 0.05
    assert np.abs(answer(near, 13) - answer(near, 11)).max() > 0.05
    np.testing.assert_allclose(answer(near, 13), answer(free, 13), atol=1e-4)


def _rows(plan):
    codes = np.random.default_rng(4).integers(0, 9, (1, len(plan), 2, 2))
    return rollout.Rows(
        codes, plan.times, plan.orders, np.arange(len(plan)), np.ones(len(plan), bool),
        np.zeros((1, len(plan), 1), np.int32), {},
    )  # fmt: skip


def test_made_chunks_are_told_as_noisy_and_given_ones_are_not(monkeypatch):
    seen = []
    real = Dynamics.embed

    def embed(self, chunks):
        jax.debug.callback(lambda noise, ids: seen.append((noise, ids[..., 2])), chunks.noise, chunks.ids)
        return real(self, chunks)

    monkeypatch.setattr(Dynamics, "embed", embed)
    fresh = tiny.make_world(tiny.config(context=6, pinned=3, rope_base=77.0))
    made = fresh.extend(tiny.make_clip(4), 3, stabilize=0.2, steps=1, refine_steps=0, key=KEY)
    jax.effects_barrier()
    known = [noise.max() for noise, stream in seen if (stream == 0).all()]
    queries = [noise.max() for noise, stream in seen if (stream == 1).all()]
    np.testing.assert_allclose(sorted(known), [0, 0.2, 0.2, 0.2])
    assert max(queries) == 0 and len(queries) == 3
    assert made.codes.shape == (3, 2, 2)


def test_guidance_leads_away_from_the_short_past(world):
    """Logits of the whole past and more of what sets them apart from those of its nearest two chunks."""
    clip = tiny.make_clip(6)
    model = nnx.merge(*world.dynamics)
    plan = plans.forward(6, 1)
    rows = _rows(plan)
    known = jax.tree.map(lambda a: a[:, :6], rows.chunks(stream=0))
    cache = model.commit(known, model.empty_cache(1), jnp.arange(6))
    query = rollout._row(rows, jnp.int32(6)).chunks(stream=1)
    query = dataclasses.replace(query, codes=jnp.full_like(query.codes, model.mask))
    past = model.past(cache, query)
    near = model.nearest(past, cache, query, count=2)
    whole = model.predict(query, past)
    # The keys that a short past would have had are not those that were committed with all of it in view.
    hidden = dataclasses.replace(cache, ids=cache.ids.at[:, :4, 0].set(-1))
    np.testing.assert_allclose(
        model.predict(query, near), model.predict(query, model.past(hidden, query)), atol=1e-5
    )
    assert np.abs(whole - model.predict(query, near)).max() > 0.05
    dials = world.dials(steps=1, temperature=0.0, refine_steps=0, guidance=3.0)
    drawn = rollout.draw_chunk(model, query, past, KEY[None], dials, near=near)
    want = whole + 3.0 * (whole - model.predict(query, near))
    np.testing.assert_array_equal(drawn, want.argmax(-1))
    one = world.extend(clip, 6, guidance=2.0, refine_steps=0, key=KEY)
    assert (one.codes != world.extend(clip, 6, refine_steps=0, key=KEY).codes).any()


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"stabilize": 0.9}, "stabilize 0.9; take from 0 to 0.3"),
        ({"guidance": -1.0}, "guidance -1.0; take 0"),
        ({"leads": 4, "steps": 4}, "leads 4; take from 0 to 3"),
        ({"revisions": -1}, "revisions -1; take from 0 to 7"),
        ({"revisions": 3, "steps": 4, "leads": 1}, "revisions 3; take from 0 to 2"),
        ({"sinks": 4}, "4 sinks; take from 0 to 3"),
        ({"sinks": 1, "keyframes": 2}, "sinks or stabilize beside keyframes"),
    ],
)
def test_what_can_not_be_is_refused(world, told, why):
    with pytest.raises(ValueError, match=why):
        world.extend(tiny.make_clip(5), 4, refine_steps=0, **told)


def test_gaps_leave_out_what_follows_the_first_chunks():
    mix = MixConfig(
        chunks=6, queries=2, forward=0.5, backward=0.5, infill=0, shuffled=0, keyframes=0, gaps=0.5
    )
    rng, seen = np.random.default_rng(0), {1: 0, -1: 0, "gap": 0}
    for _ in range(400):
        drawn = sample_plan(rng, [12], mix=mix, pinned=3)
        steps = np.diff(drawn.positions)
        way = int(np.sign(steps[0]))
        assert (np.sign(steps) == way).all() and 0 <= drawn.positions.min() <= drawn.positions.max() < 12
        wide = np.flatnonzero(np.abs(steps) > 1)
        assert len(wide) <= 1 and (wide < 3).all()
        seen[way] += 1
        seen["gap"] += len(wide)
    assert 150 < seen[1] < 250 and 150 < seen["gap"] < 250
    plain = dataclasses.replace(mix, gaps=0.0)
    assert all(
        (np.abs(np.diff(sample_plan(rng, [12], mix=plain, pinned=3).positions)) == 1).all() for _ in range(99)
    )


def test_late_in_training_some_chunks_are_the_models_own(monkeypatch):
    b, p, rows = 32, 6, (2, 4)
    rng = np.random.default_rng(0)
    batch = {
        "codes": jnp.asarray(rng.integers(0, 9, (b, p, 2, 2)), jnp.int32),
        "times": jnp.broadcast_to(jnp.arange(p, dtype=jnp.float32), (b, p)),
        "orders": jnp.broadcast_to(jnp.arange(p, dtype=jnp.int32), (b, p)),
        "queries": jnp.broadcast_to(jnp.asarray(rows, jnp.int32), (b, 2)).at[0, 1].set(-1),
        "actions": jnp.zeros((b, p, 1), jnp.int32),
    }
    model, shown = tiny.model("dynamics", tiny.config()), []
    real = Dynamics.streams

    def streams(self, known, query, **how):
        jax.debug.callback(lambda known, query: shown.append((known, query)), known.codes, query.codes)
        return real(self, known, query, **how)

    monkeypatch.setattr(Dynamics, "streams", streams)
    mix = MixConfig(chunks=p, queries=2, clean=1.0, resampled=0.5)
    run = jax.jit(lambda late: dynamics_loss(model, batch, KEY, digits=(3, 3), mix=mix, late=late)[0])
    early, late = float(run(jnp.asarray(False))), float(run(jnp.asarray(True)))
    jax.effects_barrier()
    assert len(shown) == 3, "early no pass for the draws, late one more"
    (plain, masked), (first, _), (second, after) = shown
    np.testing.assert_array_equal(plain, batch["codes"])
    np.testing.assert_array_equal(first, batch["codes"])
    changed = (second != np.asarray(batch["codes"])).any((2, 3))
    assert not changed[:, [0, 1, 3, 5]].any() and 0.2 < changed[:, [2, 4]].mean() < 0.6 and not changed[0, 4]
    hidden = np.asarray(after) == 9
    moved = (second != np.asarray(batch["codes"]))[:, list(rows)]
    assert (moved <= hidden).all(), "what the query shows of the truth stays true"
    np.testing.assert_array_equal(masked, after)
    assert early != late and np.isfinite(late)
