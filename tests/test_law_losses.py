"""Laws of the tokenizer's and the refinement's losses: what is drawn at random and how often, what each term
is, and that a table of vectors follows what it stands for."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from worldsim.config import (
    MixConfig,
    OptimConfig,
    RefineLossConfig,
    StageConfig,
    TokenizerLossConfig,
    TrainConfig,
)
from worldsim.data.arrays import ArraySource
from worldsim.models.tokenizer import to_float
from worldsim.models.world import split_module
from worldsim.ops import haar, quantize
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.placement import place_batch
from worldsim.train.losses import ms_ssim, refine_loss, tokenizer_loss
from worldsim.train.optim import make_optimizer
from worldsim.train.stages import tokenizer_stage
from worldsim.train.step import init_state, make_step, state_shardings

pytestmark = pytest.mark.law


def only(**weights):
    """A loss of these terms."""
    nothing = {field.name: 0.0 for field in dataclasses.fields(TokenizerLossConfig)} | {"crop": 0}
    return dataclasses.replace(TokenizerLossConfig(), **nothing | weights)


def world(*, part="tokenizer", **changes):
    config = tiny.config()
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **changes)})


def some_frames(b, t):
    return to_float(tiny.make_clip(b * t).frames).reshape(b, t, 16, 16, 3)


def shares(loss, ways, *, keys=512):
    """How often each of some losses comes over many keys; no other comes."""
    got = np.asarray(jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(0), keys)))
    gaps = np.abs(got[:, None] - np.asarray(ways))
    apart = np.diff(np.sort(ways)).min()
    assert apart > 1e-5
    assert gaps.min(1).max() < 0.2 * apart
    return np.bincount(gaps.argmin(1), minlength=len(ways)) / keys


def ways_to_show(b, p):
    """All sides that chunks may be shown, where there are chunks: ``[16 b p 2]``."""
    bits = np.array([*itertools.product((False, True), repeat=4)]).reshape(16, b, 2 * p - 2)
    return jnp.asarray(np.pad(bits, ((0, 0), (0, 0), (1, 1))).reshape(16, b, p, 2))


# --- What is drawn, and how often


@pytest.mark.parametrize(("b", "p"), [(1, 3), (2, 2)])
def test_the_decoder_is_shown_each_side_of_each_chunk_half_of_the_time(b, p):
    """Each for itself: sixteen ways of four sides, of which every one is as likely."""
    model, frames = tiny.model("tokenizer", tiny.config()), some_frames(b, p)
    weights = only(charbonnier=1.0)

    def far(sides):
        q, _ = model.quantizer(model.encode(frames))
        return jnp.sqrt((model.decode(q, sides=sides) - frames) ** 2 + 1e-6).mean()

    loss = lambda key: tokenizer_loss(model, frames, frames[:1, :1], key, weights=weights)[0]
    found = shares(loss, jax.jit(jax.vmap(far))(ways_to_show(b, p)))
    np.testing.assert_allclose(found, 1 / 16, atol=0.035)


@pytest.mark.parametrize(("b", "p"), [(1, 3), (2, 2)])
def test_the_refinement_is_shown_each_side_of_each_chunk_half_of_the_time(b, p):
    head = tiny.model("refine", world(part="refine", kind="regression"))
    z, q = jax.random.normal(jax.random.key(1), (2, b, p, 2, 2, 4))

    def far(sides):
        drawn = head.draw(q, jnp.zeros_like(q), jnp.int32(1), sides=sides)
        return jnp.square((drawn - z) / head.scale[...]).mean()

    loss = lambda key: refine_loss(head, z, q, key, weights=RefineLossConfig(null=0.0))[0]
    found = shares(loss, jax.jit(jax.vmap(far))(ways_to_show(b, p)))
    np.testing.assert_allclose(found, 1 / 16, atol=0.035)


def test_the_refinement_is_trained_without_codes_on_its_share_of_clips():
    head = tiny.model("refine", world(part="refine", kind="regression"))
    z, q = jax.random.normal(jax.random.key(1), (2, 2, 1, 2, 2, 4))
    still = jnp.zeros_like(z)

    def far(null):
        drawn = head.denoise(still, jnp.full(2, head.config.high), head.condition(q, null=null))
        return jnp.square(drawn - (z - q) / head.scale[...]).mean()

    loss = lambda key: refine_loss(head, z, q, key, weights=RefineLossConfig(null=0.25))[0]
    nulls = jnp.array([*itertools.product((False, True), repeat=2)])
    found = shares(loss, jax.jit(jax.vmap(far))(nulls))
    np.testing.assert_allclose(found, [0.75**2, 0.75 * 0.25, 0.75 * 0.25, 0.25**2], atol=0.06)


SHARES = {"q": (0.0, 0.0), "z": (1.0, 0.0), "unrounded": (0.0, 1.0), "all": (0.2, 0.5)}


@pytest.mark.parametrize("kind", SHARES)
def test_clips_are_decoded_from_z_the_unrounded_q_and_q_in_their_shares(kind):
    """Each clip for itself; the shares of z and of the unrounded q don't overlap."""
    model, frames = tiny.model("tokenizer", tiny.config()), some_frames(2, 1)
    continuous, soft = SHARES[kind]
    weights = only(charbonnier=1.0, continuous=continuous, soft=soft)

    @jax.jit
    def distances():
        z = model.encode(frames)
        kinds = jnp.stack([z, model.quantizer.soften(z), model.quantizer(z)[0]])
        drawn = jax.vmap(model.decode)(kinds)
        return jnp.sqrt((drawn - frames) ** 2 + 1e-6).mean((2, 3, 4, 5))

    far = distances()
    ways = [float(a[0] + b[1]) / 2 for a, b in itertools.product(far, far)]
    loss = lambda key: tokenizer_loss(model, frames, frames[:1], key, weights=weights)[0]
    parts = [continuous, soft, 1 - continuous - soft]
    np.testing.assert_allclose(shares(loss, ways), np.outer(parts, parts).ravel(), atol=0.06)


