"""Masked sampling: how many codes a pass reveals, which ones, and what they become.

Source: Chang et al., "MaskGIT", 2022; the noise on the confidence after Besnier and Chen, 2023.
Greedy unmasking copies the last frame, so confidence carries Gumbel noise that fades with the passes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_after(step: Int[Array, ""], steps: Int[Array, ""], tokens: int) -> Int[Array, ""]:
    """Codes still masked after pass ``step`` of ``steps`` (0-based); 0 after the last, one fewer at least
    after each (``steps <= tokens``).

    A quadratic fall: the first passes reveal what is certain, the last ones few codes each, so that
    codes which depend on one another are seldom drawn in the same pass.
    """
    left = 1.0 - (step + 1) / steps
    falling = jnp.floor(tokens * left * left).astype(jnp.int32)
    return jnp.maximum(falling, jnp.asarray(steps - 1 - step, jnp.int32))


def sample_codes(
    logits: Float[Array, "n v"], key: Array, *, temperature: Float[Array, ""]
) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """Draw a code per token at a temperature (0 takes the likeliest) with its log-probability.

    Returns:
      The codes and ``log p`` of each under the untempered distribution.
    """
    logits = logits.astype(jnp.float32)
    noise = jax.random.gumbel(key, logits.shape)
    codes = jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1)[..., 0]
    return codes, log_p


def keep_most_confident(
    confidence: Float[Array, "n"], masked: Bool[Array, "n"], left: Int[Array, ""]
) -> Bool[Array, "n"]:
    """The new mask: of the masked tokens, the ``left`` least confident stay masked."""
    ranked = jnp.where(masked, confidence, jnp.inf)
    order = jnp.argsort(jnp.argsort(ranked, axis=-1), axis=-1)
    return masked & (order < left)
