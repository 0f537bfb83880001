"""Masked sampling: how many codes a pass reveals, which ones, and what they become.

Source: Chang et al., "MaskGIT", 2022, except that a place's rank is how certain its *distribution* is and
not how likely the code is that was drawn there. Ranking the draws keeps the likely ones and draws the others
again: small things that may be in several places then end up nowhere.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_after(
    step: Int[Array, ""], steps: Int[Array, ""], tokens: int, *, leads: Int[Array, ""] | int = 0
) -> Int[Array, ""]:
    """Codes still masked after pass ``step`` of ``steps`` (0-based); 0 after the last, one fewer at least
    after each (``leads < steps <= tokens``).

    After the first ``leads`` passes, which reveal a code each, a quadratic fall: what is certain comes first,
    and the last passes reveal few codes each, so that codes which depend on one another are seldom
    drawn in the same pass.
    """
    one_less = jnp.asarray(tokens - 1 - step, jnp.int32)
    left = 1.0 - (step + 1 - leads) / (steps - leads)
    falling = jnp.floor((tokens - leads) * left * left).astype(jnp.int32)
    falling = jnp.maximum(falling, jnp.asarray(steps - 1 - step, jnp.int32))
    return jnp.where(step < leads, one_less, falling)


def revised(revision: Int[Array, ""], tokens: int) -> Bool[Array, "n"]:
    """Which codes a revision (counted from 0) hides and draws anew: about half of them, then all others.

    Two revisions so draw every code once more. Which these are is the same for all clips and keys.
    """
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), revision // 2)
    return jax.random.bernoulli(key, 0.5, (tokens,)) ^ (revision % 2 == 1)


def sample_codes(
    logits: Float[Array, "n v"], key: Array, *, temperature: Float[Array, ""]
) -> Int[Array, "n"]:
    """Draw a code per token at a temperature; 0 takes the likeliest.

    One uniform number a token, looked up in the sums of the weights so far: of blocks of codes first, then of
    the codes of the block that it falls into.
    """
    n, v = logits.shape
    side = math.isqrt(v - 1) + 1
    logits = logits.astype(jnp.float32) - logits.max(-1, keepdims=True)
    weights = jnp.exp(logits / jnp.where(temperature > 0, temperature, 1.0))
    weights = jnp.pad(weights, ((0, 0), (0, side * side - v))).reshape(n, side, side)
    blocks = jnp.cumsum(weights.sum(-1), axis=-1)
    point = jax.random.uniform(key, (n,)) * blocks[:, -1]
    block = _first_above(blocks, point)
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    before = jnp.where(block > 0, jnp.take_along_axis(blocks, block[:, None] - 1, axis=1)[:, 0], 0.0)
    drawn = block * side + _first_above(jnp.cumsum(inside, axis=-1), point - before)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def _first_above(sums: Float[Array, "n k"], point: Float[Array, "n"]) -> Int[Array, "n"]:
    """Where growing sums first exceed a point; where rounding lets none, the last that grew."""
    above = sums > jnp.minimum(point, jnp.nextafter(sums[:, -1], 0.0))[:, None]
    return jnp.argmax(above, axis=-1)


def certainty(logits: Float[Array, "n v"]) -> Float[Array, "n"]:
    """The log-probability of each token's likeliest code."""
    logits = logits.astype(jnp.float32)
    return logits.max(-1) - jax.nn.logsumexp(logits, axis=-1)


def keep_least_certain(
    certainty: Float[Array, "n"],
    masked: Bool[Array, "n"],
    left: Int[Array, ""],
    *,
    doubt: Float[Array, ""] | float = 0.0,
    lead: Bool[Array, ""] | bool = False,
) -> Bool[Array, "n"]:
    """The new mask: of the masked tokens, the least certain stay masked, or in a ``lead`` the most certain.

    Args:
      certainty: of each token, a log-probability.
      masked: those not yet known.
      left: how many stay masked at most.
      doubt: more are known at once as long as all of them but the last sum up to no less than ``-doubt``, so
        that together they are as likely as ``exp(-doubt)`` at least (entropy-bounded unmasking: Ben-Hamu
        et al., https://arxiv.org/abs/2505.24857).
      lead: reveal what is least certain, unless all tokens may be known at once. It decides what happens, and
        a draw of it alone gives every outcome its due: what happens seldom lies behind many codes that are
        likely to stay as they are, and none of them, drawn first, would begin it.
    """
    ranked = jnp.where(masked, certainty, jnp.inf)
    places = jnp.argsort(ranked, axis=-1)
    surest = ranked[places][::-1]
    sums = jnp.cumsum(jnp.where(jnp.isinf(surest), 0.0, surest))
    before = jnp.pad(sums, (1, 0))[:-1]  # and not less their own, which would round small doubts away
    at_once = jnp.sum((before >= -doubt) & ~jnp.isinf(surest))
    order = jnp.argsort(places, axis=-1)
    count = masked.sum()
    leading = masked & (order >= count - left) & (at_once < count)
    return jnp.where(lead, leading, masked & (order < jnp.minimum(left, count - at_once)))