# --- What the terms are


def test_every_term_of_the_tokenizers_loss_is_what_it_says_and_counts_by_its_weight():
    model, frames = tiny.model("tokenizer", world(neighbours=False)), some_frames(2, 4)
    weights = only(charbonnier=0.9, haar=0.8, temporal=0.7, ms_ssim=0.6, rarity=5.0, commitment=0.4)
    white = jnp.ones((1, 1, 16, 16, 3))

    @jax.jit
    def measure(key):
        z = model.encode(frames)
        q, codes = model.quantizer(z)
        drawn = model.decode(q)
        score = ms_ssim(*(x.reshape(8, 16, 16, 3) for x in (frames, drawn)))
        bands = haar.fold_chunks((drawn - frames).reshape(8, 1, 16, 16, 3), spatial=2, temporal=0)
        return tokenizer_loss(model, frames, white, key, weights=weights), z, q, codes, drawn, score, bands

    (loss, found), z, q, codes, drawn, score, bands = measure(jax.random.key(0))
    off = np.asarray(drawn - frames, np.float64)
    rare = np.clip(4 * np.abs(np.stack([frames, drawn]) - 1).max(-1), 0, 1).max(0)
    want = {
        "charbonnier": np.sqrt(off**2 + 1e-6).mean(),
        "haar": np.abs(bands).mean(),
        "temporal": np.abs(off[:, 1:] - off[:, :-1]).mean(),
        "ms_ssim": 1 - score,
        "rarity": (rare[..., None] * off**2).mean(),
        "commitment": np.square(np.asarray(z) - np.asarray(q)).mean(),
        "psnr": np.mean([10 * np.log10(4 / (one**2).mean()) for one in off]),
        "codes_used": len(np.unique(codes)) / 9,
    }
    assert found.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    terms = [name for name in want if hasattr(weights, name)]
    assert len(terms) == 6
    np.testing.assert_allclose(loss, sum(getattr(weights, name) * want[name] for name in terms), rtol=1e-4)


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_commitment_pulls_latents_to_their_codes_and_moves_no_code(quantizer):
    config = world(quantizer=quantizer, codes=9)
    graph, frames = split_module("tokenizer", config)[0], some_frames(2, 2)
    params = tiny.params("tokenizer", config)
    weights = only(commitment=0.5)
    model = nnx.merge(graph, params)
    q = jax.jit(lambda x: model.quantizer(model.encode(x))[0])(frames)

    def loss(params):
        model = nnx.merge(graph, params)
        return tokenizer_loss(model, frames, frames[:1, :1], jax.random.key(0), weights=weights)[0]

    def pull(params):
        return 0.5 * jnp.square(nnx.merge(graph, params).encode(frames) - q).mean()

    got, want = jax.jit(lambda params: [jax.grad(one)(params) for one in (loss, pull)])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    largest = lambda part: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(got[part]))
    assert largest("encoder") > 1e-3
    assert largest("quantizer") == 0


