"""The recall world: what is shown, when it is asked for, and the table of what a world remembers."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from scripts import recall as script
from worldsim.config import ActionConfig
from worldsim.data import make, recall
from worldsim.data.make import make_recall
from worldsim.data.recall import ANSWER, ASK, CUE, NOTHING, RecallConfig
from worldsim.data.source import open_source, read_info

CONFIG = RecallConfig(length=96, pairs=12, shortest=96)


@pytest.fixture(scope="module")
def episodes():
    return list(recall.episodes(CONFIG, count=60, seed=5))


def times(episode, event):
    """The frames of an event, in the order of their glyphs."""
    at = np.flatnonzero(episode.extra["event"] == event)
    return at[np.argsort(episode.extra["glyph"][at])]


@pytest.mark.law
def test_every_colour_is_shown_once_before_it_is_asked_for_and_answered_at_once(episodes):
    for episode in episodes:
        cue, ask, answer = (times(episode, event) for event in (CUE, ASK, ANSWER))
        assert len(cue) == len(ask) == len(answer) == 12
        assert (cue < ask).all() and (answer == ask + 1).all()
        truth = episode.extra
        assert len(set(truth["glyph"][cue])) == 12
        for at in (cue, ask, answer):
            np.testing.assert_array_equal(truth["glyph"][at], truth["glyph"][cue])
            np.testing.assert_array_equal(truth["color"][at], truth["color"][cue])
            np.testing.assert_array_equal(truth["cue_time"][at], cue)
            np.testing.assert_array_equal(truth["ask_time"][at], ask)
        empty = truth["event"] == NOTHING
        assert all((truth[name][empty] == -1).all() for name in truth if name != "event")


@pytest.mark.law
def test_questions_occur_at_every_distance_up_to_the_whole_episode(episodes):
    distances = np.concatenate([times(e, ANSWER) - times(e, CUE) for e in episodes])
    assert distances.min() == 2
    assert (distances == 95).sum() >= len(episodes)
    share, _ = np.histogram(distances, [2, 4, 8, 16, 32, 64, 96])
    assert (share > 0.05 * len(distances)).all()


@pytest.mark.law
def test_frames_show_the_truth_and_a_question_hides_the_colour(episodes):
    colors = np.concatenate([recall.COLORS, recall.ASKED[None], recall.BACKGROUND[None]]).astype(int)
    for episode in episodes[:5]:
        for frame, event, glyph, color in zip(
            episode.frames, *(episode.extra[name] for name in ("event", "glyph", "color")), strict=True
        ):
            shown = frame[4:, 4:].reshape(-1, 3).astype(int)
            assert (shown == shown[0]).all()
            seen = np.abs(colors - shown[0]).sum(1).argmin()
            assert seen == {NOTHING: 9, ASK: 8}.get(int(event), color)
            ink = (frame[:4, :4] == recall.INK).all(-1)
            np.testing.assert_array_equal(ink, event != NOTHING and recall.pattern(int(glyph), 4))
    assert (np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(10) > 60).all()


@pytest.mark.law
def test_most_episodes_are_shorter_and_ask_for_less():
    mixed = RecallConfig(length=96, pairs=12, shortest=16)
    lengths, pairs = [], []
    for episode in recall.episodes(mixed, count=200, seed=1):
        lengths.append(len(episode))
        pairs.append(int((episode.extra["event"] == ANSWER).sum()))
        assert times(episode, ANSWER).max() == lengths[-1] - 1  # its colour was shown in the first frame
        assert episode.extra["event"][0] == CUE
    lengths = np.array(lengths)
    assert pairs == (lengths // 8).tolist()
    assert 0.06 < (lengths == 96).mean() < 0.22
    assert 16 <= lengths.min() < 18 and 0.5 < (lengths < 40).mean() < 0.8


def test_glyphs_are_far_apart():
    patterns = np.stack([recall.pattern(glyph, 4).ravel() for glyph in range(recall.GLYPHS)])
    apart = (patterns[:, None] != patterns[None]).sum(-1) + 16 * np.eye(recall.GLYPHS)
    assert apart.min() == 8
    assert patterns.any(1).all()
    np.testing.assert_array_equal(recall.pattern(3, 8)[::2, ::2], recall.pattern(3, 4))


def test_a_dataset_keeps_whole_episodes_and_their_truth(tmp_path):
    info = make_recall(tmp_path / "r.npz", config=CONFIG, episodes=3, test_episodes=2)
    assert (info.height, info.width, info.action.kind) == (8, 8, "none")
    assert read_info(tmp_path / "r.npz").source["pairs"] == 12
    source = open_source(tmp_path / "r.npz", "train", keys=None)
    assert source.lengths.tolist() == [96] * 3
    made = next(recall.episodes(CONFIG, count=1, seed=0))
    for name, array in made.arrays().items():
        np.testing.assert_array_equal(source[0][name], array)
    assert not set(info.splits["train"].hashes) & set(info.splits["test"].hashes)


def test_a_dataset_trains_on_mixed_lengths_and_tests_on_the_longest(tmp_path):
    make_recall(tmp_path / "r.npz", config=RecallConfig(length=48, pairs=4), episodes=20, test_episodes=5)
    lengths = [
        open_source(tmp_path / "r.npz", split, keys=("frames",)).lengths.tolist()
        for split in ("train", "test")
    ]
    assert len(set(lengths[0])) > 3 and lengths[1] == [48] * 5


def test_impossible_recall_worlds_are_refused():
    with pytest.raises(ValueError, match="31 pairs in 288 frames; take from 1 to 30"):
        RecallConfig(pairs=31)
    with pytest.raises(ValueError, match="10 pairs in 48 frames.*6 frames or more for each"):
        RecallConfig(length=48, pairs=10)
    with pytest.raises(ValueError, match="shortest 300; take from 5 to the length 288"):
        RecallConfig(shortest=300)
    with pytest.raises(ValueError, match="cells of 6 pixels"):
        RecallConfig(cell=6)
    with pytest.raises(ValueError, match="episodes 0"):
        make.make_recall("nowhere.npz", episodes=0)


def test_the_table_counts_by_distance():
    distances, right = np.array([2, 3, 5, 200, 300]), np.array([True, False, True, True, False])
    assert script.table(distances, right, trained=255).splitlines() == [
        "| distance, frames | answers | right, % |",
        "|---|---|---|",
        "| 2-3 | 2 | 50.0 |",
        "| 4-7 | 1 | 100.0 |",
        "| 192-255 | 1 | 100.0 |",
        "| 256-300 (not trained) | 1 | 0.0 |",
        "| **all up to 255** | 4 | 75.0 |",
        "",
        "Guessing among 8 colours: 12.5 %.",
    ]


@pytest.mark.law
def test_a_world_that_looks_the_glyph_up_is_always_right(tmp_path, monkeypatch):
    """Codes are colours here, permuted; the model is one that knows, or one that takes a colour of before."""
    make_recall(tmp_path / "r.npz", config=CONFIG, episodes=1, test_episodes=6)
    source = open_source(tmp_path / "r.npz", "test", keys=None)
    names = np.random.default_rng(0).permutation(40)

    def see(truth):
        codes = np.zeros((1, 96, 2, 2), int)
        codes[0, :, 0, 0] = names[truth["glyph"] + 1]
        codes[0, :, -1, -1] = names[np.where(truth["event"] == ASK, 39, truth["color"] + 1)]
        return codes

    def know(_graph, _params, codes, asked):
        found = []
        for row, now in zip(codes, asked, strict=True):
            cue = [np.flatnonzero(row[:, 0, 0] == row[t - 1, 0, 0])[0] for t in now]
            found.append(row[cue, -1, -1])
        return np.stack(found)

    def guess(_graph, _params, codes, asked):
        return np.take_along_axis(np.roll(codes[:, :, -1, -1], 5, axis=1), asked, axis=1)

    tokenizer = SimpleNamespace(frames_per_chunk=1)
    world = SimpleNamespace(config=SimpleNamespace(tokenizer=tokenizer), tokenizer=(), dynamics=(None, None))
    for likeliest, low, high in ((know, 1.0, 1.0), (guess, 0.0, 0.4)):
        records = iter([source[index] for index in range(6)])
        monkeypatch.setattr(script, "tokenize", lambda *_, records=records, **__: see(next(records)))
        monkeypatch.setattr(script, "likeliest", likeliest)
        distances, right = script.answers(world, str(tmp_path / "r.npz"))
        assert len(distances) == 72 and low <= right.mean() <= high


def test_an_untrained_world_guesses(tmp_path, capsys, monkeypatch):
    """The script from end to end on random weights: every answer is judged."""
    shown = RecallConfig(length=48, pairs=4, shortest=16, cell=8)
    make_recall(tmp_path / "r.npz", config=shown, test_episodes=3, episodes=1)
    world = tiny.make_world(tiny.config(action=ActionConfig(), context=47), parts=("tokenizer", "dynamics"))
    world.save(tmp_path / "world")
    monkeypatch.setattr(sys, "argv", ["recall", str(tmp_path / "world"), "--data", str(tmp_path / "r.npz")])
    script.main()
    assert "| **all up to 47** | 12 |" in capsys.readouterr().out
