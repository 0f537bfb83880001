"""Laws of the verbs: what is given comes back, what is asked for twice is the same, nothing recompiles."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import worldsim
from worldsim import plan as plans
from worldsim.generate import render, requests, rollout
from worldsim.generate.check import check_clip, condition_rows
from worldsim.generate.prefill import prefill
from worldsim.generate.rollout import chunk_keys, rollout_block

pytestmark = pytest.mark.law

KEY, OTHER = jax.random.key(1), jax.random.key(2)
CODES = 4
"""In a chunk of the tiny worlds."""


def some_actions(count, *, seed=0):
    return np.random.default_rng((9, seed)).integers(0, 3, count).astype(np.int32)


def same(a, b, *, rounding=0):
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_allclose(a.clip.frames.astype(int), b.clip.frames, rtol=0, atol=rounding)
    np.testing.assert_array_equal(a.clip.actions, b.clip.actions)
    np.testing.assert_array_equal(a.known, b.known)
    np.testing.assert_array_equal(a.times, b.times)


def differs(a, b):
    assert (a.codes != b.codes).any()


def verbs(world):
    """Every verb that draws, as ``name: (call, frames given)``; clips with a remainder where there can be."""
    f = world.config.tokenizer.frames_per_chunk
    clip, after = tiny.make_clip(4 * f + f // 2, seed=1), tiny.make_clip(2 * f + f // 2, seed=2)
    image, count = tiny.make_clip(1, seed=3, actions=False), 3 * f
    both = [*clip.frames, *after.frames]
    return {
        "forward": (lambda **o: world.extend(clip, count, **o), clip.frames),
        "backward": (lambda **o: world.extend(clip, count, direction="backward", **o), clip.frames),
        "infill": (lambda **o: world.infill(clip, after, count, **o), np.stack(both)),
        "loop": (lambda **o: world.loop(clip, 5 * f, **o), clip.frames[: 2 * f]),
        "animate": (lambda **o: world.animate(image, count, **o), np.repeat(image.frames, f, 0)),
    }


VERBS = ("forward", "backward", "infill", "loop", "animate")


SOONER = [("world", name) for name in VERBS] + [("pair_world", "forward"), ("pair_world", "infill")]
LATER = [("pair_world", name) for name in ("backward", "loop", "animate")]


@pytest.mark.parametrize(
    ("which", "name"), SOONER + [pytest.param(*case, marks=pytest.mark.slow) for case in LATER]
)
def test_known_frames_come_back_untouched_and_new_ones_are_where_they_belong(which, name, request):
    call, given = verbs(request.getfixturevalue(which))[name]
    out = call(key=KEY)
    np.testing.assert_array_equal(out.clip.frames[out.known], given)
    f = 1 if which == "world" else 2
    new = np.flatnonzero(~out.known)
    assert len(new) == 3 * f == len(out.codes) * f
    first = {"backward": 0, "infill": 4 * f + f // 2}.get(name, len(given))
    np.testing.assert_array_equal(new, first + np.arange(len(new)))
    assert (np.diff(out.times) == f).all()
    assert out.codes.min() >= 0
    assert out.codes.max() < 9


@pytest.mark.parametrize("name", VERBS)
def test_same_key_same_codes_and_temperature_zero_ignores_the_key(world, name):
    call, _ = verbs(world)[name]
    same(call(key=KEY), call(key=KEY))
    differs(call(key=KEY), call(key=OTHER))
    same(call(key=KEY, temperature=0.0), call(key=OTHER, temperature=0.0))
    differs(call(key=KEY), call(key=KEY, temperature=0.0))


def test_without_a_key_it_is_key_zero(world):
    clip = tiny.make_clip(3)
    same(world.extend(clip, 4), world.extend(clip, 4, key=jax.random.key(0)))


@pytest.mark.parametrize("which", ["world", "pair_world"])
def test_infill_with_nothing_after_is_extend(which, request):
    world = request.getfixturevalue(which)
    f = world.config.tokenizer.frames_per_chunk
    clip, actions = tiny.make_clip(5 * f), some_actions(4 * f)
    a = world.infill(clip, clip[:0], 4 * f, actions=actions, key=KEY)
    same(a, world.extend(clip, 4 * f, actions=actions, key=KEY))
    differs(a, world.infill(clip, tiny.make_clip(f, seed=5), 4 * f, actions=actions, key=KEY))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("which", ["world", "pair_world"])
@pytest.mark.parametrize("cuts", [(9, 4), (1, 3, 9)], ids=str)
def test_extending_on_from_the_kept_state_is_extending_at_once(which, direction, cuts, request):
    """Across evictions: 13 new chunks go round a ring of six."""
    world = request.getfixturevalue(which)
    f, onward = world.config.tokenizer.frames_per_chunk, direction == "forward"
    clip, total = tiny.make_clip(4 * f + f // 2), 13 * f
    actions = some_actions(total)
    whole = world.extend(clip, total, direction=direction, actions=actions, key=KEY)
    left, out = actions, clip
    for count in cuts:
        now, left = np.split(left, [count * f]) if onward else np.split(left, [-count * f])[::-1]
        out = world.extend(out, count * f, direction=direction, actions=now, key=KEY)
    same(out, whole)


def test_a_kept_state_can_go_on_more_than_once(world):
    """Going on consumes a copy: two futures of one state are drawn with one stream of keys."""
    begun = world.extend(tiny.make_clip(4), 3, key=KEY)
    same(world.extend(begun, 5, actions=some_actions(5)), world.extend(begun, 5, actions=some_actions(5)))


def test_actions_matter_and_the_past_ones_too(world):
    clip = tiny.make_clip(4)
    call = lambda clip, actions: world.extend(clip, 6, actions=actions, key=KEY)
    first = call(clip, some_actions(6))
    differs(first, call(clip, some_actions(6, seed=1)))
    differs(first, call(clip, None))
    differs(first, call(dataclasses.replace(clip, actions=(clip.actions + 1) % 3), some_actions(6)))
    later = some_actions(6)
    later[4] = (later[4] + 1) % 3
    np.testing.assert_array_equal(call(clip, later).codes[:4], first.codes[:4])
    assert (call(clip, later).codes[4:] != first.codes[4:]).any()


def test_actions_of_a_backward_extension_are_in_the_order_of_time(world):
    """The last one leads to the frame that is drawn first."""
    clip, actions = tiny.make_clip(4), some_actions(6)
    call = lambda actions: world.extend(clip, 6, direction="backward", actions=actions, key=KEY)
    first, other = call(actions), actions.copy()
    other[0] = (other[0] + 1) % 3
    np.testing.assert_array_equal(call(other).codes[1:], first.codes[1:])
    assert (call(other).codes[0] != first.codes[0]).any()
    np.testing.assert_array_equal(first.clip.actions, [*actions, *clip.actions])


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_batch_of_requests_is_each_alone(world, direction):
    clips = [tiny.make_clip(5, seed=seed) for seed in range(3)]
    keys = jax.random.split(KEY, 3)
    batch = [
        requests.extend_request(clip, 7, world.config, direction=direction, actions=some_actions(7, seed=i))
        for i, clip in enumerate(clips)
    ]
    together = world.run(batch, world.dials(steps=4, doubt=0.5, revisions=2), keys=keys)
    for i, clip in enumerate(clips):
        options = {"direction": direction, "actions": some_actions(7, seed=i)}
        options |= {"steps": 4, "doubt": 0.5, "revisions": 2}
        alone = world.extend(clip, 7, key=keys[i], **options)
        same(together[i], alone, rounding=1)  # another program decodes the batch
        same(world.extend(together[i], 2), world.extend(alone, 2), rounding=1)  # the states too


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_futures_of_one_past_are_what_their_keys_draw_alone(world, direction, monkeypatch):
    """What is known is read once, whatever the number of samples."""
    clip, told = tiny.make_clip(5), {"direction": direction, "actions": some_actions(8), "steps": 4}
    read, rows = rollout.dispatch, []
    monkeypatch.setattr(
        rollout,
        "dispatch",
        lambda m, s, plan, **k: rows.append((len(s.keys), plan.known.sum())) or read(m, s, plan, **k),
    )
    made = world.futures(clip, 8, samples=3, key=KEY, sinks=1, **told)
    assert rows == [(1, 5), (3, 0)]
    for one, key in zip(made, jax.random.split(KEY, 3), strict=True):
        alone = world.extend(clip, 8, key=key, sinks=1, **told)
        same(one, alone, rounding=1)
        same(
            world.extend(one, 4, actions=some_actions(4, seed=1), steps=2),
            world.extend(alone, 4, actions=some_actions(4, seed=1), steps=2),
            rounding=1,
        )
    differs(made[0], made[1])
    with pytest.raises(ValueError, match="futures: 0 samples; take 1 or more"):
        world.futures(clip, 8, samples=0)


def test_requests_of_different_plans_are_refused(world):
    one, two = (requests.extend_request(tiny.make_clip(3), n, world.config) for n in (2, 3))
    with pytest.raises(ValueError, match="different plans"):
        world.run([one, two], world.dials(steps=1), keys=jax.random.split(KEY, 2))
    clip, other = tiny.make_clip(3), requests.loop_request(tiny.make_clip(1), 4, world.config)
    extended = dataclasses.replace(
        requests.extend_request(clip, 2, world.config), sources=np.array([1, 0, 2, -1, -1])
    )
    for pair in ([requests.extend_request(clip, 2, world.config), extended], [one, other]):
        with pytest.raises(ValueError, match="different plans"):
            world.run(pair, world.dials(steps=1), keys=jax.random.split(KEY, 2))


def test_a_result_goes_on_in_its_own_direction_only(world):
    out = world.extend(tiny.make_clip(3), 2, direction="backward", key=KEY)
    same(world.extend(out, 2), world.extend(out, 2, direction="backward"))
    with pytest.raises(ValueError, match="'forward' from a result that ran backward"):
        world.extend(out, 2, direction="forward")


def test_one_trace_for_every_verb_length_and_dial(world):
    world.extend(tiny.make_clip(2), 1)
    jitted = rollout_block, prefill, render.draw, render._encode
    before = [function._cache_size() for function in jitted]
    for call, _ in verbs(world).values():
        call()
    for frames, steps, temperature in ((1, 1, 0.0), (9, 4, 0.7), (20, 2, 1.5)):
        out = world.extend(tiny.make_clip(6), frames, steps=steps, temperature=temperature, key=KEY)
        world.extend(out, 3, actions=some_actions(3))
    world.extend(tiny.make_clip(5, actions=False), 4, actions=some_actions(4), direction="backward")
    assert [function._cache_size() for function in jitted] == before


def test_loop_knows_its_opening_twice(world, pair_world):
    for each in (world, pair_world):
        f = each.config.tokenizer.frames_per_chunk
        clip = tiny.make_clip(4 * f)
        request = requests.loop_request(clip, 6 * f, each.config)
        plan = request.plan
        np.testing.assert_array_equal(plan.times, f * np.array([6, 7, 0, 1, 2, 5, 3, 4]))
        assert plan.known.tolist() == [True] * 4 + [False] * 4
        assert plan.pinned.tolist() == [True] * 2 + [False] * 6
        assert request.sources.tolist() == [0, 1, 0, 1, -1, -1, -1, -1]
        np.testing.assert_array_equal(request.frames, clip.frames[: 2 * f])
        np.testing.assert_array_equal(request.actions[:2], request.actions[2:4])
        assert request.actions[0, 0] == -1  # what the recording says led to its first frame does not


def test_a_long_rollout_keeps_its_pins_and_its_latest_chunks(world):
    """Context 6: two pinned chunks of what comes after, or of the loop's anchor, and the last four."""
    gap = world.infill(tiny.make_clip(4), tiny.make_clip(2, seed=2), 13, key=KEY)
    loop = world.loop(tiny.make_clip(2), 16, key=KEY)
    for out, rows in ((gap, 2 + 4 + 13), (loop, 2 + 16)):
        orders = sorted(np.asarray(out.state.cache.ids)[0, :, 1].tolist())
        assert orders == [0, 1, *range(rows - 4, rows)]


