"""Laws of refinement and rendering: what a chunk's detail depends on, and that frames are a pure function."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from worldsim import cli
from worldsim.config import RefineConfig, RefineLossConfig, TokenizerConfig
from worldsim.data.video import read_video, write_video
from worldsim.generate import render as rendering
from worldsim.generate.render import neighbours, render
from worldsim.models.refine import RefineHead
from worldsim.ops import window
from worldsim.ops.window import attend_window
from worldsim.train.losses import refine_loss

pytestmark = pytest.mark.law

KEYS = jax.random.split(jax.random.key(3), 2)
P = 7


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def refine_head(**changes):
    config = tiny.config()
    return tiny.model(
        "refine", dataclasses.replace(config, refine=dataclasses.replace(config.refine, **changes))
    )


@pytest.fixture(scope="module")
def world():
    return tiny.make_world(tiny.config())


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(0).integers(0, 9, (2, 40, 2, 2)).astype(np.int32)


@pytest.mark.parametrize(("radius", "pairs"), [(0, 144), (1, 144), (1, 0), (2, 144)])
def test_window_attention_is_dense_attention_with_a_mask(radius, pairs, monkeypatch):
    """Against every token reading every token of three chunks, masked to its window; both ways."""
    monkeypatch.setattr(window, "ALL_PAIRS", range(1, pairs + 1))
    b, p, h, w, heads, d = 2, 4, 3, 5, 2, 6
    q, k, v, k2, v2 = (normal(i, b, p, h, w, d) for i in range(5))
    sides = jnp.asarray(np.random.default_rng(0).random((b, p, 2)) < 0.7)
    side = 2 * radius + 1
    bias = normal(9, 3 * side**2, heads)
    got = attend_window(q, (k, v), (k2, v2), sides, bias, heads=heads, radius=radius)
    split = lambda a: np.asarray(a, np.float64).reshape(*a.shape[:-1], heads, -1)
    want = np.zeros((b, p, h, w, heads, d // heads))
    for n, t, i, j, a in itertools.product(range(b), range(p), range(h), range(w), range(heads)):
        scores, values = [], []
        for dt, di, dj in itertools.product((-1, 0, 1), *[range(-radius, radius + 1)] * 2):
            y, x, at = i + di, j + dj, (t + dt) % p
            if not (0 <= y < h and 0 <= x < w) or (dt and not sides[n, t, (dt + 1) // 2]):
                continue
            keys, vals = (k, v) if dt == 0 else (k2, v2)
            place = ((dt + 1) * side + di + radius) * side + dj + radius
            score = split(q)[n, t, i, j, a] @ split(keys)[n, at, y, x, a] / (d // heads) ** 0.5
            scores.append(score + float(bias[place, a]))
            values.append(split(vals)[n, at, y, x, a])
        weights = np.exp(scores - np.max(scores))
        want[n, t, i, j, a] = weights @ np.stack(values) / weights.sum()
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=1e-5)


def test_detail_depends_on_the_codes_next_to_it_and_on_no_others_detail():
    """Which chunks are drawn otherwise when one chunk's codes, or its noise, are others."""
    head = tiny.model("refine", tiny.config())
    q, noise = normal(0, 1, P, 2, 2, 4), normal(1, 1, P, 2, 2, 4)
    draw = jax.jit(lambda q, noise: head.draw(q, noise, jnp.int32(3)) - q)
    moved = lambda q, noise: np.abs(draw(q, noise) - draw(*first)).max((0, 2, 3, 4)) > 1e-6
    first = q, noise
    assert moved(q.at[:, 3].add(1.0), noise).tolist() == [False, False, True, True, True, False, False]
    assert moved(q, noise.at[:, 3].add(1.0)).tolist() == [i == 3 for i in range(P)]


def test_a_head_per_token_sees_its_own_code_alone():
    """As a baseline without attention is meant; with a radius the codes beside it tell too."""
    q, noise = normal(0, 1, P, 4, 4, 4), normal(1, 1, P, 4, 4, 4)
    config = tiny.config()
    tokenizer = dataclasses.replace(config.tokenizer, height=32, width=32)
    moved = {}
    for radius, beside in ((0, False), (1, False), (0, True)):
        small = dataclasses.replace(config.refine, radius=radius, neighbours=beside)
        head = tiny.model("refine", dataclasses.replace(config, tokenizer=tokenizer, refine=small))
        draw = jax.jit(lambda q, head=head: head.draw(q, noise, jnp.int32(2)) - q)
        other = draw(q.at[:, 3, 1, 2].add(1.0))
        moved[radius, beside] = np.argwhere(np.abs(other - draw(q)).max((0, 4)) > 1e-6)
    assert moved[0, False].tolist() == [[3, 1, 2]]
    assert len(moved[1, False]) > 1 and set(moved[1, False][:, 0]) == {3}
    assert set(moved[0, True][:, 0]) == {2, 3, 4}


