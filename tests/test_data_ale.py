"""Atari play: determinism, alignment of actions, RAM, resizing, policies."""

import numpy as np
import pytest

from worldsim.data import ale, make
from worldsim.data.ale import AleConfig, Policy

pytest.importorskip("ale_py")
pytest.importorskip("gymnasium")

FOLLOW = ((Policy("follower", noise=0.02, aim=6), 1.0),)


@pytest.fixture(scope="module")
def episode():
    return next(ale.episodes(AleConfig(), FOLLOW, frames=120, seed=0))


def test_episode_has_all_that_is_promised(episode):
    assert episode.frames.shape == (120, 64, 64, 3) and episode.frames.dtype == np.uint8
    assert episode.actions[0] == -1 and episode.actions[1:].min() >= 0 and episode.actions.max() < 6
    assert {name: rows.shape for name, rows in episode.extra.items()} == {
        "rewards": (120,),
        "ram": (120, 128),
        "ends": (120,),
    }
    assert ale.action_names(AleConfig())[:2] == ("noop", "fire")
    assert episode.extra["ram"][0, ale.PONG_BALL_X] > 0  # the wait for the first serve is left out


def test_play_is_a_function_of_the_seed(episode):
    again = next(ale.episodes(AleConfig(), FOLLOW, frames=120, seed=0))
    other = next(ale.episodes(AleConfig(), FOLLOW, frames=120, seed=1))
    assert again.hash() == episode.hash() != other.hash()


@pytest.mark.law
def test_actions_lead_to_the_frame_beside_them(episode):
    """Paddle speed follows the action of the same row better than that of a row before or after."""
    place = episode.extra["ram"][:, ale.PONG_PLAYER_Y].astype(float)
    names = ale.action_names(AleConfig())
    push = np.array([{"left": 1, "leftfire": 1, "right": -1, "rightfire": -1}.get(n, 0) for n in names])
    acceleration = np.diff(place, n=2)
    fits = {
        shift: np.corrcoef(acceleration[2:-2], push[episode.actions[2 + 2 + shift : 118 + shift]])[0, 1]
        for shift in (-1, 0, 1)
    }
    assert fits[0] > fits[1] + 0.2 and fits[0] > fits[-1] + 0.2 and fits[0] > 0.5


def test_ball_is_bright_wherever_it_flies(episode):
    ram = episode.extra["ram"].astype(int)
    flying = (ram[:, ale.PONG_BALL_X] > 75) & (ram[:, ale.PONG_BALL_X] < 180)
    flying &= (ram[:, ale.PONG_BALL_Y] > 60) & (ram[:, ale.PONG_BALL_Y] < 195)
    white = np.all(episode.frames[flying, 14:58] == 236, axis=-1).sum((1, 2))
    assert flying.sum() > 50 and white.min() >= 1 and white.max() <= 6


def test_rarest_takes_the_rarest_pixel_of_each_cell():
    ranks = np.full((6, 7), 9, np.int16)
    ranks[5, 6], ranks[0, 3], ranks[2, 4] = 0, 1, 2
    pick = ale.rarest(ranks, 3)
    # Seven columns in three cells: 0 1 2 | 3 4 | 5 6; six rows in three: 0 1 | 2 3 | 4 5.
    assert pick.tolist() == [[0, 3, 5], [14, 18, 19], [28, 31, 41]]


def test_sticky_holds_actions_and_shares_are_kept():
    mix = ((Policy("sticky", hold=8), 0.5), (Policy("random"), 0.5))
    config = AleConfig(game="breakout", max_frames=60, resize="area", size=32)
    played = list(ale.episodes(config, mix, frames=240, seed=0))
    assert sum(len(e) for e in played) == 240 and played[0].frames.shape[1:] == (32, 32, 3)
    frames = {name: sum(len(e) for e in played if e.policy == name) for name in {e.policy for e in played}}
    assert max(frames.values()) - min(frames.values()) <= 60
    changes = {e.policy: np.mean(np.diff(e.actions[1:]) != 0) for e in played}
    assert changes["sticky(hold=8)"] < 0.35 < changes["random"]


def test_train_and_test_differ_in_seed_and_policy(tmp_path):
    info = make.make_ale(tmp_path / "pong.npz", frames=60, test_frames=40, config=AleConfig(max_frames=30))
    train, test = info.splits["train"], info.splits["test"]
    assert (train.frames, test.frames) == (60, 30)  # a remainder of 10 is too short for a record
    assert not set(train.seeds) & set(test.seeds) and not set(train.hashes) & set(test.hashes)
    assert set(ale.PONG_TRAIN) & set(ale.PONG_TEST) <= {(Policy("random"), 0.1)}
    assert info.action.names[2] == "right" and info.fps == 15 and info.kind == "ale"


def test_refusals():
    with pytest.raises(ValueError, match=r"No game 'pnog' among the emulator's \d+; perhaps pong"):
        ale.open_game(AleConfig(game="pnog"))
    with pytest.raises(ValueError, match=r"plays pong only.*space_invaders"):
        next(ale.episodes(AleConfig(game="space_invaders"), FOLLOW, frames=10, seed=0))
    with pytest.raises(ValueError, match="size 4"):
        AleConfig(size=4)
