"""Scores: against sums written out by hand, and SSIM against scikit-image."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldsim.cli import verbs
from worldsim.ops import scores


def pair(height, width, channels):
    """Two fixed pictures that differ by a ripple and a step per channel."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    a = 127 + 60 * np.sin(x / 3 + c) + 50 * np.cos(y / 4 - c)
    b = a + 9 * np.sin(x * y / 5.0) + 4 * c
    return tuple(np.clip(np.round(image), 0, 255).astype(np.uint8)[None] for image in (a, b))


def dot(columns, width=8, value=200):
    """A clip of one lit pixel, in the given column of each frame."""
    frames = np.zeros((len(columns), 4, width, 3), np.uint8)
    for frame, column in zip(frames, columns, strict=True):
        frame[1, column % width] = value
    return frames


def noise(t, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (t, 5, 6, 3), np.uint8)


def l1(a, b):
    total = sum(abs(int(p) - int(q)) for p, q in zip(a.ravel(), b.ravel(), strict=True))
    return total / a.size


def test_psnr_is_per_frame_and_does_not_wrap_uint8():
    truth = np.full((3, 2, 2, 3), 40, np.uint8)
    frames = np.stack([truth[0], truth[0] + 100, truth[0] - 33])
    expected = [math.inf, 10 * math.log10(255**2 / 100**2), 10 * math.log10(255**2 / 33**2)]
    assert scores.psnr(frames, truth) == pytest.approx(expected)
    assert scores.psnr(frames, truth, cap=10.0) == pytest.approx([10.0, expected[1], 10.0])


@pytest.mark.parametrize(
    ("shape", "golden"),  # scikit-image 0.26: gaussian_weights, sigma 1.5, population covariance
    [((32, 40, 3), 0.9561118167846822), ((16, 16, 1), 0.9677957587713364)],
)
def test_ssim_equals_scikit_image(shape, golden):
    a, b = pair(*shape)
    assert scores.ssim(a, b) == pytest.approx([golden], abs=1e-9)
    assert jax.jit(scores.ssim)(jnp.asarray(a), jnp.asarray(b)) == pytest.approx([golden], abs=1e-5)


def test_ssim_of_equal_frames_is_one_and_is_per_frame():
    a, b = pair(16, 20, 3)
    both = scores.ssim(np.concatenate([a, a]), np.concatenate([a, b]))
    assert both == pytest.approx([1.0, scores.ssim(a, b)[0]])


def test_ssim_names_the_window_when_frames_are_too_small():
    with pytest.raises(ValueError, match="8x9 are smaller than the window of 11"):
        scores.ssim(np.zeros((2, 8, 9, 3)), np.zeros((2, 8, 9, 3)))


def test_ratios_equal_the_sums_written_out():
    x, real = noise(7), [noise(4, 1), noise(6, 2), noise(1, 3)]
    steps = [l1(x[i + 1], x[i]) for i in range(6)]
    assert scores.frame_differences(x) == pytest.approx(steps)
    assert scores.seam_ratio(x) == pytest.approx(l1(x[0], x[-1]) / (sum(sorted(steps)[2:4]) / 2))

    def second(a, b, c):
        return float(np.mean(np.abs(c.astype(int) - 2 * b.astype(int) + a)))

    inside = [second(x[i], x[i + 1], x[i + 2]) for i in range(5)]
    seam = (second(x[-2], x[-1], x[0]) + second(x[-1], x[0], x[1])) / 2
    assert scores.jerk_ratio(x) == pytest.approx(seam / np.median(inside))

    alive = [l1(clip[i + 1], clip[i]) for clip in real for i in range(len(clip) - 1)]
    assert len(alive) == 8  # and none from one clip to the next
    assert scores.motion_ratio(x, real) == pytest.approx(np.mean(steps) / np.mean(alive))


def test_a_dot_running_round_closes_and_one_that_jumps_or_turns_does_not():
    round_trip = dot(range(8))
    assert scores.seam_ratio(round_trip) == 1 and scores.jerk_ratio(round_trip) == 1
    frozen_seam = dot([0, 1, 2, 3, 4, 5, 6, 0])
    assert scores.seam_ratio(frozen_seam) == 0
    ramp = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert scores.seam_ratio(ramp) == 7  # back from 7 to 0 in steps of 1
    assert scores.peak_ratio(ramp) == 7 and scores.peak_ratio(ramp, loop=False) == 1
    hidden = np.roll(ramp, 4, axis=0)
    assert scores.seam_ratio(hidden) == 1 and scores.peak_ratio(hidden) == 7


def test_a_still_clip_has_no_motion_and_ratios_over_nothing_are_told():
    still, moving = dot([3] * 5), dot([0, 1, 2, 3, 4])
    assert scores.motion_ratio(still, [moving]) == 0
    assert scores.seam_ratio(still) == 0
    assert scores.seam_ratio(dot([3, 3, 3, 3, 4])) == math.inf
    assert scores.motion_ratio(moving, [still]) == math.inf


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: scores.seam_ratio(dot([1])), "1 frames; it takes at least 2"),
        (lambda: scores.peak_ratio(dot([1])), "1 frames; it takes at least 2"),
        (lambda: scores.jerk_ratio(dot([1, 2])), "2 frames; it takes at least 3"),
        (lambda: scores.motion_ratio(dot([1, 2]), [dot([1])]), "1 real clips with no pair"),
    ],
)
def test_refusals_name_the_numbers(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"psnr: frames \[2, 4, 8, 3\] against truth \[1, 4, 8, 3\]"):
        inspect.unwrap(scores.psnr)(dot([1, 2]), dot([1]))


def test_what_a_verb_made_is_not_lost_for_want_of_a_score():
    """SSIM needs 11 pixels, a jerk 3 frames."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert verbs._score("ssim", frames, frames) is None
    assert verbs._score("jerk_ratio", frames) is None
    assert verbs._score("psnr", frames, frames, cap=50.0) == 50.0
