"""Readers of state: against the renderer, the emulator's RAM, and the laws of the worlds."""

import dataclasses

import numpy as np
import pytest

from worldsim.data import sprites as toy
from worldsim.data.ale import _cells, rarest
from worldsim.evaluate import pong, sprite_laws
from worldsim.evaluate.play import Answer, copies
from worldsim.evaluate.sprites import read_sprites

CONFIG = toy.SpriteConfig()


def drawn(states, config=CONFIG):
    return np.stack([toy.draw(config, np.asarray(state)) for state in states])


def episode(config, *, seed=0, length=48):
    return next(toy.episodes(config, count=1, length=length, seed=seed))


@pytest.mark.law
@pytest.mark.parametrize("side", [5, 7])
def test_every_sprite_is_read_at_every_place(side):
    config = toy.SpriteConfig(size=14, side=side, sprites=1, push=1)
    places = range(config.span + 1)
    states = [
        [[x, y, 0, 0, shape, color]]
        for shape in range(4)
        for color in range(6)
        for x in places
        for y in places
    ]
    reading = read_sprites(drawn(states, config), config)
    truth = np.array(states)[:, 0]
    rows = np.arange(len(truth))
    assert np.all(reading.seen.sum(1) == 1) and np.all(reading.certain[rows, truth[:, 5]])
    np.testing.assert_array_equal(reading.place[rows, truth[:, 5]], truth[:, :2])
    np.testing.assert_array_equal(reading.shape[rows, truth[:, 5]], truth[:, 4])
    assert np.all(reading.visible[rows, truth[:, 5]] == 1)


@pytest.mark.law
def test_overlapping_sprites_are_read_right_wherever_the_reader_is_certain():
    rng = np.random.default_rng(0)
    config = toy.SpriteConfig(size=14, sprites=3, push=1)
    states = np.stack([toy.reset(config, rng) for _ in range(3000)])
    told = sprite_laws.check_reader([read_sprites(drawn(states, config), config)], states[None])
    assert told["wrong_though_certain"] == 0
    assert told["certain"] > 0.85  # of three sprites on a crowded field
    apart = np.abs(states[:, :, None, :2] - states[:, None, :, :2]).max(-1) + 9 * np.eye(3, dtype=int)
    free = (apart >= config.side).all((1, 2))
    told = sprite_laws.check_reader([read_sprites(drawn(states[free], config), config)], states[None, free])
    assert free.sum() > 50 and told["right"] == told["certain"] == 1


@pytest.mark.law
@pytest.mark.parametrize("falling", [False, True])
def test_true_motion_is_legal_and_nothing_is_redrawn_without_redraws(falling):
    for redraw in (0.0, 0.2):
        config = dataclasses.replace(CONFIG, falling=falling, redraw=redraw)
        for seed in range(3):
            state = episode(config, seed=seed).extra["state"]
            judged = sprite_laws.motion(state[None, :, 1, :2].astype(float), config)
            assert np.nanmin(judged["legal"]) == 1
            if redraw == 0:
                assert np.nanmax(judged["redrawn"]) == 0
    long = episode(dataclasses.replace(CONFIG, redraw=0.3), length=1500).extra["state"]
    seen = np.nanmean(sprite_laws.motion(long[None, :, 1, :2].astype(float), CONFIG)["redrawn"])
    assert 0.15 < seen < 0.32  # some redraws draw what was there


@pytest.mark.law
def test_jumps_are_illegal_and_turns_are_redraws():
    places = np.array([[5, 5], [6, 6], [7, 7], [8, 8], [12, 8], [13, 9], [12, 10]], float)[None]
    judged = sprite_laws.motion(places, CONFIG)
    np.testing.assert_array_equal(judged["legal"][0], [np.nan, 1, 1, 1, 0, 1, 1])
    np.testing.assert_array_equal(judged["redrawn"][0], [np.nan, np.nan, 0, 0, np.nan, np.nan, 1])
    still = np.full((1, 4, 2), 9.0)
    assert np.nanmax(sprite_laws.motion(still, CONFIG)["legal"]) == 0


@pytest.mark.law
def test_the_pushed_sprite_obeys_in_truth_and_not_under_other_actions():
    one = episode(CONFIG)
    places = one.extra["state"][None, :, 0, :2].astype(float)
    assert np.nanmin(sprite_laws.obeys(places, one.actions[None], CONFIG)) == 1
    other = (one.actions + 1) % 5
    assert np.nanmean(sprite_laws.obeys(places, other[None], CONFIG)) < 0.3


