"""The loop of a game that was played: its frames, and whether it holds."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny

from worldsim.play import closing
from worldsim.play.closing import Loop
from worldsim.play.session import Dials, Session
from worldsim.types import Clip


@pytest.fixture
def stay():
    return Session(tiny.make_world(tiny.config()), tiny.make_clip(6), Dials(steps=1))


@pytest.mark.parametrize(("f", "given", "shown"), [(1, 6, 4), (1, 1, 1), (2, 6, 4), (2, 5, 4), (2, 2, 2)])
def test_a_loop_opens_with_the_last_frames_as_they_were_shown(f, given, shown):
    stay = Session(tiny.make_world(tiny.config(frames_per_chunk=f)), tiny.make_clip(given), Dials(steps=1))
    if given == 6:
        stay.step(1)
    last = np.stack([one.frame for one in stay.moments[-shown:]])
    drawn = [stay.draw_loop(9, number=i) for i in range(2)]
    for loop in drawn:
        assert loop.clip.frames.shape == (9 // f * f, 16, 16, 3) and loop.shown == shown
        np.testing.assert_array_equal(loop.clip.frames[:shown], last)
    assert not np.array_equal(drawn[0].clip.frames, drawn[1].clip.frames)
    assert stay.looped is None and stay.keep_loop(drawn) is stay.looped is not None
    stay.start(tiny.make_clip(6))
    assert stay.looped is None


def test_less_than_a_chunk_of_a_timeline_stands_still():
    stay = Session(tiny.make_world(tiny.config(frames_per_chunk=2)), tiny.make_clip(4), Dials(steps=1))
    for _ in range(3):
        stay.back()
    assert stay.present.position == 0
    loop = stay.draw_loop(8)
    np.testing.assert_array_equal(loop.clip.frames[:2], np.stack([stay.present.frame] * 2))
    assert len(stay.step(1)) == 2


def ball(places):
    """Frames of a bright square at columns of a ring."""
    frames = np.zeros((len(places), 16, 16, 3), np.uint8)
    for frame, at in zip(frames, places, strict=True):
        frame[6:9, [(at + i) % 16 for i in range(3)]] = 255
    return frames


def looped(*places):
    return Loop(Clip(ball([*range(8), *places])), shown=8)


def test_a_loop_holds_that_goes_on_as_the_play_does():
    play = ball(range(16))
    onward, leaping, still = looped(*range(8, 16)), looped(*(8, 9, 10, 11, 15, 14, 1, 2)), looped(*[7] * 8)
    back = looped(*range(8)[::-1])
    assert [closing.holds(one, play) for one in (onward, leaping, still, back)] == [True, False, False, False]
    assert closing.holds(looped(*range(8, 16)), play[:1])
    kept = closing.best([leaping, onward, still], play)
    assert kept.holds and kept.clip is onward.clip


def test_what_led_to_the_frames_of_a_loop_is_not_told_of_its_way_back(stay, monkeypatch):
    told, made = [], stay.world.extend(tiny.make_clip(4), 4, steps=1, key=jax.random.key(0))
    monkeypatch.setattr(type(stay.world), "infill", lambda *given, **_: told.append(given[1:]) or made)
    stay.draw_loop(8)
    (before, after, frames) = told[0]
    assert (len(before), len(after), frames) == (4, 2, 4)
    assert after.actions.tolist() == [-1, before.actions[1]]
