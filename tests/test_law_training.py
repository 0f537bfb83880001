"""Laws of the dynamics' loss: what is masked carries it, what is known is corrupted as said, and no more."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from worldsim.config import MixConfig, StageConfig, TokenizerLossConfig, TrainConfig
from worldsim.data.arrays import ArraySource
from worldsim.models.dynamics import Dynamics
from worldsim.ops.attention import KNOWN, QUERY
from worldsim.train.losses import dynamics_loss
from worldsim.train.stages import dynamics_stage, refine_stage, tokenizer_stage

pytestmark = pytest.mark.law

B, P, ROWS = 64, 8, (2, 3, 6)
MASK = 9


@pytest.fixture
def seen(monkeypatch):
    """Run the loss on a model that only notes what it is shown and answers at random."""

    def run(*, key=0, **mix):
        rng = np.random.default_rng(3)
        batch = {
            "codes": jnp.asarray(rng.integers(0, 9, (B, P, 2, 2)), jnp.int32),
            "times": jnp.broadcast_to(jnp.arange(P, dtype=jnp.float32), (B, P)),
            "actions": jnp.asarray(rng.integers(0, 3, (B, P, 1)), jnp.int32),
            "condition_class": jnp.asarray(rng.integers(0, 4, (B, P)), jnp.int32),
            "condition_speed": jnp.asarray(rng.normal(size=(B, P, 2)), jnp.float32),
            "orders": jnp.broadcast_to(jnp.arange(P, dtype=jnp.int32), (B, P)),
            "queries": jnp.broadcast_to(jnp.asarray(ROWS, jnp.int32), (B, len(ROWS))),
        }
        logits = jnp.asarray(rng.normal(size=(B, len(ROWS), 2, 2, 9)), jnp.float32)
        shown = []
        monkeypatch.setattr(
            Dynamics,
            "streams",
            lambda _, *streams, **__: shown.extend(streams) or (jnp.zeros((B, P, 1)), logits),
        )
        monkeypatch.setattr(Dynamics, "logits", lambda _, made: made)
        model = tiny.model("dynamics", tiny.config(context=7, conditions=tiny.CONDITIONS))
        options = {"digits": (3, 3), "mix": MixConfig(chunks=P, queries=len(ROWS), **mix)}
        loss, metrics = dynamics_loss(model, batch, jax.random.key(key), **options)
        return batch, logits, *shown, loss, metrics

    return run


def test_only_masked_codes_carry_loss_and_are_hidden(seen):
    batch, logits, known, query, loss, metrics = seen()
    target = np.asarray(batch["codes"])[:, ROWS]
    masked = np.asarray(query.codes) == MASK
    np.testing.assert_array_equal(query.ids[..., 1], np.broadcast_to(ROWS, (B, 3)))
    assert (query.ids[..., 2] == QUERY).all()
    assert (known.ids[..., 2] == KNOWN).all()
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), target[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, -log_p[masked].mean(), rtol=1e-5)
    right = np.asarray(logits).argmax(-1) == target
    np.testing.assert_allclose(metrics["accuracy"], right[masked].mean(), rtol=1e-5)
    assert not (np.asarray(known.codes) == MASK).any()


def test_every_query_chunk_has_a_cosine_share_masked(seen):
    """From one code to all four, each chunk for itself; the quarters of a uniform angle."""
    query = seen()[3]
    counts = (np.asarray(query.codes) == MASK).sum((2, 3)).ravel()
    want = np.diff([0, *(1 - 2 / np.pi * np.arccos([0.25, 0.5, 0.75, 1.0]))])
    np.testing.assert_allclose([(counts == n).mean() for n in (1, 2, 3, 4)], want, atol=0.09)


def test_clean_chunks_are_true_and_the_others_as_noisy_as_they_are_told(seen):
    batch, _, known, _, *_ = seen(clean=0.5)
    noise, changed = np.asarray(known.noise), np.asarray(known.codes) != np.asarray(batch["codes"])
    assert abs((noise == 0).mean() - 0.5) < 0.1
    assert not changed[noise == 0].any()
    assert noise.max() < 0.3
    low, high = (noise > 0) & (noise < 0.15), noise >= 0.15
    assert abs(changed[high].mean() - noise[high].mean()) < 0.06
    assert changed[low].mean() < changed[high].mean()
    batch, _, known, query, *_ = seen(clean=1.0)
    np.testing.assert_array_equal(known.codes, batch["codes"])
    assert not np.asarray(query.noise).any()


def test_what_a_query_shows_of_itself_is_true(seen):
    """Its unmasked codes are the clip's, whatever the known stream was corrupted to."""
    batch, _, _, query, *_ = seen(clean=0.0)
    target, shown = np.asarray(batch["codes"])[:, ROWS], np.asarray(query.codes)
    np.testing.assert_array_equal(shown[shown != MASK], target[shown != MASK])
    assert not np.asarray(query.noise).any()


