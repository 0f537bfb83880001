"""What the tokenizer, the dynamics and the refinement head are trained to make small."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from worldsim.config import MixConfig, RefineLossConfig, Remat, TokenizerLossConfig
from worldsim.models.dynamics import Chunks, Dynamics
from worldsim.models.refine import RefineHead
from worldsim.models.tokenizer import Tokenizer
from worldsim.ops import diffusion, haar, quantize, twohot
from worldsim.ops.attention import KNOWN, PADDING, QUERY
from worldsim.train.crops import unusual


def _gaussian(size: int, *, sigma: float = 1.5, radius: int = 3) -> np.ndarray:
    """A valid-mode Gaussian filter as a matrix ``[size - 2 radius, size]``."""
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    rows = np.zeros((size - 2 * radius, size), np.float32)
    for i in range(len(rows)):
        rows[i, i : i + 2 * radius + 1] = taps
    return rows


def ms_ssim(x: Float[Array, "n h w c"], y: Float[Array, "n h w c"], *, scales: int = 3) -> Float[Array, ""]:
    """Multi-scale structural similarity of images in [-1, 1], 1 at best.

    Wang et al. 2003, with a 7-tap Gaussian, ``scales`` dyadic scales of equal weight, and the
    luminance term at the coarsest only. Scales under 14 pixels, and halves of odd sides, are left out.
    """
    score, c1, c2 = 1.0, 0.02**2, 0.06**2
    halvings = min((side & -side).bit_length() for side in x.shape[1:3])
    scales = max(1, min(scales, halvings, int(np.log2(min(x.shape[1:3]) / 14)) + 1))
    for scale in range(scales):
        down, right = _gaussian(x.shape[1]), _gaussian(x.shape[2])

        def blur(a, down=down, right=right):
            return jnp.einsum("ih,nhwc,jw->nijc", down, a, right)

        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        contrast = (2 * cov + c2) / (vx + vy + c2)
        if scale == scales - 1:
            contrast = contrast * (2 * mx * my + c1) / (mx * mx + my * my + c1)
        score = score * jnp.maximum(contrast.mean((1, 2, 3)), 1e-3) ** (1 / scales)
        x, y = (
            rearrange(a, "n (h i) (w j) c -> n h w c i j", i=2, j=2).mean((-1, -2))
            if scale < scales - 1
            else a
            for a in (x, y)
        )
    return jnp.mean(score)


def tokenizer_loss(
    model: Tokenizer,
    frames: Float[Array, "b t h w c"],
    median: Float[Array, "#b 1 h w c"],
    key: Array,
    *,
    weights: TokenizerLossConfig,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Reconstruction, rarity and commitment of the tokenizer on frames in [-1, 1].

    Args:
      model: the tokenizer.
      frames: clips.
      median: the data's median frame, in [-1, 1]; pixels far from it, in truth or by mistake, weigh more.
      key: draws which clips are decoded from z, and which from the unrounded q, instead of q; and which
        chunks see their neighbours.
      weights: of the terms.

    Returns:
      The loss and its unweighted terms, with the share of codes in use and ``psnr`` in dB: of what was
      decoded here, from q or not, squares or whole frames.
    """
    z = model.encode(frames)
    q, codes = model.quantizer(z)
    kind_key, sides_key = jax.random.split(key)
    kind = jax.random.uniform(kind_key, (z.shape[0], 1, 1, 1, 1))
    latents = jnp.where(kind < weights.soft, model.quantizer.soften(z), q)
    sides = jax.random.bernoulli(sides_key, shape=(*z.shape[:2], 2))
    output = model.decode(jnp.where(kind > 1 - weights.continuous, z, latents), sides=sides)
    error = jnp.sqrt((output - frames) ** 2 + 1e-6)
    rare = jnp.maximum(unusual(frames, median), unusual(jax.lax.stop_gradient(output), median))
    images, drawn = (rearrange(x, "b t h w c -> (b t) h w c") for x in (frames, output))
    bands = haar.fold_chunks((drawn - images)[:, None], spatial=model.config.haar_levels, temporal=0)
    terms = {
        "charbonnier": error.mean(),
        "rarity": (rare[..., None] * jnp.square(output - frames)).mean(),
        "haar": jnp.abs(bands).mean(),
        "commitment": ((z - jax.lax.stop_gradient(q)) ** 2).mean(),
    }
    if weights.ms_ssim and min(images.shape[1:3]) >= 14:
        terms["ms_ssim"] = 1.0 - ms_ssim(images, drawn)
    if weights.temporal and frames.shape[1] > 1:
        terms["temporal"] = jnp.abs(jnp.diff(output - frames, axis=1)).mean()
    loss = sum(getattr(weights, name) * value for name, value in terms.items())
    squared = ((output - frames) ** 2).mean((1, 2, 3, 4)) / 4
    used = jnp.zeros((model.config.codebook,)).at[codes.reshape(-1)].set(1.0)
    metrics = terms | {"psnr": (-10 * jnp.log10(squared + 1e-10)).mean(), "codes_used": used.mean()}
    return jnp.asarray(loss), metrics


