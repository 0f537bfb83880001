"""Laws of refusal: what a world can't take is named with its numbers and the remedy."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re

import numpy as np
import pytest
import tiny

import worldsim
from worldsim.config import (
    ActionConfig,
    ConditionConfig,
    DynamicsConfig,
    PhaseConfig,
    TokenizerConfig,
    TrainConfig,
)
from worldsim.generate import requests
from worldsim.generate.check import action_problems
from worldsim.types import Clip

pytestmark = pytest.mark.law


def some_actions(count):
    return np.arange(count, dtype=np.int32) % 3


def unchecked(function):
    """The function without the type checks that tests put around it."""
    return inspect.unwrap(function)


def odd_clip(**changes):
    return dataclasses.replace(tiny.make_clip(4), **changes)


REFUSALS = {
    "another size": (
        lambda w: w.extend(Clip(np.zeros((4, 24, 20, 3), np.uint8)), 2),
        ["extend", "24x20", "16x16", "--resize"],
    ),
    "grey": (
        lambda w: w.extend(Clip(np.zeros((4, 16, 16, 1), np.uint8)), 2),
        ["1 channels", "takes 3", "with_channels"],
    ),
    "no frames": (lambda w: w.extend(tiny.make_clip(4)[:0], 2), ["it has 0 frames", "at least 1"]),
    "padding": (lambda w: w.extend(odd_clip(mask=np.arange(4) < 3), 2), ["1 of its 4 frames are padding"]),
    "codes of another grid": (
        lambda w: w.decode(np.zeros((2, 3, 2), np.int32)),
        ["decode", "[2, 3, 2]", "[chunks, 2, 2]"],
    ),
    "codes out of range": (lambda w: w.decode(np.full((1, 2, 2), 9)), ["from 9 to 9", "0 to 8"]),
    "everything at once": (
        lambda w: w.reconstruct(Clip(np.zeros((0, 8, 8, 3), np.uint8))),
        ["reconstruct", "8x8", "it has 0 frames"],
    ),
    "too many actions": (
        lambda w: w.extend(tiny.make_clip(4), 2, actions=some_actions(3)),
        ["3 actions for 2"],
    ),
    "loop actions": (lambda w: w.loop(tiny.make_clip(4), 6, actions=some_actions(4)), ["4 actions for 6"]),
    "infill actions": (
        lambda w: w.infill(tiny.make_clip(4), tiny.make_clip(4), 6, actions=some_actions(4)),
        ["infill", "4 actions for 6"],
    ),
    "action too large": (
        lambda w: w.extend(tiny.make_clip(4), 2, actions=np.array([0, 3])),
        ["from 0 to 3", "0 to 2", "noop, left, right", "-1"],
    ),
    "action too small": (
        lambda w: w.extend(tiny.make_clip(4), 2, actions=np.array([-2, 1])),
        ["from -2 to 1"],
    ),
    "float actions": (
        lambda w: w.extend(tiny.make_clip(4), 2, actions=np.zeros(2)),
        ["float64 [2]", "integers [t]"],
    ),
    "clip actions": (
        lambda w: w.extend(odd_clip(actions=np.array([0, 1, 2, 7])), 2),
        ["from 0 to 7", "0 to 2"],
    ),
    "going on": (
        lambda w: w.extend(w.extend(tiny.make_clip(2), 1), 2, actions=some_actions(1)),
        ["1 actions for 2"],
    ),
    "no new frames": (lambda w: w.extend(tiny.make_clip(4), 0), ["0 frames", "ask for 1"]),
    "fewer than none": (lambda w: w.animate(tiny.make_clip(1), -3), ["-3 frames", "ask for 1"]),
    "loop too short": (
        lambda w: w.loop(tiny.make_clip(4), 2),
        ["loop", "2 frames", "opening of 2", "more than 2"],
    ),
    "infill of two sizes": (
        lambda w: w.infill(tiny.make_clip(4), Clip(np.zeros((4, 32, 16, 3), np.uint8)), 2),
        ["infill", "32x16", "16x16"],
    ),
    "two images": (lambda w: w.animate(tiny.make_clip(2), 2), ["2 frames", "one image"]),
    "temperature": (lambda w: w.extend(tiny.make_clip(4), 2, temperature=-0.5), ["temperature -0.5", "0"]),
    "not a temperature": (
        lambda w: w.loop(tiny.make_clip(4), 6, temperature=float("nan")),
        ["temperature nan"],
    ),
    "no steps": (lambda w: w.extend(tiny.make_clip(4), 2, steps=0), ["steps 0", "1 to 4"]),
    "a loop can't go on": (lambda w: w.extend(w.loop(tiny.make_clip(2), 4), 2), ["only an extension"]),
    "no such world": (lambda _: worldsim.load("nowhere"), ["'nowhere'"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_numbers_and_the_remedy(world, name):
    call, words = REFUSALS[name]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call(world)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_direction_is_refused(world):
    with pytest.raises(ValueError, match=r"'sideways'; use 'forward' or 'backward'"):
        unchecked(requests.extend_request)(tiny.make_clip(4), 2, world.config, direction="sideways")


PHASE = PhaseConfig(share=0.5, chunks=4, queries=1, frames=6, rope_base=100.0)
IMPOSSIBLE = {
    "no width": (lambda: DynamicsConfig(width=0), "width 0 must lie in [1, inf)"),
    "less than no width": (lambda: DynamicsConfig(width=-192), "width -192 must"),
    "no heads": (lambda: DynamicsConfig(heads=0), "heads 0 must lie in [1, inf)"),
    "less than no heads": (lambda: DynamicsConfig(heads=-6), "heads -6 must"),
    "widths": (lambda: TokenizerConfig(widths=(0, -5)), "widths (0, -5); give at least one, each at least 1"),
    "blocks": (lambda: TokenizerConfig(blocks=-1), "blocks -1 must lie in [0, inf)"),
    "channels": (lambda: TokenizerConfig(channels=2), "channels 2; take 1 (grey) or 3 (RGB)"),
    "a name with a gap": (lambda: ConditionConfig("frame rate"), "take letters, digits and _"),
    "a phase of no step": (
        lambda: TrainConfig(curriculum=(dataclasses.replace(PHASE, share=0.9999),)),
        "the phases end at steps",
    ),
    "a seed below 0": (lambda: TrainConfig(seed=-1), "seed -1 must lie in [0, inf)"),
    "actions": (lambda: ActionConfig("discrete", -3), "size -3 must lie in [0, inf)"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_sizes_are_refused_with_their_names(name):
    build, words = IMPOSSIBLE[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        build()


@pytest.mark.parametrize(
    ("config", "kind", "told"),
    [
        (ActionConfig("discrete", 3), "discreet", "'discreet'; take one of none, discrete, continuous"),
        (ConditionConfig(), "vectr", "'vectr'; take one of class, vector"),
    ],
)
def test_an_unknown_kind_is_refused(config, kind, told):
    wrong = copy.copy(config)
    object.__setattr__(wrong, "kind", kind)  # past the type checks that tests put around configs
    with pytest.raises(ValueError, match=f"{type(config).__name__}: kind {told}"):
        wrong.__post_init__()


def test_refusals_of_chunks_of_two_frames(pair_world):
    with pytest.raises(ValueError, match=r"5 frames; the world makes 2 at a time: ask for 4\."):
        pair_world.extend(tiny.make_clip(4), 5)
    with pytest.raises(ValueError, match=r"it has 1 frames; give at least 2"):
        pair_world.extend(tiny.make_clip(1), 4)
    with pytest.raises(ValueError, match=r"opening of 4; ask for more than 4 frames"):
        pair_world.loop(tiny.make_clip(8), 4)


def test_a_world_without_actions_takes_none():
    still = tiny.make_world(tiny.config(action=ActionConfig()))
    clip = tiny.make_clip(3)
    assert still.extend(clip, 2).clip.actions is None  # those of the clip are left aside
    with pytest.raises(ValueError, match="takes no actions"):
        still.extend(clip, 2, actions=some_actions(2))


def test_a_single_action_for_many_frames_is_refused():
    (told,) = unchecked(action_problems)(np.asarray(1), tiny.ACTIONS, 2)
    assert told == "actions are the single value 1; give one for each of 2 frames"


def test_lists_in_a_config_are_tuples():
    """A config is hashed and compared; in a file of one, brackets are easily taken for parentheses."""
    lists = {"widths": [8, 16], "levels": [3, 3]}
    config = copy.copy(TokenizerConfig())
    for name, value in lists.items():
        object.__setattr__(config, name, value)
    config.__post_init__()
    assert config == TokenizerConfig(widths=(8, 16), levels=(3, 3)) and hash(config)
