"""Squares around what is unusual, and the loss that makes small things count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from worldsim.config import TokenizerLossConfig
from worldsim.models.tokenizer import to_float
from worldsim.train.crops import crop_batch, crop_median, rarity_map, unusual
from worldsim.train.losses import tokenizer_loss

RNG = np.random.default_rng(0)
MEDIAN = RNG.integers(0, 256, (64, 48, 3), dtype=np.uint8)


def clips(count=200, *, size=64, wide=48):
    """Two frames of the median with one bright pixel each, and where it is."""
    frames = np.repeat(MEDIAN[None, None], count, axis=0).repeat(2, axis=1)
    at = np.stack([RNG.integers(0, size, count), RNG.integers(0, wide, count)], axis=1)
    for frame, (y, x) in zip(frames, at, strict=True):
        frame[:, y, x] = np.where(MEDIAN[y, x] > 127, 0, 255)
    return frames, at


@pytest.mark.parametrize("size", [8, 24, 48])
def test_squares_hold_the_unusual_pixel_and_keep_to_the_grid(size):
    frames, at = clips(600)
    cut = crop_batch({"frames": frames}, MEDIAN, np.full((64, 48), 100.0), size=size, stride=8, seed=(0, 1))
    offset = at - cut["corner"]
    held = ((offset >= 0) & (offset < size)).all(1)
    assert held.mean() > 0.9  # the rest falls to the small mass that every pixel has
    assert (cut["corner"] % 8 == 0).all()
    assert (cut["corner"] >= 0).all()
    assert (cut["corner"] <= [64 - size, 48 - size]).all()
    assert len(np.unique(cut["corner"], axis=0)) == (8 - size // 8 + 1) * (6 - size // 8 + 1)
    for i, (y, x) in enumerate(cut["corner"]):
        np.testing.assert_array_equal(cut["frames"][i], frames[i, :, y : y + size, x : x + size])


def test_squares_depend_on_the_seed_alone():
    frames, _ = clips(20)
    draw = lambda step, part: crop_batch(
        {"frames": part}, MEDIAN, np.ones((64, 48)), size=16, stride=8, seed=(0, step)
    )["corner"]
    np.testing.assert_array_equal(draw(3, frames), draw(3, frames))
    np.testing.assert_array_equal(draw(3, frames)[:5], draw(3, frames[:5]))
    assert (draw(3, frames) != draw(4, frames)).any()
    options = {"size": 16, "stride": 8, "seed": (0, 3), "rows": range(5, 20)}
    rest = crop_batch({"frames": frames[5:]}, MEDIAN, np.ones((64, 48)), **options)
    np.testing.assert_array_equal(rest["corner"], draw(3, frames)[5:])


def test_whole_frames_stay_whole_and_the_median_follows_the_square():
    frames, _ = clips(3)
    whole = crop_batch({"frames": frames}, MEDIAN, np.ones(()), size=0, stride=8, seed=(0,))
    np.testing.assert_array_equal(whole["frames"], frames)
    assert (whole["corner"] == 0).all()
    corner = np.array([[8, 16], [0, 0]])
    under = crop_median(jnp.asarray(MEDIAN, jnp.float32), jnp.asarray(corner), (24, 32, 3))
    np.testing.assert_array_equal(under[0, 0], MEDIAN[8:32, 16:48])
    np.testing.assert_array_equal(under[1, 0], MEDIAN[:24, :32])


def test_what_is_rarer_draws_more():
    median = np.zeros((16, 16, 3), np.uint8)
    frames = np.zeros((100, 16, 16, 3), np.uint8)
    frames[:50, 2] = 255
    frames[0, 9] = 255
    weights = rarity_map(iter([frames[:30], frames[30:]]), median)
    np.testing.assert_allclose(weights[[2, 9, 0], 0], [1 / 0.51, 1 / 0.02, 100.0])
    np.testing.assert_array_equal(unusual(np.full((1, 1, 3), 0.125), np.zeros((1, 1, 3))), [[0.5]])


def test_rare_pixels_count_by_their_squared_error_in_truth_or_by_mistake():
    world = tiny.config()
    model = tiny.model("tokenizer", world)
    frames = to_float(np.zeros((1, 1, 16, 16, 3), np.uint8))
    at = lambda weights, median: tokenizer_loss(model, frames, median, jax.random.key(0), weights=weights)
    nothing = dict.fromkeys(("charbonnier", "haar", "temporal", "ms_ssim", "commitment"), 0.0)
    weights = TokenizerLossConfig(**nothing, rarity=1.0, continuous=0.0, soft=0.0)
    drawn = model.detokenize(model.tokenize(frames))
    loss, terms = at(weights, jnp.ones((1, 1, 16, 16, 3)))  # every pixel is unusual in truth: full weight
    np.testing.assert_allclose(loss, jnp.square(drawn - frames).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, terms["rarity"], rtol=1e-6)
    usual, _ = at(weights, frames)  # none is in truth: what the output adds by mistake still counts
    share = unusual(drawn, frames)[..., None]
    np.testing.assert_allclose(usual, (share * jnp.square(drawn - frames)).mean(), rtol=1e-5)
    assert usual > 0
