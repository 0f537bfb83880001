"""Laws of the tokenizer: Haar is exact, FSQ is the nearest code, and no chunk knows of another."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.models.tokenizer import to_float, to_uint8
from worldsim.ops import haar, quantize

pytestmark = pytest.mark.law

LEVELS = [(3, 3), (8, 5, 5, 5), (2, 7, 4)]


def some_chunks(frames, *, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(3, frames, 16, 8, 3)), jnp.float32)


@pytest.mark.parametrize(("spatial", "temporal"), [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 2)])
def test_haar_round_trip_is_exact_and_keeps_energy(spatial, temporal):
    x = some_chunks(2**temporal)
    levels = {"spatial": spatial, "temporal": temporal}
    bands = jax.jit(partial(haar.fold_chunks, **levels))(x)
    assert bands.shape == (3, 16 >> spatial, 8 >> spatial, 3 * 2 ** (2 * spatial + temporal))
    np.testing.assert_allclose(jax.jit(partial(haar.unfold_chunks, **levels))(bands), x, atol=1e-5)
    np.testing.assert_allclose((bands**2).sum((1, 2, 3)), (x**2).sum((1, 2, 3, 4)), rtol=1e-4)


def test_haar_by_hand():
    """One level over rows and columns: the first band is half the sum of each 2x2 block."""
    x = jnp.asarray([[[1.0, 2], [3, 5]]])[:, None, ..., None]
    bands = haar.fold_chunks(x, spatial=1, temporal=0)
    np.testing.assert_allclose(bands[0, 0, 0], [11 / 2, -5 / 2, -3 / 2, 1 / 2], atol=1e-6)


def test_haar_of_a_still_chunk_has_no_temporal_difference():
    still = jnp.repeat(some_chunks(1), 2, axis=1)
    bands = haar.fold_chunks(still, spatial=0, temporal=1)
    np.testing.assert_allclose(bands[..., :3], 2**0.5 * still[:, 0], atol=1e-5)
    np.testing.assert_allclose(bands[..., 3:], 0, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_fsq_takes_the_nearest_level_of_every_digit(levels):
    """By brute force over all values that a digit can have."""
    x = 1.5 * np.random.default_rng(0).normal(size=(200, len(levels))).astype(np.float32)
    values, codes = quantize.fsq(jnp.asarray(x), levels)
    for i, count in enumerate(levels):
        choices = np.linspace(-1, 1, count)
        nearest = np.abs(np.tanh(x[:, i, None].astype(np.float64)) - choices).argmin(-1)
        np.testing.assert_array_equal(quantize.fsq_digits(jnp.asarray(x), levels)[:, i], nearest)
        np.testing.assert_allclose(values[:, i], choices[nearest], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(codes) // np.prod(levels[:i], dtype=int) % count, nearest)
    assert len(np.unique(codes)) > min(60, np.prod(levels) // 2)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_codes_and_digits_are_one_to_one_over_the_whole_codebook(levels):
    codes = jnp.arange(np.prod(levels))
    digits = np.asarray(quantize.codes_to_digits(codes, levels))
    assert (digits >= 0).all()
    assert (digits < levels).all()
    assert {tuple(row) for row in digits} == set(itertools.product(*map(range, levels)))
    np.testing.assert_array_equal(quantize.digits_to_codes(jnp.asarray(digits), levels), codes)
    values = quantize.digits_to_values(jnp.asarray(digits), levels)
    assert values.min() == -1
    assert values.max() == 1
    inside = jnp.arctanh(0.999 * values)  # from each code's own vector to that code again
    np.testing.assert_array_equal(quantize.fsq(inside, levels)[1], codes)


def test_straight_through_gradient_is_that_of_tanh():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(50, 2)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(50, 2)), jnp.float32)
    got = jax.grad(lambda x: (weights * quantize.fsq(x, (5, 3))[0]).sum())(x)
    np.testing.assert_allclose(got, weights * (1 - jnp.tanh(x) ** 2), atol=1e-6)


def test_haar_round_trip_of_pixels_is_exact():
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8)
    levels = {"spatial": 2, "temporal": 2}
    there_and_back = jax.jit(lambda x: haar.unfold_chunks(haar.fold_chunks(x, **levels), **levels))
    np.testing.assert_array_equal(to_uint8(there_and_back(to_float(frames))), frames)


@pytest.mark.parametrize("frames_per_chunk", [1, 2])
def test_encoding_is_chunk_local_and_decoding_looks_one_chunk_to_either_side(frames_per_chunk):
    """Change one frame: latents and codes of its chunk change, and of no other; decoded frames of the chunks
    next to it do too."""
    f, p = frames_per_chunk, 4
    model = tiny.model("tokenizer", tiny.config(frames_per_chunk=f))
    frames = to_float(tiny.make_clip(p * f).frames)

    @jax.jit
    def through(frames):
        latents, codes = model.encode(frames[None])[0], model.tokenize(frames[None])[0]
        return latents, codes, model.detokenize(codes[None])[0].reshape(p, f, 16, 16, 3)

    before, moved = through(frames), []
    assert before[1].shape == (p, 2, 2)
    for t in range(p * f):  # one clip at a time: in a batch they could share a statistic unseen
        after = through(frames.at[t].multiply(-1))
        latents, codes, drawn = (
            np.asarray(a == b).reshape(p, -1).all(-1) for a, b in zip(before, after, strict=True)
        )
        others = np.arange(p) != t // f
        np.testing.assert_array_equal(latents, others)
        assert codes[others].all()
        assert drawn[abs(np.arange(p) - t // f) > 1].all()
        assert codes.all() or not drawn[abs(np.arange(p) - t // f) == 1].any()
        moved.append(not codes.all())
    assert np.mean(moved) > 0.5


def what_changes(draw, p):
    """For each chunk whose latents change, which decoded chunks do: bool [changed, drawn]."""
    z = jax.random.normal(jax.random.key(0), (1, p, 2, 2, 4))
    before = draw(z)
    return np.stack([
        (np.asarray(draw(z.at[:, i].add(1.0))) != before).reshape(p, -1).any(-1) for i in range(p)
    ])  # fmt: skip


@pytest.mark.parametrize("window", ["final", "streaming", "cyclic", "alone"])
def test_the_decoder_sees_the_sides_that_it_is_shown(window):
    model, p = tiny.model("tokenizer", tiny.config()), 5
    shown = {"streaming": [True, False], "alone": [False, False]}.get(window, [True, True])
    sides = jnp.broadcast_to(jnp.asarray(shown), (1, p, 2))
    draw = jax.jit(lambda z: model.decode(z, sides=sides, cyclic=window == "cyclic"))
    want = np.eye(p, dtype=bool)
    if window != "alone":
        want |= np.eye(p, k=1, dtype=bool)  # chunk i changes the next one, which looks back
    if window in ("final", "cyclic"):
        want |= np.eye(p, k=-1, dtype=bool)
    if window == "cyclic":
        want[0, -1] = want[-1, 0] = True
    np.testing.assert_array_equal(what_changes(draw, p), want)


def test_encoding_does_not_depend_on_place_or_company():
    """The same chunk anywhere in any clip of any batch has the same latents, so the same codes."""
    model = tiny.model("tokenizer", tiny.config(frames_per_chunk=2))
    frames = to_float(tiny.make_clip(8).frames)
    encode = jax.jit(model.encode)
    whole = encode(frames[None])[0]
    np.testing.assert_allclose(encode(frames[None, 4:6])[0, 0], whole[2], atol=1e-5)
    np.testing.assert_allclose(encode(frames.reshape(4, 2, 16, 16, 3))[:, 0], whole, atol=1e-5)


@pytest.mark.parametrize("cell_local", [True, False])
def test_encoding_is_local_to_the_pixels_of_a_code(cell_local):
    """Change one code's pixels: its latent changes, and without ``cell_local`` its neighbours' too."""
    world = tiny.config()
    world = dataclasses.replace(world, tokenizer=dataclasses.replace(world.tokenizer, cell_local=cell_local))
    model = tiny.model("tokenizer", world)
    frames = to_float(tiny.make_clip(1).frames)[None]
    encode = jax.jit(model.encode)
    for row, column in itertools.product((0, 1), (0, 1)):
        cell = (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        moved = (encode(frames) != encode(frames.at[0, 0, *cell].multiply(-1))).any(-1)[0, 0]
        expected = np.zeros((2, 2), bool)
        expected[row, column] = True
        np.testing.assert_array_equal(moved, expected if cell_local else True)


def test_quantized_vectors_are_what_lookup_gives():
    model = tiny.model("tokenizer", tiny.config())
    q, codes = jax.jit(lambda x: model.quantizer(model.encode(x)))(to_float(tiny.make_clip(6).frames)[None])
    np.testing.assert_allclose(jax.jit(model.quantizer.lookup)(codes), q, atol=1e-5)
    assert len(np.unique(codes)) > 3


def test_pixels_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_uint8(to_float(levels)), levels)
    np.testing.assert_array_equal(to_uint8(jnp.asarray([[-3.0, 3.0]])), [[0, 255]])


NOISE_LEVELS = (8, 5, 3)


def corrupted(level, *, codes=None, shape=(2, 4, 32, 32), seed=0):
    if codes is None:
        codes = np.random.default_rng(seed).integers(0, np.prod(NOISE_LEVELS), shape)
    noise = jnp.broadcast_to(jnp.asarray(level, jnp.float32), shape[:2])
    codes = jnp.asarray(codes, jnp.int32)
    out = quantize.corrupt_codes(codes, noise, NOISE_LEVELS, jax.random.key(seed))
    return np.asarray(codes), np.asarray(out)


def test_no_corruption_changes_nothing():
    codes, out = corrupted(0.0)
    np.testing.assert_array_equal(out, codes)


@pytest.mark.parametrize("level", [0.1, 0.3, 0.8])
def test_corruption_replaces_its_share_of_each_chunk(level):
    codes, out = corrupted([[level, 0.0, level, 0.0]])
    changed = (codes != out).mean((2, 3))
    assert not changed[:, 1::2].any()
    kept = 0.5 / np.prod(NOISE_LEVELS)  # a uniform draw may be the code itself
    np.testing.assert_allclose(changed[:, 0::2], level * (1 - kept), atol=0.06)
    assert out.min() >= 0
    assert out.max() < np.prod(NOISE_LEVELS)


def test_half_of_the_corruption_moves_one_digit_by_one():
    """Also at the ends, where it is reflected: a digit never leaves its range or wraps round."""
    codes, out = corrupted(1.0)
    before, after = (np.asarray(quantize.codes_to_digits(jnp.asarray(a), NOISE_LEVELS)) for a in (codes, out))
    step = np.abs(after - before)
    neighbour = step.sum(-1) == 1
    assert 0.5 < neighbour.mean() < 0.55  # half, and uniform draws that happen to be neighbours
    for i, count in enumerate(NOISE_LEVELS):
        moved = neighbour & (step[..., i] == 1)
        assert 0.14 < moved.mean() < 0.2  # each digit as often
        for digit in range(count):
            ends = set(after[..., i][moved & (before[..., i] == digit)].tolist())
            assert ends == {digit - 1, digit + 1} & set(range(count))


def vectors(count, *, seed=0):
    return jax.random.normal(jax.random.key(seed), (count, 4))


def test_vq_takes_the_nearest_vector():
    z, book = vectors(300), vectors(16, seed=1)
    distance = np.linalg.norm(np.asarray(z)[:, None] - np.asarray(book), axis=-1)
    np.testing.assert_array_equal(quantize.nearest(z, book), distance.argmin(-1))


def test_codebook_follows_the_running_average_of_what_it_stands_for():
    """The update in place equals running counts and sums kept beside the codebook (van den Oord, A.1)."""
    book, usage = vectors(6), jnp.full(6, 2.0)
    count, total = np.full(6, 2.0), 2.0 * np.asarray(book)
    update = jax.jit(partial(quantize.update_codebook, dead=0.0, decay=0.9))
    for step in range(20):
        z = vectors(50, seed=10 + step)
        codes = np.asarray(quantize.nearest(z, book))
        n = np.bincount(codes, minlength=6)
        m = np.stack([np.asarray(z)[codes == i].sum(0) for i in range(6)])
        count, total = 0.9 * count + 0.1 * n, 0.9 * total + 0.1 * m
        book, usage = update(book, usage, z, jax.random.key(step))
        np.testing.assert_allclose(usage, count, rtol=1e-4)
        np.testing.assert_allclose(book, total / count[:, None], rtol=1e-3, atol=1e-4)


def test_dead_codes_become_vectors_that_are_badly_drawn():
    """One code stands for everything; the dead one goes to the lone outlier, a live one stays."""
    z = jnp.concatenate([0.01 * vectors(99), jnp.full((1, 4), 50.0)])
    book = jnp.stack([jnp.zeros(4), jnp.full(4, -90.0)])
    book, usage = quantize.update_codebook(book, jnp.asarray([5.0, 0.01]), z, jax.random.key(0), dead=0.03)
    np.testing.assert_allclose(book[1], 50.0)
    assert abs(book[0]).max() < 1
    assert usage[1] == np.float32(quantize.FRESH)


def test_kmeans_finds_clusters_that_are_there():
    centres = 10 * vectors(8, seed=3)
    z = (centres[:, None] + 0.1 * vectors(40).reshape(1, 40, 4)).reshape(-1, 4)
    book = np.asarray(jax.jit(partial(quantize.kmeans, codes=8))(z, key=jax.random.key(1)))
    nearest = np.linalg.norm(book[:, None] - np.asarray(centres), axis=-1)
    assert set(nearest.argmin(1)) == set(range(8))
    assert nearest.min(1).max() < 0.1


def test_no_gradient_reaches_the_codebook_and_all_of_it_the_latents():
    world = tiny.config()
    vq = dataclasses.replace(world, tokenizer=dataclasses.replace(world.tokenizer, quantizer="vq", codes=9))
    model = tiny.model("tokenizer", vq)
    graph, params = nnx.split(model.quantizer, nnx.Param)
    z = vectors(20)
    grads = jax.grad(lambda p: (nnx.merge(graph, p)(z)[0] ** 2).sum())(params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))
    weights = vectors(20, seed=5)
    got = jax.grad(lambda z: (weights * model.quantizer(z)[0]).sum())(z)
    np.testing.assert_allclose(got, weights, atol=1e-6)
