"""The sprite world: exact entropies, reversibility, walls, occlusion, gravity."""

import dataclasses
import itertools

import numpy as np
import pytest

from worldsim.data import sprites
from worldsim.data.sprites import ACTIONS, MOVES, SpriteConfig, draw, reflect, reset, step

SMALL = SpriteConfig(size=8, sprites=2, side=4, speed=2, push=1, redraw=0.3)


def free_chain(config):
    """States and transition matrix of one free sprite by going through all its choices."""
    span, speeds = config.span, range(1, config.speed + 1)

    def choices(place):
        signs = [1] if place == 0 else [-1] if place == span else [-1, 1]
        return [sign * speed for sign in signs for speed in speeds]

    axis = [(place, velocity) for place in range(span + 1) for velocity in choices(place)]
    states = [(x, y, vx, vy) for (x, vx), (y, vy) in itertools.product(axis, axis)]
    number = {state: index for index, state in enumerate(states)}

    def move(state):
        place, velocity = reflect(np.array(state[:2]), np.array(state[2:]), span)
        return (*map(int, place), *map(int, velocity))

    matrix = np.zeros((len(states), len(states)))
    for index, (x, y, vx, vy) in enumerate(states):
        matrix[index, number[move((x, y, vx, vy))]] += 1 - config.redraw
        drawn = list(itertools.product(choices(x), choices(y)))
        for velocity in drawn:
            matrix[index, number[move((x, y, *velocity))]] += config.redraw / len(drawn)
    return np.array(states), matrix, [number[move(state)] for state in states]


def group(matrix, labels):
    """Add up columns with the same label."""
    return matrix @ (labels[:, None] == np.unique(labels)[None, :])


def entropy(rows, weight):
    return float(-(weight[:, None] * rows * np.log(np.where(rows > 0, rows, 1))).sum())


@pytest.mark.law
def test_next_and_previous_entropy_equal_brute_force():
    states, matrix, moved = free_chain(SMALL)
    uniform = np.full(len(states), 1 / len(states))
    np.testing.assert_allclose(uniform @ matrix, uniform)  # uniform phases and speeds are stationary
    assert sorted(moved) == list(range(len(states)))  # moving is a bijection
    places = states[:, 0] * 100 + states[:, 1]
    assert sprites.next_entropy(SMALL) == pytest.approx(entropy(group(matrix, places), uniform), abs=1e-9)

    # Before: places given place and leaving velocity. Leaving (after the redraw) and arriving differ by
    # the move; the place before is that of the predecessor.
    leave = np.linalg.inv(np.eye(len(states))[moved])  # from arrival at t+1 back to leaving at t
    redraw = matrix @ leave
    before = redraw.T  # stationary uniform: P(arrival at t | leaving at t)
    origin = np.array([places[np.argmax(np.asarray(moved) == index)] for index in range(len(states))])
    free = entropy(group(before, origin), uniform)
    pushes = push_entropy(SMALL)
    assert sprites.previous_entropy(SMALL) == pytest.approx(free + pushes, abs=1e-9)
    assert sprites.next_entropy(dataclasses.replace(SMALL, sprites=3)) == pytest.approx(
        2 * sprites.next_entropy(SMALL)
    )


def push_entropy(config):
    """Entropy of the pushed sprite's place before, given place and action, under uniform actions."""
    rng, span = np.random.default_rng(0), config.span
    joint = {}
    still = dataclasses.replace(config, sprites=1)
    for x, y, action in itertools.product(range(span + 1), range(span + 1), range(5)):
        state = np.array([[x, y, 0, 0, 0, 0]], np.int32)
        after = tuple(step(still, state, action, rng)[0, :2])
        joint.setdefault((after, action), []).append((x, y))
    total = (span + 1) ** 2 * 5
    return sum(len(before) / total * np.log(len(before)) for before in joint.values())


@pytest.mark.law
def test_free_motion_undone_by_turning_velocity_round():
    place, velocity = np.meshgrid(np.arange(8), [-3, -2, -1, 1, 2, 3], indexing="ij")
    inward = ~((place == 0) & (velocity < 0)) & ~((place == 7) & (velocity > 0))
    place, velocity = place[inward], velocity[inward]
    after, turned = reflect(place, velocity, 7)
    # Going back starts outwards at a wall that was just touched: the unrolled phase is what is undone.
    outward = np.where((after == 0) | (after == 7), turned, -turned)
    back, _ = reflect(after, outward, 7)
    np.testing.assert_array_equal(back, place)
    assert after.min() >= 0 and after.max() <= 7