@pytest.mark.law
@pytest.mark.parametrize("falling", [False, True])
def test_true_clips_survive_and_broken_ones_die_where_they_break(falling):
    config = dataclasses.replace(CONFIG, falling=falling)
    for seed in range(12):
        one = episode(config, seed=seed)
        state = one.extra["state"]
        assert sprite_laws.survival(read_sprites(one.frames[1:], config), state[0], config) == 47
        right, decided = sprite_laws.returns(read_sprites(one.frames, config), config)
        assert right == decided
    for change in ({4: 1}, {5: 1}):  # another shape, another colour
        broken = state.copy()
        for column, by in change.items():
            broken[20:, 1, column] = (broken[20:, 1, column] + by) % 4
            if column == 5 and broken[20, 1, 5] == broken[20, 0, 5]:
                broken[20:, 1, 5] = 5
        assert sprite_laws.survival(read_sprites(drawn(broken[1:]), config), state[0], config) in (19, 20)
    assert sprite_laws.survival(read_sprites(drawn(state[1:, :1]), config), state[0], config) < 32


@pytest.mark.law
def test_a_sprite_that_comes_back_another_is_seen():
    behind = [[10, 10, 0, 0, 0, 1]] * 12
    above = [[2 + i, 10, 1, 0, 0, 2] for i in range(20)]
    states = np.array([[behind[0], row] for row in above])
    reading = read_sprites(drawn(states), CONFIG)
    assert sprite_laws.returns(reading, CONFIG) == (1, 1)
    states[12:, 0, 4] = 1
    assert sprite_laws.returns(read_sprites(drawn(states), CONFIG), CONFIG) == (0, 1)
    assert sprite_laws.returns(read_sprites(drawn(states[:10]), CONFIG), CONFIG) == (0, 0)


def test_a_sprite_that_is_hidden_for_long_is_asked_for_only_if_it_never_returns():
    places = [*range(2, 10), *[10] * 10, *range(11, 19)]
    states = np.array([[[10, 10, 0, 0, 0, 1], [x, 10, 1, 0, 0, 2]] for x in places])
    assert sprite_laws.returns(read_sprites(drawn(states), CONFIG), CONFIG) == (0, 0)
    stays = np.concatenate([states[:9], *[states[9:10]] * 20])
    assert sprite_laws.returns(read_sprites(drawn(stays), CONFIG), CONFIG) == (0, 1)


@pytest.mark.law
@pytest.mark.parametrize("step", [1, -1])
def test_the_truth_as_an_answer_is_without_fault(step):
    both = [episode(CONFIG, seed=seed, length=40) for seed in range(3)]
    frames, state = (
        np.stack(rows) for rows in zip(*((e.frames, e.extra["state"]) for e in both), strict=True)
    )
    actions = np.stack([e.actions for e in both])
    first = 8 if step == 1 else 31
    truth, copy = copies(frames, first, 32, step)
    out = sprite_laws.over_horizon(Answer(truth[None], truth, copy, first, step), state, actions, CONFIG)
    assert out["made"] == out["truth"] and out["redraw_ratio"] == 1
    assert 0 < out["truth"]["redrawn"] < 0.2  # 0.05 a frame
    assert out["made"]["legal"] == out["made"]["obeyed"] == 1 and out["made"]["survival"] == 32
    assert np.nanmax(out["pushed_error"]["mean"]) == np.nanmax(out["free_error"]["mean"]) == 0
    wrong = sprite_laws.over_horizon(Answer(copy[None], truth, copy, first, step), state, actions, CONFIG)
    assert wrong["32"]["free_error"] > 3 and wrong["made"]["legal"] == 0


def screen(ball, own, enemy):
    """Pong's screen as the emulator draws it from these RAM cells, in palette entries, at 64x64."""
    palette = np.array([(144, 72, 17), (236, 236, 236), (92, 186, 92), (213, 130, 74)], np.uint8)
    image = np.zeros((210, 160), int)
    image[own - 14 : own + 2, 140:144] = 2
    image[max(0, enemy - 15) : enemy + 1, 16:20] = 3
    if ball is not None:
        x, y = ball
        image[y - 14 : y - 10, x - 49 : x - 47] = 1
    image[24:34] = image[194:] = 1
    image[:24] = 0
    pick = rarest(np.array([3, 1, 0, 0])[image], 64)
    return palette[image.reshape(-1)[pick]]


@pytest.mark.law
def test_ball_and_paddles_are_read_where_ram_says():
    rng, count = np.random.default_rng(0), 400
    ram = np.zeros((count, 128), np.uint8)
    ram[:, 49], ram[:, 54] = rng.integers(75, 180, count), rng.integers(48, 205, count)
    ram[:, 51], ram[:, 50] = rng.integers(38, 204, count), rng.integers(40, 207, count)
    ram[::10, 54] = 0
    frames = np.stack(
        [
            screen(None if row[54] == 0 else (int(row[49]), int(row[54])), int(row[51]), int(row[50]))
            for row in ram
        ]
    )
    median = np.median(frames, axis=0).astype(np.uint8)
    told = pong.check_reader(frames[None], ram[None], median)
    assert told["ball_recall"] == 1 and told["ball_false"] == 0
    assert told["own_recall"] == told["enemy_recall"] == 1
    assert max(told[f"{name}_error"] for name in ("ball", "own", "enemy")) < 0.5
    moved = frames.copy()
    moved[:, :, 50:60] = np.roll(moved[:, :, 50:60], 4, axis=1)
    assert pong.check_reader(moved[None], ram[None], median)["own_error"] > 2