def test_guidance_of_one_is_none_and_two_is_further_from_the_unconditional():
    """In one step of Euler it is so exactly; 0 is the unconditional. The next of two is the last of both."""
    q, noise = normal(0, 1, P, 2, 2, 4), normal(1, 1, 1, 2, 2, 4)
    mean = {}
    for guidance in (0.0, 1.0, 1.0 + 1e-6, 2.0):
        head = refine_head(guidance=guidance, sampler="euler")
        mean[guidance] = np.asarray(head.draw(q, noise, jnp.int32(1)))
        both = head.draw(q[:, :2], noise, jnp.int32(3), sides=jnp.array([[[False, False], [True, False]]]))
        following = head.draw_next(q[:, :2], noise, jnp.int32(3), before=jnp.bool_(True))
        np.testing.assert_allclose(following[:, 0], both[:, 1], atol=1e-5)
    np.testing.assert_allclose(mean[1.0], mean[1.0 + 1e-6], atol=1e-3)
    np.testing.assert_allclose(mean[2.0] - mean[1.0], mean[1.0] - mean[0.0], atol=1e-4)
    assert np.abs(mean[2.0] - mean[1.0]).max() > 1e-3


def test_the_config_names_the_sampler():
    q, noise = normal(0, 1, P, 2, 2, 4), normal(1, 1, 1, 2, 2, 4)
    drawn = {
        name: refine_head(sampler=name).draw(q, noise, jnp.int32(3))
        for name in ("euler", "heun", "ddim", "flow")
    }
    for name in ("ddim", "flow"):
        np.testing.assert_allclose(drawn[name], drawn["euler"], atol=1e-4)
    assert np.abs(drawn["heun"] - drawn["euler"]).max() > 1e-3
    config = RefineConfig()
    object.__setattr__(config, "sampler", "rk4")  # past the type checks of tests
    with pytest.raises(ValueError, match="sampler 'rk4'; take euler, heun"):
        config.__post_init__()


@pytest.mark.parametrize("steps", [0, 3])
def test_any_chunk_can_be_drawn_again_from_its_neighbourhood(world, codes, steps):
    """Pieces with two chunks on either side are the whole, across the borders of compiled blocks."""
    times = np.arange(40.0)
    whole = render(world.renderer, codes, times, KEYS, refine_steps=steps)
    for start, stop in ((0, 5), (14, 19), (31, 40)):
        low, high = max(0, start - 2), min(40, stop + 2)
        piece = render(world.renderer, codes[:, low:high], times[low:high], KEYS, refine_steps=steps)
        np.testing.assert_array_equal(piece[:, start - low : stop - low], whole[:, start:stop])
    alone = render(world.renderer, codes[:1], times, KEYS[:1], refine_steps=steps)
    assert np.abs(alone.astype(int) - whole[:1]).max() <= 1
    later = render(world.renderer, codes, times + 1000, KEYS, refine_steps=steps)
    np.testing.assert_array_equal(later, whole)


def test_streaming_never_looks_ahead_and_final_does(world, codes):
    times, other = np.arange(40.0), codes.copy()
    other[:, 20:] = (other[:, 20:] + 1) % 9
    draw = lambda codes, window: render(world.renderer, codes, times, KEYS, window=window)
    np.testing.assert_array_equal(draw(codes, "streaming")[:, :20], draw(other, "streaming")[:, :20])
    before, after = draw(codes, "final"), draw(other, "final")
    np.testing.assert_array_equal(before[:, :18], after[:, :18])
    assert (before[:, 19] != after[:, 19]).any()


@pytest.mark.parametrize("count", [3, 16, 21])
def test_a_cycle_can_be_drawn_from_any_of_its_chunks(world, codes, count):
    codes, times = codes[:, :count], np.arange(count, dtype=float)
    whole = render(world.renderer, codes, times, KEYS, window="cyclic")
    turned = render(world.renderer, np.roll(codes, -2, axis=1), times, KEYS, window="cyclic")
    np.testing.assert_array_equal(np.roll(turned, 2, axis=1), whole)
    assert (render(world.renderer, codes, times, KEYS)[:, 0] != whole[:, 0]).any()


def test_neighbours_by_hand():
    times = np.asarray([0.0, 2, 4, 10, 12])
    final = [[0, 1], [1, 1], [1, 0], [0, 1], [1, 0]]
    np.testing.assert_array_equal(neighbours(times, 2, "final"), np.asarray(final, bool))
    streaming = neighbours(times, 2, "streaming")
    np.testing.assert_array_equal(streaming[:, 0], np.asarray(final, bool)[:, 0])
    assert not streaming[:, 1].any()
    cyclic = neighbours(times, 2, "cyclic")
    assert cyclic[0, 0]
    assert cyclic[-1, 1]


def test_the_number_of_steps_is_no_retrace_and_changes_the_picture(world, codes):
    times = np.arange(40.0)
    drawn = [render(world.renderer, codes, times, KEYS, refine_steps=n) for n in (1, 2)]
    size = rendering.draw._cache_size()
    drawn.append(render(world.renderer, codes, times, KEYS, refine_steps=8))
    assert rendering.draw._cache_size() == size
    assert all((a != b).any() for a, b in itertools.combinations(drawn, 2))


