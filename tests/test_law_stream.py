"""Laws of streams: the frames of an extension, in pieces and in constant memory, resumed to the same bits."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import tiny
from test_law_cache import later
from test_law_refusals import unchecked

import worldsim
from worldsim.generate import requests, stream
from worldsim.generate.check import check_clip
from worldsim.generate.rollout import rollout_block
from worldsim.types import Clip

KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(stream, "PIECE", 5)


def joined(pieces, direction):
    pieces = list(pieces)[:: 1 if direction == "forward" else -1]
    actions = [piece.actions for piece in pieces]
    frames = np.concatenate([piece.frames for piece in pieces])
    return frames, None if actions[0] is None else np.concatenate(actions)


@pytest.mark.parametrize("which", ["world", "pair_world"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("chunks", [1, 4, 13])
def test_pieces_are_the_frames_of_an_extension(request, which, direction, chunks):
    world = request.getfixturevalue(which)
    frames = chunks * world.config.tokenizer.frames_per_chunk
    clip, actions = tiny.make_clip(6), tiny.make_clip(frames, seed=3).actions
    how = {"direction": direction, "actions": actions, "key": KEY, "steps": 1, "refine_steps": 1}
    whole = world.extend(clip, frames, **how)
    pieces = list(world.rollout(clip, frames, **how))
    made, told = joined(pieces, direction)
    np.testing.assert_array_equal(made, whole.clip.frames[~whole.known])
    np.testing.assert_array_equal(told, whole.clip.actions[~whole.known])
    assert all(isinstance(piece, Clip) for piece in pieces)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_codes_are_those_of_an_extension(pair_world, direction):
    how = {"direction": direction, "key": KEY, "steps": 1}
    whole = pair_world.extend(tiny.make_clip(6), 26, **how, render="decode")
    pieces = list(pair_world.rollout(tiny.make_clip(6), 26, **how, render="codes"))
    codes = np.concatenate(pieces[:: 1 if direction == "forward" else -1])
    np.testing.assert_array_equal(codes, whole.codes)
    assert len(pieces) > 1


def test_a_way_to_render_stands_for_steps_of_the_refinement(world):
    draw = lambda **how: world.extend(tiny.make_clip(6), 4, key=KEY, steps=1, **how).clip.frames
    decoded, refined = draw(refine_steps=0), draw(refine_steps=4)
    assert (decoded != refined).any()
    np.testing.assert_array_equal(draw(render="decode"), decoded)
    np.testing.assert_array_equal(draw(render="refine"), refined)
    np.testing.assert_array_equal(draw(render="refine", refine_steps=2), draw(refine_steps=2))


@pytest.mark.parametrize(
    "how, says",
    [
        ({"render": "codes"}, "extend: render 'codes'; its answer is a clip"),
        ({"render": "refine", "refine_steps": 0}, "render 'refine' with refine_steps 0"),
        ({"render": "codes "}, "take one of codes, decode, refine"),
    ],
)
def test_ways_to_render_that_cannot_be(world, how, says):
    with pytest.raises(ValueError, match=says):
        world.extend(tiny.make_clip(6), 4, **how)


def test_actions_may_be_asked_for_as_frames_are_made(world):
    actions, asked = tiny.make_clip(12, seed=3).actions, []
    how = {"key": KEY, "steps": 1, "refine_steps": 0}
    told = lambda i: asked.append(i) or int(actions[i])
    one = joined(world.rollout(tiny.make_clip(6), 12, actions=told, **how), "forward")
    two = joined(world.rollout(tiny.make_clip(6), 12, actions=actions, **how), "forward")
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], actions)
    assert asked == list(range(12))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_stream_goes_on_from_where_it_stood(world, direction, stop):
    actions = tiny.make_clip(14, seed=3).actions
    how = {"direction": direction, "actions": actions, "steps": 1, "refine_steps": 1}
    whole = list(world.rollout(tiny.make_clip(6), 14, key=KEY, **how))
    first = world.rollout(tiny.make_clip(6), 14, key=KEY, **how)
    before = list(itertools.islice(first, stop))
    stood = first.standing()
    rest = list(first)
    for again in (rest, *[list(world.rollout(stood, 14, **how)) for _ in range(2)]):
        assert [len(piece) for piece in [*before, *again]] == [len(piece) for piece in whole]
        for one, other in zip([*before, *again], whole, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.actions, other.actions)


def test_a_stream_without_end_holds_no_more_and_is_one_program(world):
    endless = world.rollout(tiny.make_clip(6), steps=1, refine_steps=0)
    next(endless)
    programs, sizes = rollout_block._cache_size(), []
    for _ in range(6):
        next(endless)
        now = endless.standing()
        sizes.append((len(now.codes), now.waiting, None if now.told is None else len(now.told)))
    assert len(set(sizes)) == 1
    assert rollout_block._cache_size() == programs


@pytest.mark.parametrize("which", ["world", "pair_world"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_stream_a_million_frames_later_shows_the_same_frames(request, which, direction):
    """Its past and its place are moved there between two pieces, after as many chunks more."""
    world, count = request.getfixturevalue(which), 10**6
    f = world.config.tokenizer.frames_per_chunk
    how = {"steps": 2, "refine_steps": 0, "temperature": 0}
    for seed in range(6):
        first = world.rollout(tiny.make_clip(6, seed=seed), 18 * f, direction=direction, sinks=1, **how)
        next(first)
        stood = first.standing()
        cache = later(stood.state.cache, times=count, orders=count)
        state = dataclasses.replace(stood.state, cache=cache, next_order=stood.state.next_order + count)
        moved = dataclasses.replace(stood, state=state, position=stood.position + count // f)
        rest, again = list(first), list(world.rollout(moved, 18 * f, **how))
        assert len(rest) > 2
        for one, other in zip(rest, again, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)


@pytest.mark.parametrize("which", ["world", pytest.param("pair_world", marks=pytest.mark.slow)])
def test_a_simulator_a_million_frames_later_draws_the_same_codes(request, which):
    """On until nothing but what is pinned is left of the past that was moved there."""
    world, count = request.getfixturevalue(which), 10**6
    f = world.config.tokenizer.frames_per_chunk
    sim = worldsim.Simulator(world, steps=2, temperature=0, render="codes", sinks=1)
    here = sim.reset([tiny.make_clip(6, seed=seed) for seed in range(12)])

    def moved(times, orders):
        cache = later(here.cache, times=times, orders=orders)
        return dataclasses.replace(here, cache=cache, time=here.time + times, order=here.order + orders)

    there = [moved(*by) for by in ((count, 0), (0, count), (count, count))]
    for action in np.random.default_rng(3).integers(0, 3, (9, 12, f)):
        here, want = sim.step(here, action)
        there, drawn = zip(*(sim.step(state, action) for state in there), strict=True)
        for codes in drawn:
            np.testing.assert_array_equal(codes, want)


def test_a_stream_goes_on_in_its_own_direction(world):
    first = world.rollout(tiny.make_clip(6), 14, direction="backward", steps=1)
    next(first)
    stood = first.standing()
    rest = np.concatenate([piece.frames for piece in first])
    again = [piece.frames for piece in world.rollout(stood, 14, steps=1)]
    np.testing.assert_array_equal(np.concatenate(again), rest)
    with pytest.raises(ValueError, match="'forward' from a stream that ran backward"):
        world.rollout(stood, 14, direction="forward")


def test_what_a_stream_cannot_take_is_refused(world):
    for wrong in (world.extend(tiny.make_clip(6), 4, steps=1), tiny.make_clip(6).frames):
        with pytest.raises(TypeError, match=r"rollout: got \w+; give a worldsim\.Clip"):
            unchecked(check_clip)(wrong, world.config, verb="rollout")
    with pytest.raises(ValueError, match="rollout: direction 'back'; use 'forward' or 'backward'"):
        back = {"direction": "back", "verb": "rollout"}
        unchecked(requests.extend_request)(tiny.make_clip(6), 4, world.config, **back)
    with pytest.raises(ValueError, match="frames without end"):
        world.rollout(tiny.make_clip(6), actions=np.zeros(4, int))
    with pytest.raises(ValueError, match="3 actions for 4 frames"):
        world.rollout(tiny.make_clip(6), 4, actions=np.zeros(3, int))
    with pytest.raises(ValueError, match="actions go from 9 to 9"):
        list(world.rollout(tiny.make_clip(6), 4, actions=lambda _: 9))
    free = tiny.make_world(tiny.config(action=tiny.ActionConfig()))
    with pytest.raises(ValueError, match="takes no actions"):
        free.rollout(tiny.make_clip(6), 4, actions=lambda _: 0)
