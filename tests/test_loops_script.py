"""The script that measures loops: what it calls legal is what the sprite world does, and it runs."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from scripts import loops, toy_sprites
from worldsim import plan as plans
from worldsim.data import sprites
from worldsim.data.sprites import SpriteConfig
from worldsim.generate.extend import World
from worldsim.generate.loop import sweep, sweep_groups
from worldsim.generate.ring import Looker, Ring
from worldsim.models.world import init_params


def test_real_play_is_legal_and_jumps_are_not():
    config = dataclasses.replace(toy_sprites.TOY, redraw=0.0)
    places = toy_sprites.true_places(20, 17, seed=1, config=config)
    np.testing.assert_array_equal(places[:, 0], places[:, 16])  # back after 16 frames
    legal, kept = loops.judge(places[:, :16], config)
    assert legal.all()
    assert kept.all()
    legal, kept = loops.judge(places[:, :13], config)
    assert legal[:, :12].all()
    assert not legal[:, 12].all()
    drawn = toy_sprites.true_places(50, 17, seed=1)
    share = loops.judge(drawn, toy_sprites.TOY)[1][:, 1:-1].mean()
    assert 0.93 < share < 0.98  # a redraw in twenty frames, some of them to the same velocity


def test_lengths_suit_as_the_velocities_say():
    config = dataclasses.replace(toy_sprites.TOY, redraw=0.0)
    places = toy_sprites.true_places(100, 65, seed=2, config=config)
    for total in (8, 11, 16, 24, 32):
        back = (places[:, 2:4] == places[:, 2 + total : 4 + total]).all((1, 2, 3))
        np.testing.assert_array_equal(loops.suits(places[:, :4], total, config), back)
    assert 0 < loops.suits(places[:, :4], 8, config).mean() < 1


def test_places_are_read_from_frames():
    config = SpriteConfig(sprites=2)
    for episode in sprites.episodes(config, count=5, length=20, seed=3):
        states = episode.extra["state"]
        found = loops.read_places(episode.frames, states[0, :, 4:], config)
        hidden = (np.abs(states[:, 0, :2] - states[:, 1, :2]) < config.side).all(1)
        np.testing.assert_array_equal(found[:, 1], states[:, 1, :2])  # drawn above
        np.testing.assert_array_equal(found[~hidden], states[~hidden][..., :2])


def test_auc_counts_pairs():
    assert loops.auc([1, 2], [3, 4]) == 1
    assert loops.auc([1, 3], [2, 3]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


@pytest.mark.slow
def test_the_script_measures_a_toy(tmp_path, capsys):
    config = toy_sprites.toy_config().world
    config = dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, layers=1))
    params = {name: init_params(name, config, jax.random.key(0)) for name in ("tokenizer", "dynamics")}
    World.make(config, params).save(tmp_path / "world")
    out = tmp_path / "rows.json"
    loops.main(["toy", "--workdir", str(tmp_path), "--clips", "2", "--frames", "16", "13",
                "--effort", "2", "1", "--json", str(out)])  # fmt: skip
    rows = json.loads(out.read_text())
    assert [(r["frames"], r["candidates"], r["sweeps"], r["kept"]) for r in rows] == [
        (total, *effort)
        for total in (16, 13)
        for effort in ((1, 0, "last"), (1, 1, "last"), (2, 0, "last"), (2, 1, "first"), (2, 1, "last"))
    ]
    assert all(len(row["worst_each"]) == 2 for row in rows)
    assert capsys.readouterr().out.count("auc") == 5


@pytest.mark.slow
def test_a_trained_toy_leaves_perfect_loops_as_they_are_and_makes_legal_ones(tmp_path):
    """A sweep at temperature 0 has nothing to mend where every velocity is kept."""
    world = toy_sprites.train_toy(tmp_path, toy_sprites.toy_config(steps=2000), episodes=400)
    config = dataclasses.replace(toy_sprites.TOY, redraw=0.0)
    places = toy_sprites.true_places(32, 16, seed=5, config=config).astype(np.int32)
    swept = sweep(
        Looker(world.dynamics, world.config), Ring(places, None), sweep_groups(plans.loop(4, 16)),
        keys=jax.random.split(jax.random.key(0), 32), number=0, dials=world.dials(steps=2, temperature=0.0),
    )  # fmt: skip
    assert (swept.codes == places).all((1, 2, 3)).mean() > 0.9
    plain, *_, best = loops.sprite_rows(loops.toy_bed(world, 32), 16, effort=(4, 1))
    assert best["seam"] > 0.8
    assert best["loop"] > plain["loop"]


@pytest.mark.slow
def test_the_script_measures_clips_of_the_bundled_world(capsys):
    loops.main(["clips", "--clips", "1", "--frames", "8", "--effort", "1", "0"])
    assert "| 8 | True | 1 | 0 | last |" in capsys.readouterr().out
