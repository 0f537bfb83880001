"""Laws of decoding: attention over a cache is attention, draws follow the weights, and no cache is copied."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.generate import rollout
from worldsim.generate.prefill import blocks
from worldsim.models.dynamics import Chunks, Dynamics
from worldsim.ops import attention
from worldsim.ops.cached_attention import Part, attend_parts
from worldsim.ops.sampling import keep_least_certain, masked_after, revised, sample_codes
from worldsim.ops.visible import UNSEEN
from worldsim.plan import make_plan


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), jnp.float32)


def test_attention_over_parts_is_attention_over_all_that_is_seen():
    """Row 0 sees a part of the cache, row 1 nothing of it: without the chunk itself it sees nothing."""
    q, k, v = noise(2, 5, 3, 8), noise(2, 12, 3, 8, seed=1), noise(2, 12, 3, 8, seed=2)
    seen = np.zeros((2, 12), bool)
    seen[0, [0, 3, 4, 9]] = True
    own_k, own_v = noise(2, 5, 3, 8, seed=3), noise(2, 5, 3, 8, seed=4)
    first = lambda x: x.swapaxes(1, 2)
    past = Part(first(k), first(v), jnp.where(seen, 0.0, UNSEEN))
    ids = lambda segment: jnp.stack([jnp.asarray(segment), *[jnp.zeros_like(segment)] * 2], -1).astype(
        jnp.int32
    )
    q_ids, k_ids, own_ids = ids(np.zeros((2, 5))), ids(np.where(seen, 0, -1)), ids(np.zeros((2, 5)))

    both, _ = attend_parts(first(q), [past, Part(first(own_k), first(own_v))])
    join = lambda *x: jnp.concatenate(x, axis=1)
    want = attention.reference(q, join(k, own_k), join(v, own_v), q_ids, join(k_ids, own_ids))
    np.testing.assert_allclose(first(both), want, atol=1e-6)

    alone, lse = attend_parts(first(q), [past])
    np.testing.assert_allclose(first(alone), attention.reference(q, k, v, q_ids, k_ids), atol=1e-6)
    assert not np.any(alone[1]) and np.all(lse[1] == UNSEEN) and np.all(lse[0] > UNSEEN / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("codes", [9, 16, 23])
def test_codes_are_drawn_by_their_weights(codes, temperature):
    """Each share within five standard deviations, whether or not codes fill a square; none of weight 0."""
    logits = 2 * noise(3, codes).at[:, 4].set(-jnp.inf)
    draw = lambda key: sample_codes(logits, key, temperature=jnp.float32(temperature))
    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20_000)))
    share = np.stack([np.bincount(row, minlength=codes) for row in drawn.T]) / len(drawn)
    want = np.asarray(jax.nn.softmax(logits / temperature))
    assert np.all(np.abs(share - want) <= 5 * np.sqrt(want * (1 - want) / len(drawn)) + 1e-9)
    assert not share[:, 4].any()


def test_without_temperature_the_likeliest_code_is_taken():
    logits = noise(50, 10)
    drawn = sample_codes(logits, jax.random.key(0), temperature=jnp.float32(0))
    np.testing.assert_array_equal(drawn, np.argmax(logits, -1))


def test_a_rollout_copies_no_cache():
    """In the optimised program the cache is written slice by slice, and nothing of its shape is copied."""
    world = tiny.make_world(tiny.config(context=13, pinned=2))
    state = rollout.start(*world.dynamics, keys=jax.random.key(0)[None])
    plan, codes = make_plan(np.zeros(0, int), np.arange(3)), np.zeros((1, 3, 2, 2), np.int32)
    given = {"codes": codes, "actions": np.zeros((1, 3, 1), np.int32), "conditions": {}, "context": 13}
    _, rows = next(blocks(plan, np.arange(3), np.arange(3), **given))
    arrays, tree = jax.tree.flatten(state.cache)

    def generate(arrays):
        block = rollout.rollout_block(
            *world.dynamics, tree.unflatten(arrays), rows, state.keys, world.dials()
        )
        return jax.tree.leaves(block)

    text = jax.jit(generate, donate_argnums=0).lower(arrays).compile().as_text()
    shape = re.escape(f"f32[{','.join(map(str, state.cache.keys[0].shape))}]")
    made = re.findall(rf"= {shape}\S* ([\w-]+)\(", text)
    assert "dynamic-update-slice" in made
    assert "copy" not in made


def left_of(certainty, masked, left, doubt, lead=False):
    how = {"doubt": doubt, "lead": jnp.asarray(lead)}
    kept = keep_least_certain(jnp.log(jnp.asarray(certainty)), jnp.asarray(masked), jnp.int32(left), **how)
    return np.flatnonzero(kept).tolist()


def test_what_is_certain_is_known_at_once():
    """The most certain codes, while all of them but the last are together as likely as told; one at least,
    and as many as the schedule says."""
    certainty, masked = [0.5, 0.99, 0.9, 0.999, 0.2, 0.7], [True, True, True, True, False, True]
    assert left_of(certainty, masked, 6, 0.0) == [0, 1, 2, 5]
    assert left_of(certainty, masked, 6, 0.005) == [0, 2, 5]  # 0.999, and one more
    assert left_of(certainty, masked, 6, -np.log(0.98)) == [0, 5]
    assert left_of(certainty, masked, 6, -np.log(0.88)) == [0]
    assert left_of(certainty, masked, 6, 10.0) == []
    assert left_of(certainty, masked, 1, 0.0) == [0]
    assert left_of(certainty, [False] * 6, 6, 0.0) == []


def test_a_lead_reveals_what_is_least_certain():
    certainty, masked = [0.5, 0.99, 0.9, 0.999, 0.2, 0.7], [True, True, True, True, False, True]
    assert left_of(certainty, masked, 4, 0.0, lead=True) == [1, 2, 3, 5]
    assert left_of(certainty, masked, 3, 0.1, lead=True) == [1, 2, 3]  # and doubt adds none
    assert left_of(certainty, masked, 4, 10.0, lead=True) == []  # unless it lets all be known


@pytest.mark.parametrize(
    ("steps", "tokens", "leads"), [(1, 4, 0), (4, 4, 3), (8, 64, 0), (8, 64, 2), (5, 256, 4)]
)
def test_a_pass_reveals_a_code_at_least_and_a_lead_no_more(steps, tokens, leads):
    left = [int(masked_after(jnp.int32(s), jnp.int32(steps), tokens, leads=leads)) for s in range(steps)]
    revealed = -np.diff([tokens, *left])
    assert left[-1] == 0 and revealed.min() >= 1
    assert (revealed[:leads] == 1).all()
    rest = revealed[leads:]
    assert (np.sort(rest)[::-1] == rest).all()  # fewer and fewer


@pytest.mark.parametrize(
    ("doubt", "leads", "passes"), [(0.0, 0, 4), (0.02, 0, 2), (5.0, 0, 1), (0.02, 1, 2), (0.0, 2, 4)]
)
def test_doubt_saves_passes_and_not_what_depends_on_one_another(world, monkeypatch, doubt, leads, passes):
    drawn, seen = draw_copies(world, monkeypatch, steps=4, doubt=doubt, leads=leads)
    assert seen == passes
    copies = (drawn[:, 0, 0] == drawn[:, 0, 1]).mean()
    assert copies == 1.0 if doubt < 1 else copies < 0.9


@pytest.mark.parametrize(
    ("how", "draws", "revisions"),
    [
        ({}, 2, 2),
        ({"steps": 1}, 1, 0),
        ({"steps": 3}, 3, 0),
        ({"steps": 4}, 2, 2),
        ({"steps": 7}, 2, 2),
        ({"steps": 4, "leads": 2}, 4, 0),
        ({"doubt": 0.1}, 4, 0),
        ({"steps": 9, "revisions": 8}, 1, 8),
        ({"steps": 9, "revisions": 0}, 4, 0),
    ],
)
def test_half_of_the_passes_are_revisions(world, how, draws, revisions):
    dials = world.dials(**how)
    assert (int(dials.steps), int(dials.revisions)) == (draws, revisions)


@pytest.mark.parametrize(
    ("doubt", "draws", "revisions", "passes", "right"),
    [
        (0, 1, 0, 1, False),
        (0, 1, 8, 9, True),
        (5.0, 4, 0, 1, False),
        (5.0, 4, 8, 9, True),
        (0.02, 4, 2, 4, True),
    ],
)
def test_revisions_mend_what_was_drawn_together(world, monkeypatch, doubt, draws, revisions, passes, right):
    """Where doubt ends the draws early, all revisions follow."""
    how = {"steps": draws + revisions, "doubt": doubt, "revisions": revisions}
    drawn, seen = draw_copies(world, monkeypatch, **how)
    assert seen == passes
    copies = (drawn[:, 0, 0] == drawn[:, 0, 1]).mean()
    assert copies == 1.0 if right else copies < 0.9


def test_two_revisions_draw_every_code_once_more():
    halves = np.stack([revised(jnp.int32(i), 64) for i in range(6)])
    assert (halves[::2] != halves[1::2]).all()
    assert 20 < halves[0].sum() < 44 and (halves[0] != halves[2]).any() and (halves[2] != halves[4]).any()


def draw_copies(world, monkeypatch, **how):
    """Of four codes two are certain, one is 0 or 1 at even odds, and one is its copy, known once that is."""
    model, seen = nnx.merge(*world.dynamics), []

    def predict(self, query, _):
        jax.debug.callback(lambda: seen.append(1))
        first, second = query.codes[..., 0, 0], query.codes[..., 0, 1]
        known = jnp.where(second == self.mask, first, second)
        odds = jnp.where(
            known == self.mask, jnp.array([[[0.5]], [[0.5]]]), jnp.stack([known == 0, known == 1])
        )
        sure = jax.nn.one_hot(jnp.zeros_like(query.codes), self.codebook)
        told = sure.at[..., 0, :, :2].set(jnp.moveaxis(odds, 0, -1)[..., None, :])
        return jnp.log(told + 1e-4)

    monkeypatch.setattr(Dynamics, "predict", predict)
    clips = 32
    none = jnp.zeros((clips, 1))
    query = Chunks(jnp.zeros((clips, 1, 2, 2), jnp.int32), none, jnp.zeros((clips, 1, 3), jnp.int32), none)
    keys, dials = jax.random.split(jax.random.key(0), clips), world.dials(**how)
    drawn = np.asarray(rollout.draw_chunk(model, query, (), keys, dials))[:, 0]
    jax.effects_barrier()
    assert 6 <= drawn[:, 0, 0].sum() <= 26 and not drawn[:, 1].any()
    return drawn, len(seen)