# --- The table of vectors in training

VQ = TrainConfig(
    world=world(quantizer="vq", codes=9, widths=(8,), blocks=0),
    tokenizer=StageConfig(steps=4, batch=4, frames=2, optim=OptimConfig(warmup=0, weight_decay=5.0)),
    tokenizer_loss=only(charbonnier=1.0, commitment=0.1),
    dynamics=StageConfig(frames=8),
    mix=MixConfig(chunks=6, queries=2),
)
SEEN = tiny.make_clip(24).frames.reshape(12, 2, 16, 16, 3)


@pytest.fixture(scope="module")
def stage():
    return tokenizer_stage(VQ, ArraySource({"frames": SEEN}, keys=("frames",)), SEEN[0, 0])


@pytest.fixture(scope="module")
def init(stage):
    return jax.jit(stage.init)


@jax.jit
def latents(params, frames):
    model = nnx.merge(split_module("tokenizer", VQ.world)[0], params)
    return model.encode(to_float(frames)).reshape(-1, 4)


def test_the_first_codebook_holds_the_means_of_what_the_first_encoder_sees(init):
    """Of the frame in the middle of each record."""
    params, other = (init(jax.random.key(seed)) for seed in (0, 1))
    z, book = latents(params, SEEN[None, :, 0]), params["quantizer"]["codebook"][...]
    codes = np.asarray(quantize.nearest(z, book))
    z, book = np.asarray(z), np.asarray(book)
    assert set(codes) == set(range(9))
    means = np.stack([z[codes == code].mean(0) for code in range(9)])
    assert np.square(z - book[codes]).mean() < 1.02 * np.square(z - means[codes]).mean()
    assert np.abs(np.asarray(other["quantizer"]["codebook"]) - book).max() > 1e-3


def test_the_codebook_moves_to_the_averages_and_by_no_step_of_the_optimizer(stage, init):
    """To what the encoder made of the batch before the step; the optimizer, which would let it decay, moves
    encoder and decoder."""
    mesh, optimizer = make_mesh(), make_optimizer(VQ.tokenizer.optim, VQ.tokenizer.steps)
    state = init_state(dataclasses.replace(stage, init=init), optimizer, jax.random.key(0))
    step = make_step(stage, optimizer, mesh, shardings=state_shardings(mesh, state))
    update, batches = jax.jit(quantize.update_codebook), stage.batches(0)
    for number in range(3):
        before, batch = jax.tree.map(np.array, state.params), next(batches)
        key = jax.random.fold_in(jax.random.fold_in(state.key, number), 1)
        book, usage = (before["quantizer"][name][...] for name in ("codebook", "usage"))
        want, used = update(book, usage, latents(before, batch["frames"]), key)
        state, found = step(state, stage.frozen, place_batch(mesh, batch, VQ.tokenizer.batch))
        vq = state.params["quantizer"]
        np.testing.assert_allclose(vq["codebook"][...], want, atol=1e-5)
        np.testing.assert_allclose(vq["usage"][...], used, rtol=1e-5)
        assert np.abs(want - book).max() > 1e-3
        for part in ("encoder", "decoder"):
            gone = jax.tree.map(
                lambda a, b: np.abs(np.asarray(b) - a).max(), before[part], state.params[part]
            )
            assert max(jax.tree.leaves(gone)) > 1e-4
        assert np.isfinite(found["loss"]) and found["codes_used"] > 0.5
    batches.close()


def test_dead_codes_are_revived_in_the_first_steps_and_left_in_the_last(stage, init):
    params = init(jax.random.key(0))
    vq = params["quantizer"]
    vq["codebook"][...] = vq["codebook"][...].at[0].set(90.0)
    vq["usage"][...] = vq["usage"][...].at[0].set(0.01)
    batch = {"frames": jnp.asarray(SEEN[:4])}
    after = jax.jit(lambda params, step: stage.after(params, params, batch, jax.random.key(2), step))
    early, late = (after(params, step)["quantizer"] for step in (2, 3))  # of 4
    assert np.abs(latents(params, batch["frames"]) - early["codebook"][0]).max(-1).min() < 1e-5
    assert early["usage"][0] == np.float32(quantize.FRESH)
    assert (late["codebook"][0] == 90).all() and late["usage"][0] == pytest.approx(0.0099)
    np.testing.assert_array_equal(early["codebook"][1:], late["codebook"][1:])
