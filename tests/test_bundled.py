"""What the bundled worlds' codes and refinement keep of held-out clips: the bars they are held to."""

import numpy as np
import pytest

import worldsim
from worldsim.data.sprites import SpriteConfig
from worldsim.evaluate.pictures import picture_table, renderers, shares_closed
from worldsim.evaluate.pong import FIELD, SCREEN, ball, ball_match
from worldsim.evaluate.sprites import read_sprites
from worldsim.worlds import clips

pytestmark = pytest.mark.slow


def from_codes(name):
    """A world, frames ``[clips t h w 3]`` that it has not seen, and the same drawn from their codes alone."""
    world, frames = worldsim.load(name), np.stack([clip.frames for clip in clips(name)])
    return world, frames, renderers(world)["q"](frames)


def test_refinement_draws_half_of_what_the_codes_of_doom_leave_out():
    """The Fréchet distance is left to ``worldsim evaluate``: eight clips are too few to tell it."""
    ways = renderers(worldsim.load("doom"))
    kept = {name: ways[name] for name in ("q", "4 steps", "z")}
    rows, _ = picture_table(kept, np.stack([clip.frames for clip in clips("doom")]))
    assert 0.5 <= shares_closed(rows)["4 steps"]["sharpness"] <= 1.0
    assert rows["q"]["psnr"] - rows["4 steps"]["psnr"] <= 1.5
    assert rows["4 steps"]["flicker"] <= 1.2


def test_the_codes_of_pong_hold_the_ball():
    """As against RAM, which the clips lack, balls that a wall hides some of do not count."""
    world, truth, seen = from_codes("pong")
    found, real = (
        np.stack([ball(clip, world.statistics["median"]) for clip in part]) for part in (seen, truth)
    )
    top, bottom = (edge * truth.shape[2] / SCREEN[0] for edge in FIELD)
    whole = (real[..., 0] >= top) & (real[..., 0] <= bottom - 1.5)
    hit, _ = ball_match(found, np.where(whole[..., None], real, np.nan))
    assert np.isfinite(hit).sum() > 200  # frames with a ball
    assert np.nanmean(hit) >= 0.98


def test_the_codes_of_sprites_hold_their_places_and_shapes():
    world, truth, seen = from_codes("sprites")
    config = SpriteConfig.of(world.provenance["data"]["source"])
    exact = []
    for clip, drawn in zip(truth, seen, strict=True):
        want, got = read_sprites(clip, config), read_sprites(drawn, config)
        same = got.seen & (want.place == got.place).all(-1) & (want.shape == got.shape)
        exact.append((same | ~want.certain).all(-1))
    assert np.mean(exact) >= 0.99