def test_refinement_is_on_by_default_and_zero_steps_are_the_codes_alone(world):
    clip, plain = tiny.make_clip(4), dataclasses.replace(world, refine=None)
    default, off = world.extend(clip, 5), world.extend(clip, 5, refine_steps=0)
    np.testing.assert_array_equal(default.codes, off.codes)
    np.testing.assert_array_equal(default.clip.frames, world.extend(clip, 5, refine_steps=4).clip.frames)
    assert (default.clip.frames != off.clip.frames).any()
    np.testing.assert_array_equal(off.clip.frames, plain.extend(clip, 5).clip.frames)
    with pytest.raises(ValueError, match="refine_steps 2; this world has no refinement head"):
        plain.extend(clip, 5, refine_steps=2)


CLIP = tiny.make_clip(4)
VERBS = {
    "backward": lambda world, **how: world.extend(CLIP, 3, direction="backward", **how),
    "keyframes": lambda world, **how: world.extend(CLIP, 3, keyframes=2, **how),
    "infill": lambda world, **how: world.infill(CLIP[:2], CLIP[2:], 3, **how),
    "loop": lambda world, **how: world.loop(CLIP, 5, candidates=1, sweeps=0, **how),
    "animate": lambda world, **how: world.animate(CLIP.frames[0], 3, **how),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refines_what_it_makes_by_default_and_not_with_zero_steps(world, verb):
    make = lambda world, **how: VERBS[verb](world, steps=1, **how)
    made, full, off = make(world), make(world, refine_steps=4), make(world, refine_steps=0)
    np.testing.assert_array_equal(made.clip.frames, full.clip.frames)
    np.testing.assert_array_equal(made.codes, off.codes)
    new = ~made.known
    assert (made.clip.frames[new] != off.clip.frames[new]).reshape(new.sum(), -1).any(-1).all()
    plain = make(dataclasses.replace(world, refine=None))
    np.testing.assert_array_equal(off.clip.frames, plain.clip.frames)


def test_a_rollout_refines_as_the_other_verbs_do(world):
    roll = lambda **how: np.concatenate([one.frames for one in world.rollout(CLIP, 3, steps=1, **how)])
    made = roll()
    np.testing.assert_array_equal(made, roll(refine_steps=4))
    assert (made != roll(refine_steps=0)).reshape(3, -1).any(-1).all()


@pytest.mark.parametrize(
    ("verb", "inputs"),
    [
        ("extend", "clip.npz"),
        ("infill", "clip.npz clip.npz"),
        ("loop", "clip.npz --candidates 1 --sweeps 0"),
        ("animate", "clip.npz"),
    ],
)
def test_the_shell_refines_by_default_and_not_with_zero_steps(world, verb, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("clip.npz", CLIP)
    world.save("whole")
    dataclasses.replace(world, refine=None).save("plain")

    def make(name, *more):
        cli.main(f"{verb} {name} {inputs} --frames 5 --steps 1 --out out.npz".split() + list(more))
        return read_video("out.npz").frames

    made, off = make("whole"), make("whole", "--refine-steps", "0")
    np.testing.assert_array_equal(made, make("whole", "--refine-steps", "4"))
    np.testing.assert_array_equal(off, make("plain"))
    assert (made != off).any()


def train(kind, *, steps=300):
    """A head on residuals that are -1 or 1 all over a chunk, by chance, whatever its codes."""
    config = RefineConfig(width=16, layers=1, heads=2, mlp=32, kind=kind)
    tokenizer = TokenizerConfig(height=16, width=16, widths=(8, 16), latent=2)
    graph, params = nnx.split(RefineHead(config, tokenizer, rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(params, state, key):
        sign_key, loss_key = jax.random.split(key)
        q = jnp.zeros((32, 2, 2, 2, 2))
        z = jnp.where(jax.random.bernoulli(sign_key, shape=(32, 2, 1, 1, 1)), 1.0, -1.0) + q
        loss = lambda p: refine_loss(nnx.merge(graph, p), z, q, loss_key, weights=RefineLossConfig())[0]
        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(steps):
        params, state = step(params, state, jax.random.key(i))
    return nnx.merge(graph, params)


def test_diffusion_draws_one_of_two_details_where_regression_draws_their_mean():
    q, noise = jnp.zeros((64, 1, 2, 2, 2)), normal(5, 64, 1, 2, 2, 2)
    detail = {kind: train(kind).draw(q, noise, jnp.int32(8)) for kind in ("diffusion", "regression")}
    assert np.abs(detail["regression"]).max() < 0.35
    size = np.abs(detail["diffusion"])
    assert np.median(size) == pytest.approx(1, abs=0.25)
    signs = np.sign(detail["diffusion"]).mean((1, 2, 3, 4))
    assert np.abs(signs).mean() > 0.9  # one sign all over a chunk: its tokens agree
    assert 0.2 < (signs > 0).mean() < 0.8
