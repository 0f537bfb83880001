"""Laws that only a trained world shows: actions belong to their frame, and falling has a direction.

The sprites' true places are the codes, so that no tokenizer has to be trained: a world of a few thousand
weights learns them in seconds.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from worldsim import plan as plans
from worldsim.config import (
    ActionConfig,
    DataConfig,
    DynamicsConfig,
    MixConfig,
    OptimConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
    WorldConfig,
)
from worldsim.data import sprites
from worldsim.data.arrays import ArraySource
from worldsim.generate import rollout
from worldsim.generate.rollout import Dials
from worldsim.models.world import split_module
from worldsim.train.loop import train_stage
from worldsim.train.losses import dynamics_loss
from worldsim.train.stages import dynamics_stage, plan_batch

pytestmark = pytest.mark.law


def make_config(codes, levels, *, chunks, queries, steps, action=ActionConfig(), **mix):
    """A row of ``codes`` codes a frame, without pictures."""
    tokenizer = TokenizerConfig(height=8, width=8 * codes, widths=(8, 16), blocks=1, levels=levels)
    dynamics = DynamicsConfig(
        width=64, layers=2, heads=2, mlp=128, context=chunks - 1, pinned=1, action=action
    )
    optim = OptimConfig(learning_rate=3e-3, warmup=50, ema=0.98)
    return TrainConfig(
        world=WorldConfig(tokenizer, dynamics),
        data=DataConfig(threads=0),
        dynamics=StageConfig(
            steps=steps, batch=32, frames=chunks, optim=optim, log_every=100, save_every=0, sample_every=0
        ),
        mix=MixConfig(chunks=chunks, queries=queries, shuffled=0.0, keyframes=0.0, **mix),
    )


def train(config, folder, **arrays):
    """The averaged weights after all steps on these episodes."""
    count, length = arrays["codes"].shape[:2]
    size, frames = config.dynamics.batch, config.dynamics.frames
    rng, made = np.random.default_rng(0), []
    for step in range(100):  # and again from the first: masks and noise are drawn anew all the same
        rows, first = rng.integers(count, size=size), rng.integers(length - frames + 1, size=size)
        places = rows[:, None], first[:, None] + np.arange(frames)
        made.append(plan_batch({name: array[places] for name, array in arrays.items()}, config, step=step))
    batches = lambda start: itertools.islice(itertools.cycle(made), start, None)
    stage = dataclasses.replace(dynamics_stage(config, ArraySource(arrays, keys=None)), batches=batches)
    return train_stage(stage, folder, seed=0, config=config).ema


PUSHED = sprites.SpriteConfig(size=10, side=3, sprites=1, push=1)


def pushes(count, *, seed):
    """Column and row of the pushed sprite (each from 0 to 7), and the actions that led there."""
    played = list(sprites.episodes(PUSHED, count=count, length=16, seed=seed))
    places = np.stack([episode.extra["state"][:, 0, :2] for episode in played])
    return places[:, :, None], np.stack([episode.actions for episode in played])[..., None]


def test_actions_shifted_by_a_frame_in_either_direction_make_the_likelihood_worse(tmp_path):
    """On held-out play, whichever way the plan goes; and with none they are missed less than false ones."""
    config = make_config(
        2, (4, 2), chunks=6, queries=4, steps=500, forward=0.5, backward=0.3, infill=0.2,
        action=ActionConfig("discrete", 5, sprites.ACTIONS),
    )  # fmt: skip
    codes, actions = pushes(200, seed=0)
    params = train(config, tmp_path, codes=codes, actions=actions)
    codes, actions = pushes(100, seed=1)
    graph, _ = split_module("dynamics", config.world)

    @jax.jit
    def nats(batch):
        model, key = nnx.merge(graph, params), jax.random.key(5)
        mix = dataclasses.replace(config.mix, clean=1.0, null_actions=0.0)
        return dynamics_loss(model, batch, key, digits=(4, 2), mix=mix)[0]

    def score(kind, actions):
        shares = {name: float(name == kind) for name in ("forward", "backward", "infill")}
        one = dataclasses.replace(config, mix=dataclasses.replace(config.mix, **shares))
        clip = {"codes": codes[:, 4:10], "actions": actions[:, 4:10]}
        return float(nats(jax.tree.map(jnp.asarray, plan_batch(clip, one, step=0))))

    for kind in ("forward", "backward", "infill"):
        true = score(kind, actions)
        early, late = (score(kind, np.roll(actions, shift, axis=1)) for shift in (-1, 1))
        none = score(kind, np.full_like(actions, -1))
        assert true < 0.4, kind
        assert min(early, late) > true + 0.5, (kind, true, early, late)
        assert true + 0.1 < none < min(early, late), (kind, true, none, early, late)


FALLING = sprites.SpriteConfig(size=21, sprites=2, falling=True, redraw=0.0)
FLOOR = FALLING.span


def falls(count, *, seed):
    """Rows of a sprite that is let go somewhere in the air, falls and stays on the floor: 16 frames each."""
    played = sprites.episodes(FALLING, count=count, length=16, seed=seed)
    return np.stack([episode.extra["state"][:, 1, 1] for episode in played])


def is_a_fall(rows):
    """Whether rows in the order of time are what gravity does to a sprite let go in the first of them."""
    row, speed = int(rows[0]), 0
    for seen in rows[1:]:
        row, speed = sprites.fall(row, speed, FLOOR, thrown=False)
        if row != seen:
            return False
    return True


def test_backward_on_falling_sprites_rises_into_the_past(tmp_path):
    """Before it lay on the floor it was up in the air. A model that is shown reversed frames, which is one
    that goes forward from three frames at rest, never lifts it again."""
    config = make_config(
        1,
        (FLOOR // 4 + 1, 4),
        chunks=16,
        queries=8,
        steps=1000,
        forward=0.4,
        backward=0.5,
        infill=0.1,
        clean=0.8,
    )
    truth = falls(64, seed=1)
    assert all(is_a_fall(rows) for rows in truth)
    params = train(config, tmp_path, codes=falls(300, seed=0)[:, :, None, None])
    graph, _ = split_module("dynamics", config.world)

    def generate(plan, known):
        codes = np.zeros((len(known), len(plan), 1, 1), np.int32)
        codes[:, : known.shape[1], 0, 0] = known
        state = rollout.start(graph, params, keys=jax.random.split(jax.random.key(0), len(known)))
        dials = Dials(jnp.int32(1), jnp.float32(1.0))
        return rollout.run((graph, params), state, plan, codes=codes, dials=dials)[1][..., 0, 0]

    rest = np.full((64, 3), FLOOR)
    past = generate(plans.backward(3, 13), rest)[:, ::-1]
    future = generate(plans.forward(3, 13), rest)
    up = past[:, 0] < FLOOR
    assert up.mean() > 0.9
    assert (np.diff(past[up]) >= 0).all(1).mean() > 0.9  # ever higher, the farther into the past
    assert np.mean([is_a_fall(rows) for rows in past]) > 0.7  # faster and faster, then still at once
    assert len(set(past[:, 0].tolist())) > 5  # from many heights
    assert (future < FLOOR).any(1).mean() < 0.05
    assert np.mean([is_a_fall(rows[::-1]) for rows in past[up]]) == 0

    seen_falling = truth[(truth[:, 3] < FLOOR)]  # its speed is seen, so its past is certain
    before = generate(plans.backward(14, 2), seen_falling[:, :1:-1])[:, :-3:-1]
    assert (before == seen_falling[:, :2]).all(1).mean() > 0.7
