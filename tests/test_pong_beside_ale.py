"""The bundled world of Pong and the emulator itself, driven by the same actions."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import worldsim
from worldsim.data.ale import PONG_TEST, AleConfig, episodes
from worldsim.evaluate.pong import paddle, paddle_truth
from worldsim.types import Clip

pytest.importorskip("ale_py", reason="extra atari")

KNOWN, NEW, GAMES = 16, 32, 4
SEED = 977
"""Of games that no split of any dataset has played."""


def drive(sim, games, actions):
    """Own paddle ``[games NEW]`` in the frames that the world makes, and the frames."""
    clips = [Clip(one.frames[:KNOWN], one.actions[:KNOWN]) for one in games]
    state, made = sim.reset(clips, jax.random.key(0)), []
    for step in range(NEW):
        state, frames = sim.step(state, actions[:, step])
        made.append(np.asarray(frames)[:, 0])
    return np.stack([paddle(clip, "own") for clip in np.stack(made, 1)])


@pytest.mark.slow
def test_the_world_moves_its_paddle_as_the_emulator_does():
    played = episodes(AleConfig(max_frames=KNOWN + NEW), PONG_TEST, frames=GAMES * (KNOWN + NEW), seed=SEED)
    games = [one for one in played if len(one.frames) == KNOWN + NEW]
    assert len(games) == GAMES
    truth = np.stack([paddle_truth(one.extra["ram"][KNOWN:], "own", 64) for one in games])
    told = np.stack([one.actions[KNOWN:] for one in games])
    assert np.nanmean(np.ptp(truth, axis=1)) > 8, "the paddle hardly moves in these games"
    sim = worldsim.Simulator(worldsim.load("pong"))
    right = np.abs(drive(sim, games, told) - truth)
    wrong = np.abs(drive(sim, games, np.roll(told, 1, axis=0)) - truth)
    assert np.isfinite(right).mean() > 0.9, "the world lost its paddle"
    assert np.nanmean(right) < 2.0
    assert np.nanmean(wrong) > 3 * np.nanmean(right)