def test_infill_with_nothing_after_is_the_plan_of_extend(world):
    """Not by the shortcut alone: the general plan with no suffix is the same one."""
    request = requests.extend_request(tiny.make_clip(3), 4, world.config)
    general = plans.infill(3, 0, 4)
    for name in ("times", "known", "pinned", "orders"):
        np.testing.assert_array_equal(getattr(general, name), getattr(request.plan, name))


def test_plans_that_a_cache_cannot_hold_are_refused(world):
    with pytest.raises(ValueError, match="put the pinned ones first"):
        plans.Plan(np.zeros(3, np.float32), np.array([True, True, False]), np.array([False, True, False]))
    state = rollout.start(*world.dynamics, keys=KEY[None])
    blank = np.zeros((1, 8, 2, 2), np.int32)
    with pytest.raises(ValueError, match="7 known chunks beside 0 pinned ones in a cache of 6"):
        rollout.run(
            world.dynamics,
            state,
            plans.forward(7, 1),
            codes=blank,
            dials=world.dials(steps=1, temperature=0.0),
        )


def test_a_loop_returns_the_actions_that_it_was_told(world):
    clip, told = tiny.make_clip(5), some_actions(8)
    out = world.loop(clip, 8, actions=told, key=KEY).clip
    np.testing.assert_array_equal(out.actions, [told[0], clip.actions[1], *told[2:]])
    assert world.loop(clip, 8, key=KEY).clip.actions[0] == -1
    request = requests.loop_request(clip, 8, world.config, actions=told)
    generated = request.plan.times[~request.plan.known].astype(int)
    np.testing.assert_array_equal(request.actions[~request.plan.known][:, 0], told[generated])