OUTCOMES = 0.1
"""Weight of a nat per reward or end beside one per code."""


def dynamics_loss(
    model: Dynamics,
    batch: dict[str, Array],
    key: Array,
    *,
    digits: tuple[int, ...],
    mix: MixConfig,
    strategy: str = "local",
    remat: Remat = "none",
    late: Bool[Array, ""] | bool = False,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of masked codes in the query stream, given the corrupted known stream.

    Args:
      model: the dynamics.
      batch: ``codes [b p h w]``, ``times [b p]``, ``orders [b p]`` and, where the world has them, ``actions``
        and ``condition_NAME``, in any order; ``queries [b q]``: places of the chunks that carry loss, -1 for
        none. ``segments [b p]``, where clips are packed into rows: the clip that each chunk is of, -1 for
        padding; clips don't see one another.
      key: draws masks, corruption and null inputs.
      digits: values per digit of a code.
      mix: shares of clean chunks, null actions and null conditions.
      strategy, remat: see :meth:`Dynamics.two_stream`.
      late: whether ``mix.resampled`` chunks of the known stream are drawn by the model.

    Returns:
      Mean nats per masked code, with ``OUTCOMES`` of those per reward and end where the model tells them, and
      metrics: these and the accuracy.
    """
    clean_key, noise_key, corrupt_key, ratio_key, mask_key, null_key = jax.random.split(key, 6)
    drawn_key = jax.random.fold_in(key, 6)
    codes, rows = batch["codes"].astype(jnp.int32), batch["queries"]
    h, w = codes.shape[2:]
    orders = batch["orders"]
    segments = batch.get("segments", jnp.zeros_like(orders))
    chunks = _number(segments, orders, most=mix.segments)
    noise = _by_chunk(jax.random.uniform, noise_key, chunks) * model.config.max_noise
    clean = _by_chunk(partial(jax.random.bernoulli, p=float(mix.clean)), clean_key, chunks)
    noise = jnp.where(clean, 0.0, noise)
    extras = _drop_inputs(batch, segments, null_key, mix=mix)
    known = Chunks(
        codes=_by_chunk(partial(_corrupt, digits), corrupt_key, chunks, codes, noise),
        times=batch["times"].astype(jnp.float32),
        ids=jnp.stack([segments, orders, jnp.full_like(orders, KNOWN)], axis=-1),
        noise=noise,
        **extras,
    )
    pick = jax.vmap(lambda a, i: a[i])
    query = jax.tree.map(lambda a: pick(a, rows), known)
    target, asked = pick(codes, rows), pick(chunks, rows)
    own = jnp.where(rows < 0, PADDING, query.ids[..., 0])
    ratio = jnp.cos(0.5 * jnp.pi * _by_chunk(jax.random.uniform, ratio_key, asked))[..., None]
    draw = _by_chunk(partial(jax.random.uniform, shape=(h * w,)), mask_key, asked)
    rank = jnp.argsort(jnp.argsort(draw, axis=-1), axis=-1)
    masked = (rank < jnp.ceil(ratio * h * w)).reshape(target.shape)
    query = dataclasses.replace(
        query,
        codes=jnp.where(masked, model.mask, target),
        noise=jnp.zeros_like(query.noise),
        ids=jnp.stack([own, query.ids[..., 1], jnp.full_like(own, QUERY)], axis=-1),
    )
    if mix.resampled:
        own_draws = partial(
            _resample, model, query=query, target=target, rows=rows, asked=asked, key=drawn_key,
            how=(mix.resampled, strategy),
        )  # fmt: skip
        known = jax.lax.cond(late, own_draws, lambda known: known, known)
    read, asked_for = model.streams(known, query, strategy=strategy, remat=remat)
    logits = model.logits(asked_for)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    masked &= (own != PADDING)[..., None, None]
    count = jnp.maximum(masked.sum(), 1)
    nats = -(log_p * masked).sum() / count
    right = ((logits.argmax(-1) == target) & masked).sum() / count
    told = outcome_nats(model.tell(read), batch, there=segments != PADDING)
    loss = nats + OUTCOMES * sum(told.values(), jnp.float32(0.0))
    return loss, {"nats_per_code": nats, "accuracy": right} | told


def _resample(
    model: Dynamics,
    known: Chunks,
    *,
    query: Chunks,
    target: Int[Array, "b q h w"],
    rows: Int[Array, "b q"],
    asked: Int[Array, "b q 2"],
    key: Array,
    how: tuple[float, str],
) -> Chunks:
    """The known stream with a share of the query chunks as the model draws them, all masked codes at once.

    They are told as clean, as in a rollout. Without gradients through the draws: scheduled sampling (Bengio
    et al., https://arxiv.org/abs/1506.03099). ``asked`` numbers the query chunks as :func:`_number` does;
    ``how`` is the share and the strategy of attention.
    """
    draw_key, which_key = jax.random.split(key)
    logits = jax.lax.stop_gradient(model.two_stream(known, query, strategy=how[1]))
    drawn = _by_chunk(jax.random.categorical, draw_key, asked, logits)
    made = jnp.where(query.codes == model.mask, drawn, target)
    put = _by_chunk(partial(jax.random.bernoulli, p=how[0]), which_key, asked) & (rows >= 0)
    place = jnp.where(put, rows, known.codes.shape[1])
    write = jax.vmap(lambda old, at, new: old.at[at].set(new, mode="drop"))
    noise = write(known.noise, place, jnp.zeros(place.shape))
    return dataclasses.replace(known, codes=write(known.codes, place, made), noise=noise)


def outcome_nats(
    told: dict[str, Float[Array, "b p v"]], batch: dict[str, Array], *, there: Bool[Array, "b p"]
) -> dict[str, Float[Array, ""]]:
    """Mean nats per chunk of rewards and ends under what the model tells of them, of those chunks that are
    ``there``."""
    out = {}
    if "rewards" in told:
        out["nats_per_reward"] = twohot.cross_entropy(told["rewards"], batch["rewards"].astype(jnp.float32))
    if "ends" in told:
        sign = jnp.where(batch["ends"], 1.0, -1.0)
        out["nats_per_end"] = jax.nn.softplus(-sign * told["ends"][..., 0])
    count = jnp.maximum(there.sum(), 1)
    return {name: (nats * there).sum() / count for name, nats in out.items()}


def _number(segments: Int[Array, "b p"], orders: Int[Array, "b p"], *, most: int) -> Int[Array, "b p 2"]:
    """The number of each chunk's clip in the batch, of at most ``most`` in a row, and its order in it.

    Random numbers are drawn by these two and not by where a chunk lies, so that a batch that is spread over
    devices in stripes is the same batch, and a clip has the same ones alone and beside others.
    """
    row = jnp.arange(orders.shape[0])[:, None] * most
    return jnp.stack([row + jnp.maximum(segments, 0), orders], axis=-1)


def _by_chunk(draw: Callable[..., Array], key: Array, chunks: Int[Array, "b p 2"], *rows: Array) -> Array:
    """``draw(key, *row)`` for each chunk with a key of its own; see :func:`_number`."""

    def one(chunk: Array, *values: Array) -> Array:
        return draw(jax.random.fold_in(jax.random.fold_in(key, chunk[0]), chunk[1]), *values)

    return jax.vmap(jax.vmap(one))(chunks, *rows)


def _corrupt(
    digits: tuple[int, ...], key: Array, codes: Int[Array, "h w"], noise: Float[Array, ""]
) -> Int[Array, "h w"]:
    return quantize.corrupt_codes(codes[None, None], noise[None, None], digits, key)[0, 0]


def _drop_inputs(
    batch: dict[str, Array], segments: Int[Array, "b p"], key: Array, *, mix: MixConfig
) -> dict[str, Any]:
    """Actions and conditions with those of some clips made null.

    In half of the clips that lose their actions, only those from some row of the plan on are lost, as
    when a recorded clip is continued freely.
    """
    action_key, cut_key, half_key, condition_key = jax.random.split(key, 4)
    orders, b = batch["orders"], batch["codes"].shape[0]
    clips, clip = b * mix.segments, _number(segments, orders, most=mix.segments)[..., 0]
    length = jnp.zeros(clips, jnp.int32).at[clip].add(segments != PADDING)
    cut = jax.random.randint(cut_key, (clips,), 0, jnp.maximum(length, 1))
    cut = cut * jax.random.bernoulli(half_key, 0.5, (clips,))
    action = jax.random.bernoulli(action_key, float(mix.null_actions), (clips,))
    drop_action = action[clip] & (orders >= cut[clip])
    drop_condition = jax.random.bernoulli(condition_key, float(mix.null_conditions), (clips,))[clip]

    def null(values: Array, drop: Array) -> Array:
        drop = drop.reshape(*drop.shape, *([1] * (values.ndim - 2)))
        if jnp.issubdtype(values.dtype, jnp.floating):
            return jnp.where(drop, jnp.nan, values)
        return jnp.where(drop, -1, values.astype(jnp.int32))

    conditions = {
        name.removeprefix("condition_"): null(values, drop_condition)
        for name, values in batch.items()
        if name.startswith("condition_")
    }
    actions = null(batch["actions"], drop_action) if "actions" in batch else None
    return {"actions": actions, "conditions": conditions}


def refine_loss(
    model: RefineHead,
    z: Float[Array, "b p h w z"],
    q: Float[Array, "b p h w z"],
    key: Array,
    *,
    weights: RefineLossConfig,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Squared error of the denoised residual, weighted as EDM does; a regression head's without noise.

    Args:
      model: the head.
      z, q: latents of clips of chunks, as encoded and as quantized.
      key: draws noise levels (one a clip), noise, dropped neighbours and clips without codes.
      weights: of the noise levels and the clips without codes.

    Returns:
      The loss, and it beside the share of the residual's variance left by the denoiser at all levels.
    """
    level_key, noise_key, sides_key, null_key = jax.random.split(key, 4)
    b, p = z.shape[:2]
    residual = (z - q) / model.scale[...]
    residual = jax.lax.stop_gradient(residual)
    sides = jax.random.bernoulli(sides_key, shape=(b, p, 2))
    null = jax.random.bernoulli(null_key, weights.null, (b,))
    if model.config.kind == "regression":
        sigma, x = jnp.full(b, model.config.high), jnp.zeros_like(residual)
        weight = jnp.ones(b)
    else:
        sigma = jnp.exp(weights.noise_mean + weights.noise_std * jax.random.normal(level_key, (b,)))
        x = residual + sigma[:, None, None, None, None] * jax.random.normal(noise_key, residual.shape)
        weight = diffusion.loss_weight(sigma)
    clean = model.denoise(x, sigma, model.condition(q, sides=sides, null=null))
    error = ((clean - residual) ** 2).mean((1, 2, 3, 4))
    loss = (weight * error).mean()
    return loss, {"weighted": loss, "left": error.mean()}