def test_inputs_are_dropped_as_often_as_said_and_alike_in_both_streams(seen):
    batch, _, known, query, *_ = seen(null_actions=0.5, null_conditions=0.25)
    gone = np.asarray(known.actions)[..., 0] == -1
    kept = np.asarray(known.actions)[~gone]
    np.testing.assert_array_equal(kept, np.asarray(batch["actions"])[~gone])
    np.testing.assert_array_equal(query.actions, np.asarray(known.actions)[:, ROWS])
    assert abs(gone.any(1).mean() - 0.5) < 0.15
    assert (np.diff(gone.astype(int), axis=1) >= 0).all()  # from some row on, never in between
    assert 0.3 < (gone[:, 0] & gone.all(1)).sum() / gone.any(1).sum() < 0.85  # all of them, or the later ones
    gone = np.asarray(known.conditions["class"]) == -1
    assert (gone.all(1) | ~gone.any(1)).all()
    assert abs(gone[:, 0].mean() - 0.25) < 0.15
    np.testing.assert_array_equal(np.isnan(known.conditions["speed"]).all(-1), gone)


def test_nothing_or_everything_is_dropped(seen):
    batch, _, known, *_ = seen(null_actions=0.0, null_conditions=0.0)
    np.testing.assert_array_equal(known.actions, batch["actions"])
    np.testing.assert_array_equal(known.conditions["class"], batch["condition_class"])
    _, _, known, *_ = seen(null_actions=1.0, null_conditions=1.0)
    assert (np.asarray(known.actions)[:, -1] == -1).all()
    assert (np.asarray(known.conditions["class"]) == -1).all()


def test_another_key_draws_other_masks_and_noise(seen):
    one, same, other = (seen(key=key) for key in (0, 0, 1))
    np.testing.assert_array_equal(one[3].codes, same[3].codes)
    assert (np.asarray(one[3].codes) != np.asarray(other[3].codes)).any()
    assert (np.asarray(one[2].noise) != np.asarray(other[2].noise)).any()


@pytest.mark.parametrize("name", ["tokenizer", "dynamics", "refine"])
def test_a_stage_goes_on_with_the_batches_it_would_have_had(name):
    """Its third batch is the first after a resume from step 2: clips, squares, plans and all."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 12, 16, 16, 3), dtype=np.uint8)
    config = TrainConfig(
        world=tiny.config(),
        tokenizer=StageConfig(batch=3, frames=2),
        dynamics=StageConfig(batch=3, frames=8),
        refine=StageConfig(batch=3, frames=2),
        mix=MixConfig(chunks=6, queries=2),
        tokenizer_loss=TokenizerLossConfig(crop=8),
    )
    if name == "tokenizer":
        stage = tokenizer_stage(config, ArraySource({"frames": frames}, keys=("frames",)), frames[0, 0])
    elif name == "refine":
        source = ArraySource({"frames": frames}, keys=("frames",))
        stage = refine_stage(config, source, tiny.params("tokenizer", config.world))
    else:
        arrays = {"codes": rng.integers(0, 9, (6, 12, 2, 2)).astype(np.uint16)}
        arrays["actions"] = rng.integers(0, 3, (6, 12, 1)).astype(np.int32)
        stage = dynamics_stage(config, ArraySource(arrays, keys=None))
    whole, later = stage.batches(0), stage.batches(2)
    first, _, third = (next(whole) for _ in range(3))
    resumed = next(later)
    assert resumed.keys() == third.keys()
    for key, array in third.items():
        np.testing.assert_array_equal(resumed[key], array)
    assert any((first[key] != third[key]).any() for key in third)
    for batches in (whole, later):
        batches.close()