def test_the_end_of_a_loop_depends_on_its_anchor(world):
    """The same opening, extended instead of closed, goes elsewhere."""
    clip = tiny.make_clip(2)
    clip.actions[0] = -1
    differs(world.loop(clip, 8, key=KEY), world.extend(clip, 6, key=KEY))


def test_every_chunk_has_its_own_stream_of_keys_folded_from_its_time():
    keys = jax.random.split(KEY, 2)
    times = [0.0, 1.0, -1.0, 0.5, 1e5]
    drawn = np.stack([jax.random.key_data(chunk_keys(keys, jnp.float32(time))) for time in times])
    assert len({tuple(row) for row in drawn.reshape(-1, 2).tolist()}) == 2 * len(times)
    np.testing.assert_array_equal(drawn[1], jax.random.key_data(chunk_keys(keys, jnp.float32(1.0))))


@pytest.mark.parametrize("steps", [1, CODES, 100])
def test_steps_go_from_one_to_every_code(world, steps):
    out = world.extend(tiny.make_clip(3), 5, steps=steps, key=KEY)
    assert out.codes.min() >= 0
    assert out.codes.max() < 9  # no mask is left
    if steps > CODES:
        same(out, world.extend(tiny.make_clip(3), 5, steps=CODES, key=KEY))
    else:
        differs(out, world.extend(tiny.make_clip(3), 5, steps=2, key=KEY))


