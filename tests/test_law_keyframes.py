"""Laws of extensions that make keyframes first: which chunks see which, and when they equal plain ones."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny

from worldsim.generate import keyframed, rollout

pytestmark = pytest.mark.law
KEY = jax.random.key(5)


def rollouts(known, total, every, context=6):
    parts = keyframed._rollouts(known, total, every=every, context=context)
    return [(given.tolist(), pins, new.tolist()) for given, pins, new in parts]


def test_keyframes_come_first_and_each_gap_sees_the_one_after_it():
    assert rollouts(4, 17, 4) == [
        ([0, 1, 2, 3], 0, [7, 11, 15]),
        ([7, 0, 1, 2, 3], 1, [4, 5, 6]),
        ([11, 3, 4, 5, 6, 7], 1, [8, 9, 10]),
        ([15, 7, 8, 9, 10, 11], 1, [12, 13, 14]),
        ([10, 11, 12, 13, 14, 15], 0, [16]),
    ]
    assert rollouts(2, 6, 9) == [([0, 1], 0, [2, 3, 4, 5])]
    assert rollouts(1, 4, 1) == [([0], 0, [1, 2, 3])]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("keyframes", [2, 40])
def test_where_nothing_lies_between_it_is_the_plain_extension(pair_world, direction, keyframes):
    """Keyframes at every chunk, or none within reach."""
    clip, actions = tiny.make_clip(8), tiny.make_clip(20, seed=4).actions
    told = {"direction": direction, "actions": actions, "key": KEY, "steps": 1}
    plain = pair_world.extend(clip, 20, **told)
    made = pair_world.extend(clip, 20, keyframes=keyframes, **told)
    np.testing.assert_array_equal(made.codes, plain.codes)
    np.testing.assert_array_equal(made.clip.frames, plain.clip.frames)
    np.testing.assert_array_equal(made.clip.actions, plain.clip.actions)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_chunk_is_made_once_at_its_time_under_its_action(world, direction, monkeypatch):
    plans, run = [], rollout.run

    def watched(model, state, plan, **told):
        plans.append((plan, told["actions"][0, :, 0]))
        return run(model, state, plan, **told)

    clip, actions = tiny.make_clip(5), tiny.make_clip(11, seed=4).actions
    monkeypatch.setattr(keyframed.rollout, "run", watched)
    made = world.extend(clip, 11, direction=direction, keyframes=4, actions=actions, key=KEY, steps=1)
    onward = direction == "forward"
    new = slice(5, None) if onward else slice(0, 11)
    np.testing.assert_array_equal(made.clip.actions[new], actions)
    np.testing.assert_array_equal(made.clip.frames[:5] if onward else made.clip.frames[11:], clip.frames)
    times = np.concatenate([plan.times[~plan.known] for plan, _ in plans])
    assert sorted(times.tolist()) == (list(range(5, 16)) if onward else list(range(-11, 0)))
    assert times[:2].tolist() == ([8, 12] if onward else [-4, -8])
    all_actions = dict(enumerate([*clip.actions, *actions]))
    if not onward:
        all_actions = dict(enumerate([*actions, *clip.actions], -11))
    for plan, told in plans:
        assert [all_actions[int(t)] for t in plan.times] == told.tolist()
        assert [float(plan.times[i]) for i in np.flatnonzero(plan.pinned)] in ([], [8], [12], [-4], [-8])
    codes = {float(t): made.codes[i] for i, t in enumerate(made.times)}
    first, told = plans[0]
    state = rollout.start(*world.dynamics, keys=KEY[None])
    given = np.concatenate(
        [np.zeros((1, len(first) - 2, 2, 2), np.int32), np.zeros((1, 2, 2, 2), np.int32)], 1
    )
    order = made.given_codes if onward else made.given_codes[::-1]
    given[0, : len(order)] = order
    _, alone = run(
        world.dynamics, state, first, codes=given, dials=world.dials(steps=1), actions=told[None, :, None]
    )
    np.testing.assert_array_equal(alone[0, -2:], [codes[float(t)] for t in first.times[-2:]])


def test_going_on_from_it_and_refusals(world):
    made = world.extend(tiny.make_clip(5), 8, keyframes=4, key=KEY, steps=1)
    assert made.state.pinned == 0 and sorted(np.asarray(made.state.cache.times)[0].tolist()) == list(
        range(7, 13)
    )
    longer = world.extend(made, 3, steps=1)
    np.testing.assert_array_equal(longer.codes[:8], made.codes)
    assert longer.times.tolist() == list(range(5, 16))
    with pytest.raises(ValueError, match="keyframes or sinks of an earlier result"):
        world.extend(made, 3, keyframes=2)
    with pytest.raises(ValueError, match="extend: keyframes 0"):
        world.extend(tiny.make_clip(5), 8, keyframes=0)