def test_the_stage_that_loses_the_ball_is_named():
    ram = np.zeros((1, 80, 128), np.uint8)
    ram[..., 49], ram[..., 54] = 120, 100
    seen = pong.ball_truth(ram, 64)
    half = np.where(np.arange(80)[None, :, None] % 2 == 0, seen, np.nan)
    made = {"16": {"ball_recall": 0.25}, "64": {"ball_recall": 0.1}}
    told = pong.stages(made, half, ram, 64)
    assert told == pytest.approx(
        {"codes_recall": 0.5, "tokenizer_loses": 0.5, "dynamics_loses_16": 0.25, "dynamics_loses_64": 0.4}
    )


def test_the_truth_as_an_answer_has_no_error_on_pong():
    ram = np.zeros((2, 24, 128), np.uint8)
    ram[..., 51] = 60 + 4 * np.arange(24)
    ram[..., 49], ram[..., 54], ram[..., 50] = 80 + 2 * np.arange(24), 60 + 3 * np.arange(24), 120
    frames = np.stack(
        [[screen((int(r[49]), int(r[54])), int(r[51]), int(r[50])) for r in clip] for clip in ram]
    )
    truth, copy = copies(frames, 8, 16, 1)
    median = screen(None, 230, 0)
    good, bad = (pong.over_horizon(Answer(rows[None], truth, copy, 8), ram, median) for rows in (truth, copy))
    assert good["16"]["own_error"] < 0.5 and good["16"]["ball_recall"] == 1
    assert bad["16"]["own_error"] > 10 and bad["16"]["ball_recall"] < 0.5
    assert good["flights"]["16"] == {"straight": {"ball_recall": 1, "frames": 32}}
    assert good["16"]["own_recall"] == good["16"]["enemy_recall"] == 1
    blank = np.broadcast_to(median, truth.shape)
    gone = pong.over_horizon(Answer(blank[None], truth, copy, 8), ram, median)["16"]
    assert gone["ball_recall"] == gone["own_recall"] == 0
    assert _cells(210, 160, 64).shape[:2] == (64, 64)


@pytest.mark.law
def test_balls_are_told_apart_by_what_became_of_them():
    """The picture in pong.flights, a bounce off a wall before, and the same backward."""
    x, y = [20, 23, 26, 23, 20, 0, 0, 40], [50, 40, 50, 60, 70, 0, 0, 90]
    ram = np.zeros((1, 8, 128), np.uint8)
    ram[0, :, 49], ram[0, :, 54] = x, y
    assert pong.flights(ram).tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert pong.flights(ram[:, ::-1]).tolist() == [[0, 2, 2, 2, 2, 2, 2, 2]]
    assert pong.flights(ram[:, 4::-1]).tolist() == [[0, 0, 0, 1, 1]]


def test_a_ball_is_followed_from_the_frames_before_the_answer():
    """The last two known frames say which way it flew."""
    ram = np.zeros((1, 12, 128), np.uint8)
    ram[..., 51], ram[..., 50], ram[..., 54] = 120, 120, 100
    ram[..., 49] = [80, 84, 88, 92, 96, 100, 104, 108, 104, 100, 96, 92]
    frames = np.stack([screen((int(r[49]), 100), 120, 120) for r in ram[0]])[None]
    for first, step, straight in ((4, 1, 4), (8, 1, 0), (7, -1, 1), (5, -1, 4)):
        truth, copy = copies(frames, first, 4, step)
        told = pong.over_horizon(Answer(truth[None], truth, copy, first, step), ram, screen(None, 230, 0))
        found = {name: one["frames"] for name, one in told["flights"]["4"].items()}
        assert found.get("straight", 0) == straight and sum(found.values()) == 4, (first, step)


@pytest.mark.slow
def test_the_reader_agrees_with_the_emulator():
    pytest.importorskip("ale_py")
    from worldsim.data import ale

    config = ale.AleConfig(max_frames=400)
    played = list(ale.episodes(config, ale.PONG_TEST, frames=1200, seed=5))
    frames, ram = (
        np.concatenate(rows) for rows in zip(*((e.frames, e.extra["ram"]) for e in played), strict=True)
    )
    told = pong.check_reader(frames[None], ram[None], np.median(frames, axis=0).astype(np.uint8))
    assert told["ball_recall"] > 0.99 and told["ball_false"] == 0
    assert max(told[f"{name}_error"] for name in ("ball", "own", "enemy")) < 0.5
