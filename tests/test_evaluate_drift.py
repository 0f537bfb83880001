"""Long rollouts judged without truth: real play is alive, and what froze, faded or broke is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny

from worldsim.config import ActionConfig
from worldsim.data.make import make_sprites
from worldsim.data.sprites import SpriteConfig, episodes
from worldsim.evaluate import drift, pong
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
        assert 0.8 < row["sharpness"] < 1.25 and row["there"] > 0.9
        assert row["motion"] is None or 0.8 < row["motion"] < 1.25
        assert row["legal"] == 1 or np.isnan(row["legal"])  # of one frame
        assert "frechet" not in row or row["frechet"] == pytest.approx(row["floor"], abs=0.2)
    assert list(told["stretches"]) == ["1", "2", "3-4", "5-8", "9-16", "17-32", "33-48"]
    assert [name for name, row in told["stretches"].items() if "frechet" not in row] == ["1", "2", "3-4"]


def test_what_breaks_is_over_when_it_breaks(held, real):
    broken = real.copy()
    broken[:, BREAKS:] = np.random.default_rng(0).integers(0, 256, broken[:, BREAKS:].shape)
    told = drift.drift(broken, held)
    assert told["alive"] == 0 and BREAKS - 4 <= told["collapse"] <= BREAKS
    assert told["survival"] == BREAKS
    assert told["last_quarter"]["frechet"] > 5 * told["last_quarter"]["floor"]
    assert told["stretches"]["9-16"]["frechet"] < 1


def test_what_copying_would_reach_stands_beside_it(held, real, monkeypatch):
    told = drift.drift(real, held)
    assert told["copy"]["motion"] == 0 and told["repeat"]["motion"] == pytest.approx(1, abs=0.2)
    assert told["copy"]["frechet"] > 2 * told["last_quarter"]["frechet"]
    assert "last_200" not in told
    monkeypatch.setattr(drift, "LAST", 12)
    told = drift.drift(real, held)
    assert told["last_12"] == told["last_quarter"]


def test_all_that_pong_needs_is_asked_for_at_once(held):
    """A frame counts that shows the ball and both paddles, not one that shows some of them."""
    frames = np.full((2, 8, 64, 64, 3), (144, 72, 17), np.uint8)
    frames[:, :, 30:34, 6:8] = pong._COLOURS["enemy"]
    frames[:, :, 30:34, 56:57] = pong._COLOURS["own"]
    frames[:, :4, 20, 30] = 236
    game = dataclasses.replace(held.info, kind="ale", source={"game": "pong"})
    play = dataclasses.replace(
        held,
        info=game,
        frames=frames,
        others=frames,
        actions=None,
        train=None,
        truth={"ram": np.zeros((2, 8, 128))},
        median=np.full((64, 64, 3), (144, 72, 17), np.uint8),
    )
    found = drift._found(frames, play)
    assert found == {"ball_seen": 0.5, "own_seen": 1.0, "enemy_seen": 1.0, "all_seen": 0.5}
    frames[:, :2, 30:34, 6:8] = (144, 72, 17)
    found = drift._found(frames, play)
    assert found["enemy_seen"] == 0.75 and found["all_seen"] == 0.25


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
    assert list(drift.stretches(40)) == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 40)]