def test_remainder_frames_lie_at_the_far_end_unseen(pair_world):
    """Seven frames are three chunks of two; the odd one is the farthest from what is made."""
    clip, after = tiny.make_clip(7), tiny.make_clip(5, seed=2)

    def touched(clip, index):
        frames = clip.frames.copy()
        frames[index] = 255 - frames[index]
        return dataclasses.replace(clip, frames=frames)

    forward = lambda clip: pair_world.extend(clip, 4, key=KEY)
    backward = lambda clip: pair_world.extend(clip, 4, direction="backward", key=KEY)
    between = lambda clip: pair_world.infill(clip, after, 4, key=KEY)
    before = lambda after: pair_world.infill(clip, after, 4, key=KEY)
    cases = (forward, clip, 0), (backward, clip, -1), (between, clip, 0), (before, after, -1)
    for call, given, unseen in cases:
        out, changed = call(given), call(touched(given, unseen))
        np.testing.assert_array_equal(changed.codes, out.codes)
        differs(call(touched(given, 0 if unseen else 1)), out)
        assert (changed.clip.frames != out.clip.frames).any((1, 2, 3)).sum() == 1


def test_only_the_nearest_chunks_of_a_long_clip_are_seen(world):
    clip, after = tiny.make_clip(20), tiny.make_clip(20, seed=2)
    far = dataclasses.replace(clip, frames=np.concatenate([clip.frames[:14] // 2, clip.frames[14:]]))
    out = world.extend(far, 3, key=KEY)
    np.testing.assert_array_equal(out.codes, world.extend(clip, 3, key=KEY).codes)
    np.testing.assert_array_equal(out.clip.frames[:20], far.frames)
    closest = world.infill(clip[16:], after[:2], 3, key=KEY)
    np.testing.assert_array_equal(world.infill(clip, after, 3, key=KEY).codes, closest.codes)


def test_codes_that_a_verb_drew_decode_to_its_frames(world, pair_world):
    for one, f in ((world, 1), (pair_world, 2)):
        clip = tiny.make_clip(4 * f)
        codes = one.encode(tiny.make_clip(4 * f + f - 1))
        assert codes.shape == (4, 2, 2)
        np.testing.assert_array_equal(codes, one.extend(clip, f).given_codes)
        made = one.extend(clip, 3 * f, refine_steps=2, key=jax.random.key(5))
        whole = np.concatenate([made.given_codes, made.codes])
        drawn = one.decode(whole, refine_steps=2, key=jax.random.key(5))
        np.testing.assert_array_equal(drawn.frames[4 * f :], made.clip.frames[4 * f :])
        assert drawn.fps == one.config.fps


def test_reconstruct_is_the_codes_and_leaves_the_remainder(pair_world):
    clip = tiny.make_clip(7)
    seen = pair_world.reconstruct(clip)
    assert seen.frames.shape == clip.frames.shape
    np.testing.assert_array_equal(seen.frames[6], clip.frames[6])
    assert (seen.frames[:6] != clip.frames[:6]).any()
    shorter = pair_world.reconstruct(clip[:4]).frames  # a chunk is drawn beside the next one
    np.testing.assert_array_equal(seen.frames[:2], shorter[:2])
    assert (seen.frames[:2] != pair_world.reconstruct(clip[:2]).frames).any()


def test_a_world_round_trips_through_its_folder(world, tmp_path):
    clip = tiny.make_clip(4)
    out = world.extend(clip, 6, key=KEY)
    world.save(tmp_path / "whole")
    same(worldsim.load(tmp_path / "whole").extend(clip, 6, key=KEY), out)
    world.save(tmp_path / "half", dtype="bfloat16")
    half = worldsim.load(tmp_path / "half")
    assert half.config == world.config
    half.save(tmp_path / "again", dtype="bfloat16")
    again = worldsim.load(tmp_path / "again")
    same(again.extend(clip, 6, key=KEY), half.extend(clip, 6, key=KEY))


@pytest.mark.slow
def test_conditions_reach_every_verb():
    """A class and a vector that hold for a whole clip; left out, they are null."""
    config = tiny.config(conditions=tiny.CONDITIONS)
    world = tiny.make_world(config)
    for call, _ in verbs(world).values():
        plain = call(key=KEY, temperature=0.0)
        same(plain, call(key=KEY, temperature=0.0, conditions={"class": -1, "speed": [np.nan, np.nan]}))
        answers = [call(key=KEY, temperature=0.0, conditions={"class": i}).codes for i in range(4)]
        assert len({codes.tobytes() for codes in answers}) > 1
        differs(plain, call(key=KEY, temperature=0.0, conditions={"speed": [3.0, -3.0]}))
    clip, told = tiny.make_clip(3), {"class": 2, "speed": [1.0, 2.0]}
    part = world.extend(clip, 3, key=KEY, conditions=told)
    same(world.extend(part, 4, conditions=told), world.extend(clip, 7, key=KEY, conditions=told))


@pytest.mark.parametrize(
    ("conditions", "match"),
    [
        ({"mood": 1}, r"no 'mood'; the world has \['class', 'speed'\]"),
        ({"class": 4}, "class=4; give one class from 0 to 3, or -1"),
        ({"class": 1.5}, "one class from 0 to 3"),
        ({"speed": [1.0]}, r"speed is \[1\]; give 2 numbers"),
    ],
)
def test_conditions_that_the_world_does_not_have_are_refused(conditions, match):
    with pytest.raises(ValueError, match=match):
        condition_rows(conditions, 3, tiny.config(conditions=tiny.CONDITIONS))


@pytest.mark.parametrize("key", [3, jax.random.PRNGKey(3), jax.random.split(jax.random.key(3), 2)])
def test_keys_that_are_not_one_typed_key_are_refused(world, key):
    with pytest.raises(TypeError, match=r"extend: the key is no single typed key; give jax.random.key\(0\)"):
        world.extend(tiny.make_clip(2), 4, key=key)


def test_bare_frames_are_refused():
    with pytest.raises(TypeError, match=r"extend: got ndarray; give a worldsim.Clip"):
        inspect.unwrap(check_clip)(tiny.make_clip(2).frames, tiny.config(), verb="extend")


def test_progress_counts_the_chunks_to_make_and_changes_nothing(world):
    told, clip = [], tiny.make_clip(3)
    watched = dataclasses.replace(world, progress=lambda done, total: told.append((done, total)))
    same(watched.extend(clip, 20, key=KEY), world.extend(clip, 20, key=KEY))
    assert told == [(8, 20), (16, 20), (20, 20)]


def test_bfloat16_compute_keeps_the_laws(monkeypatch):
    """As on a GPU or TPU."""
    config, clip = tiny.config(), tiny.make_clip(4)
    monkeypatch.setattr("worldsim.generate.extend.compute_dtype", lambda: jnp.dtype(jnp.bfloat16))
    half = tiny.make_world(config)
    whole = half.extend(clip, 7, key=KEY)
    same(half.extend(half.extend(clip, 3, key=KEY), 4), whole)
    assert whole.state.cache.keys[0].dtype == jnp.bfloat16
    assert whole.codes.min() >= 0
    assert whole.codes.max() < 9