def test_redraw_happens_as_often_as_said():
    config = SpriteConfig(size=64, sprites=2, side=3, speed=3, redraw=0.25)
    rng = np.random.default_rng(1)
    state, kept, seen = reset(config, rng), 0, 0
    for _ in range(4000):
        after = step(config, state, 0, rng)
        inside = np.all((state[1, :2] > 6) & (state[1, :2] < config.span - 6))
        seen, kept = seen + inside, kept + (inside and np.all(after[1, 2:4] == state[1, 2:4]))
        state = after
    expected = 1 - 0.25 + 0.25 / 36
    assert abs(kept / seen - expected) < 4 * np.sqrt(expected * (1 - expected) / seen)


@pytest.mark.parametrize("action", range(5))
def test_actions_push_sprite_zero_and_walls_block(action):
    config, rng = SpriteConfig(), np.random.default_rng(0)
    state = reset(config, rng)
    state[0, :2] = 10
    after = step(config, state, action, rng)
    np.testing.assert_array_equal(after[0, :2] - 10, config.push * MOVES[action])
    state[0, :2] = [0, config.span]
    blocked = ACTIONS[action] in ("left", "down", "none")
    assert np.all(step(config, state, action, rng)[0, :2] == state[0, :2]) == blocked


@pytest.mark.parametrize("size", [32, 64])
def test_draw_shows_each_state_and_later_sprites_hide_earlier_ones(size):
    config = SpriteConfig(size=size, sprites=3, side=size // 6)
    state = reset(config, np.random.default_rng(3))
    state[:, 4] = 0
    state[:, :2] = [[0, 0], [8, 8], [8, 8]]
    frame = draw(config, state)
    colors = {tuple(color) for color in frame.reshape(-1, 3)}
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
    assert tuple(sprites.COLORS[state[2, 5]]) in colors
    assert tuple(sprites.COLORS[state[1, 5]]) not in colors  # hidden
    state[2, :2] = [16, 20]
    assert tuple(sprites.COLORS[state[1, 5]]) in {
        tuple(color) for color in draw(config, state).reshape(-1, 3)
    }


def test_falling_is_irreversible():
    config, rng = SpriteConfig(falling=True, redraw=0.0), np.random.default_rng(0)
    state = reset(config, rng)
    state[1, :4] = [10, 3, 1, 0]
    heights = [3]
    for _ in range(12):
        state = step(config, state, 0, rng)
        heights.append(int(state[1, 1]))
    assert heights[:5] == [3, 4, 6, 9, 13] and heights[-1] == config.span and state[1, 3] == 0
    thrown = step(dataclasses.replace(config, redraw=1.0), state, 0, rng)
    assert thrown[1, 1] < config.span
    with pytest.raises(ValueError, match="falling"):
        sprites.next_entropy(config)


def test_episodes_are_reproducible_and_carry_their_truth():
    config = SpriteConfig(sprites=3)
    first, again = (list(sprites.episodes(config, count=2, length=20, seed=5)) for _ in range(2))
    assert [e.hash() for e in first] == [e.hash() for e in again]
    assert first[0].hash() != first[1].hash()
    assert first[0].hash() != next(sprites.episodes(config, count=1, length=20, seed=6)).hash()
    episode = first[0]
    assert episode.actions[0] == -1 and set(episode.actions[1:]) <= set(range(5))
    states = episode.extra["state"]
    assert states.shape == (20, 3, 6)
    np.testing.assert_array_equal(episode.frames[7], draw(config, states[7]))
    moved = states[1:, 0, :2] - states[:-1, 0, :2]
    inside = np.all((states[:-1, 0, :2] >= 2) & (states[:-1, 0, :2] <= config.span - 2), axis=-1)
    np.testing.assert_array_equal(moved[inside], (config.push * MOVES[episode.actions[1:]])[inside])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sprites": 4}, "4 sprites"),
        ({"side": 31}, "side 31"),
        ({"speed": 0}, "speed 0"),
        ({"redraw": 1.5}, "redraw 1.5"),
        ({"push": 20}, "push 20"),
    ],
)
def test_impossible_worlds_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SpriteConfig(**options)


def test_unknown_action_is_refused():
    config, rng = SpriteConfig(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="Action 5"):
        step(config, reset(config, rng), 5, rng)


@pytest.mark.law
def test_step_follows_the_exact_chain():
    states, matrix, _ = free_chain(SMALL)
    rng = np.random.default_rng(2)
    config = dataclasses.replace(SMALL, sprites=2)
    full = np.zeros((2, 6), np.int32)
    for index in (0, len(states) // 3, len(states) // 2):
        full[1, :4] = states[index]
        counts = np.zeros(len(states))
        for _ in range(3000):
            after = step(config, full, 0, rng)[1, :4]
            counts[np.argmax(np.all(states == after, axis=1))] += 1
        assert np.abs(counts / 3000 - matrix[index]).sum() / 2 < 0.05
