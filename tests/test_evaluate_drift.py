"""Long rollouts judged without truth: real play is alive, and what froze, faded or broke is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny

from worldsim.config import ActionConfig
from worldsim.data.make import make_sprites
from worldsim.data.sprites import SpriteConfig, episodes
from worldsim.evaluate import drift
from worldsim.evaluate.held_out import load_held_out

BREAKS = 24


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Windows of 16 known frames and 48 more."""
    path = tmp_path_factory.mktemp("drift") / "s.npz"
    make_sprites(path, config=SpriteConfig(size=16, push=1), episodes=2, test_episodes=24, length=128)
    config = tiny.config(action=ActionConfig("discrete", 5))
    return load_held_out(path, config, clips=8, horizon=48)


@pytest.fixture(scope="module")
def real(held):
    return held.frames[:, held.known :]


def test_real_play_is_alive(held, real):
    told = drift.drift(real, held)
    assert told["alive"] == 1 and told["collapse"] == 48 and told["survives"] == 1
    for row in (*told["stretches"].values(), told["last_quarter"]):
        assert 0.8 < row["motion"] < 1.25 and 0.8 < row["sharpness"] < 1.25
        assert row["legal"] == 1 and row["there"] > 0.9
        assert row["frechet"] == pytest.approx(row["floor"], abs=0.2)


def test_what_breaks_is_over_when_it_breaks(held, real):
    broken = real.copy()
    broken[:, BREAKS:] = np.random.default_rng(0).integers(0, 256, broken[:, BREAKS:].shape)
    told = drift.drift(broken, held)
    assert told["alive"] == 0 and BREAKS - 4 <= told["collapse"] <= BREAKS
    assert told["survival"] == BREAKS
    assert told["last_quarter"]["frechet"] > 5 * told["last_quarter"]["floor"]
    assert told["stretches"]["1-8"]["frechet"] < 1


def test_what_freezes_or_fades_shows(held, real):
    frozen = real.copy()
    frozen[:, BREAKS:] = frozen[:, BREAKS - 1 : BREAKS]
    told = drift.drift(frozen, held)
    assert told["last_quarter"]["motion"] == 0 and told["last_quarter"]["legal"] == 0
    assert told["alive"] == 0 and abs(told["collapse"] - BREAKS) <= 4
    faded = real.copy()
    faded[:, BREAKS:] = (faded[:, BREAKS:] // 4) + 90
    told = drift.drift(faded, held)
    assert told["last_quarter"]["sharpness"] < 0.2 < 0.8 < told["first_quarter"]["sharpness"]
    assert told["last_quarter"]["there"] < 0.5 < told["first_quarter"]["there"]
    assert told["alive"] == 0


@pytest.mark.parametrize("at", [10, 40])
def test_what_breaks_early_or_late_is_told_apart(held, real, at):
    broken = real.copy()
    broken[:, at:] = np.random.default_rng(0).integers(0, 256, broken[:, at:].shape)
    assert at - 4 <= drift.drift(broken, held)["collapse"] <= at


def test_other_real_play_is_alive_with_and_without_play_to_compare_with(held):
    """Windows that neither the limit nor the reference was made of."""
    strange = [one.frames for one in episodes(SpriteConfig(size=16, push=1), count=8, length=48, seed=99)]
    told = drift.drift(np.stack(strange), held)
    assert told["alive"] >= 0.8
    alone = dataclasses.replace(held, others=held.frames)
    assert drift.drift(np.stack(strange), dataclasses.replace(alone))["alive"] >= 0.8


def test_a_handful_of_frames_is_judged_too(held, real):
    assert drift.drift(real[:, :3], held)["alive"] == 1


def test_actions_go_on_with_those_of_other_windows(held):
    own = held.actions[:, held.known :]
    rows = drift.actions_for(held, 100)
    assert rows.shape == (8, 100)
    np.testing.assert_array_equal(rows[:, :48], own)
    np.testing.assert_array_equal(rows[7, 48:96], own[0])
    assert drift.actions_for(dataclasses.replace(held, actions=None), 100) is None


def test_stretches_double():
    assert list(drift.stretches(40)) == [(0, 8), (8, 16), (16, 32), (32, 40)]
