"""Doom play: determinism, alignment of actions, truth beside the frames, refusals."""

import numpy as np
import pytest

from worldsim.data import doom, make, read_episodes, read_info
from worldsim.data.doom import DoomConfig, Wander

pytest.importorskip("vizdoom")

CONFIG = DoomConfig("health_gathering", max_frames=120)
WALK = ((Wander(hold=5, forward=0.6), 1.0),)


def play(config=CONFIG, mix=WALK, frames=120, seed=0):
    names = []
    return list(doom.episodes(config, mix, frames=frames, seed=seed, names=names)), names


@pytest.fixture(scope="module")
def played():
    return play(frames=240)


def test_episode_has_all_that_is_promised(played):
    episodes, names = played
    episode = episodes[0]
    count = len(episode)
    assert episode.frames.shape == (count, 64, 64, 3) and episode.frames.dtype == np.uint8
    assert episode.actions[0] == -1 and episode.actions[1:].min() >= 0 and episode.actions.max() <= 5
    assert {name: (rows.shape[1:], rows.dtype.name) for name, rows in episode.extra.items()} == {
        "rewards": ((), "float32"),
        "ends": ((), "bool"),
        "player": ((3,), "float32"),
        "health": ((), "float32"),
        "objects": ((16, 2), "int32"),
        "boxes": ((16, 4), "float32"),
    }
    assert names == ["Medikit"] and 90 < episode.extra["health"][0] <= 100
    assert not episode.extra["ends"][:-1].any()
    assert all(e.extra["ends"][-1] == (e.extra["health"][-1] < 10) for e in episodes if len(e) < 120)


@pytest.mark.law
def test_play_is_a_function_of_the_seed_and_not_of_what_was_played_before(played):
    episodes, _ = played
    again, _ = play()
    other, _ = play(seed=1)
    assert again[0].hash() == episodes[0].hash() != other[0].hash()
    np.testing.assert_array_equal(again[0].extra["boxes"], episodes[0].extra["boxes"])
    short, _ = play(DoomConfig("health_gathering", max_frames=30), frames=60)
    np.testing.assert_array_equal(short[1].frames, episodes[1].frames[:30])


@pytest.mark.law
def test_actions_lead_to_the_frame_beside_them():
    """The angle turns with the action of the same row, not with that of a row before or after."""
    (episode, *_), _ = play(mix=((Wander(hold=1, forward=0), 1.0),), frames=90)
    names = doom.action_names(CONFIG)
    sign = np.array([("turn_left" in name) - ("turn_right" in name) for name in names])
    turned = (np.diff(episode.extra["player"][:, 2]) + 180) % 360 - 180
    pushed = sign[episode.actions[1:]]
    fits = {shift: np.corrcoef(turned[1:-1], np.roll(pushed, -shift)[1:-1])[0, 1] for shift in (-1, 0, 1)}
    assert fits[0] > 0.9 and max(fits[1], fits[-1]) < 0.5
    assert np.all(turned[pushed == 0] == 0)


def test_boxes_lie_where_the_things_are(played):
    """Medikits are the only white things of the scenario: the whitest pixels lie in their boxes."""
    bright, inside = 0, 0
    for episode in played[0]:
        for frame, boxes, objects in zip(
            episode.frames, episode.extra["boxes"], episode.extra["objects"], strict=True
        ):
            assert np.array_equal(np.isnan(boxes[:, 0]), objects[:, 0] < 0)
            rows, columns = np.nonzero(frame.min(-1) > 150)
            bright += len(rows)
            left, top, right, bottom = (boxes[:, side, None] for side in range(4))
            hit = (columns + 1 > left) & (columns < right) & (rows + 1 > top) & (rows < bottom)
            inside += int(hit.any(0).sum())
    assert bright > 50 and inside > 0.95 * bright


def test_who_walks_into_a_wall_turns_round():
    table = doom.actions_of(("move_forward", "turn_left", "turn_right"))
    player = doom.Player(Wander(hold=1000, forward=1.0), table, np.random.default_rng(0))
    acts = [player.act(np.array([5.0, 5.0, 0.0])) for _ in range(40)]
    assert any("move_forward" not in table[act] for act in acts)
    player = doom.Player(Wander(hold=1000, forward=1.0), table, np.random.default_rng(0))
    acts = [player.act(np.array([20.0 * step, 5.0, 0.0])) for step in range(40)]
    assert all("move_forward" in table[act] for act in acts)


def test_actions_are_buttons_that_make_sense_together():
    assert doom.actions_of(("move_left", "speed", "move_right", "attack", "turn_left_right_delta")) == (
        (),
        ("move_left",),
        ("move_right",),
        ("attack",),
    )
    assert doom.action_names(CONFIG) == (
        "noop",
        "move_forward",
        "turn_left",
        "turn_right",
        "move_forward+turn_left",
        "move_forward+turn_right",
    )


def test_a_made_set_reads_back_with_train_and_test_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = make.make_doom("doom", config=CONFIG, frames=80, test_frames=40)
    assert [path.name for path in tmp_path.iterdir()] == ["doom"]  # nothing of the engine's is left there
    stored = read_info("doom")
    assert stored == info and stored.median.shape == (64, 64, 3)
    train, test = stored.splits["train"], stored.splits["test"]
    assert (train.frames, test.frames) == (80, 40) and stored.fps == 8.75
    assert not set(train.seeds) & set(test.seeds) and not set(train.hashes) & set(test.hashes)
    assert not set(doom.TRAIN) & set(doom.TEST) and not set(train.policies) & set(test.policies)
    assert stored.source["names"] == ["Medikit"]
    (episode,) = read_episodes("doom", "test", keys=None)
    assert episode["player"].shape == (40, 3) and episode["objects"].max() >= 0


def test_refusals():
    with pytest.raises(ValueError, match=r"No scenario 'basik'; ViZDoom carries basic, .*take_cover"):
        doom.action_names(DoomConfig("basik"))
    with pytest.raises(ValueError, match=r"'cig' \(for several players\)"):
        doom.action_names(DoomConfig("cig"))
    with pytest.raises(ValueError, match="size 4"):
        DoomConfig(size=4)
    with pytest.raises(ValueError, match="10 frames, 20 test_frames; give each 16"):
        make.make_doom("nowhere", frames=10, test_frames=20)
