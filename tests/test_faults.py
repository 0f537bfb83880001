"""What is no loop is found: copied, mirrored and crossfaded frames; and real video is not accused."""

from __future__ import annotations

import numpy as np
import pytest

import worldsim
from worldsim.data import sprites
from worldsim.data.sprites import SpriteConfig
from worldsim.ops.faults import loop_faults
from worldsim.worlds import clips

CONFIG = SpriteConfig(sprites=3, redraw=0.0)
ROUND = 2 * CONFIG.span
LENGTH = 32


def played(count, length, *, config=CONFIG):
    """Frames of sprites that nobody pushes; without redraws they come back after ``ROUND`` frames."""
    out = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        states = [sprites.reset(config, rng)]
        for _ in range(length - 1):
            states.append(sprites.step(config, states[-1], 0, rng))
        out.append(np.stack([sprites.draw(config, state) for state in states]))
    return out


def videos():
    """Real video of both worlds, 40 frames or more."""
    pushed = sprites.episodes(SpriteConfig(), count=12, length=40, seed=5)
    return [clip.frames for clip in clips("pong")] + [episode.frames for episode in pushed]


def crossfaded(video, length, fade):
    """The tail fades into the head: the usual way to make any video a loop."""
    out = video[:length].astype(float)
    for i in range(fade):
        share = (i + 1) / (fade + 1)
        out[i] = share * video[i] + (1 - share) * video[length + i]
    return out.round().astype(np.uint8)


def ramped(video, length, fade):
    """The last frames lead in a straight line to the first."""
    out = video[:length].astype(float)
    for i in range(fade):
        share = (i + 1) / (fade + 1)
        out[length - fade + i] = (1 - share) * out[length - fade - 1] + share * out[0]
    return out.round().astype(np.uint8)


def test_real_video_and_true_loops_have_no_faults():
    for video in videos():
        assert loop_faults(video[:LENGTH]) == []
    for video in played(60, ROUND + 1):
        np.testing.assert_array_equal(video[0], video[ROUND])  # it is a loop
        assert loop_faults(video[:ROUND]) == []


def test_video_played_there_and_back_is_mirrored():
    for video in videos():
        half = LENGTH // 2
        assert loop_faults(np.concatenate([video[: half + 1], video[1:half][::-1]])) == ["mirrored"]
        twice = np.concatenate([video[:half], video[:half][::-1]])
        for shift in (0, 5):  # wherever it starts
            assert "mirrored" in loop_faults(np.roll(twice, shift, axis=0))


@pytest.mark.parametrize("fade", [4, 8])
def test_video_faded_into_itself_is_crossfaded(fade):
    for video in videos():
        assert loop_faults(crossfaded(video, LENGTH, fade)) == ["crossfaded"]
        assert "crossfaded" in loop_faults(ramped(video, LENGTH, fade))
        noise = np.random.default_rng(0).normal(0, 2, video[:LENGTH].shape)
        noisy = np.clip(crossfaded(video, LENGTH, fade) + noise, 0, 255).astype(np.uint8)
        assert "crossfaded" in loop_faults(noisy)


def test_video_that_stands_still_is_copied():
    for video in videos():
        assert loop_faults(np.repeat(video[:1], LENGTH, axis=0)) == ["copied"]
        held = np.concatenate([video[:20], np.repeat(video[20:21], 12, axis=0)])
        assert "copied" in loop_faults(held)
        frozen_seam = np.concatenate([video[:30], np.repeat(video[:1], 3, axis=0)])
        assert "copied" in loop_faults(frozen_seam)


def test_standing_still_as_long_as_the_world_does_is_no_fault():
    video = played(1, 40)[0]
    held = np.concatenate([video[:20], np.repeat(video[20:21], 12, axis=0)])
    assert loop_faults(held, [held]) == []
    assert loop_faults(held, [video]) == ["copied"]


def test_fewer_than_four_frames_are_refused():
    with pytest.raises(ValueError, match="3 frames; it takes at least 4"):
        loop_faults(np.zeros((3, 4, 4, 3), np.uint8))


@pytest.mark.slow
def test_loops_that_the_bundled_world_makes_have_no_faults():
    world = worldsim.load("pong")
    for clip in clips("pong")[:4]:
        assert world.loop(clip[:16], LENGTH, candidates=2, sweeps=1).closing.faults == ()
