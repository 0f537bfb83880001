"""Diffusion of unit-variance data: preconditioning, noise levels, and samplers of one denoiser.

A denoiser D(x, sigma) is the mean of the data given ``x = data + sigma noise``. Source: Karras et al.,
"Elucidating the Design Space of Diffusion-Based Generative Models", 2022 (EDM), with sigma_data = 1.

All samplers follow the same probability flow. DDIM (Song et al., 2021, eta = 0) walks it in the variables
``x / sqrt(1 + sigma^2)``, flow matching (Lipman et al., 2023) in ``x / (1 + sigma)`` at time
``t = sigma / (1 + sigma)``; on the same noise levels both take exactly Euler's steps. Heun's method looks
at the end of each step as well and costs a second call for all but the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Sampler = Literal["euler", "heun", "ddim", "flow"]
Denoiser = Callable[[Float[Array, "..."], Float[Array, ""]], Float[Array, "..."]]
"""From noisy data and its noise level to the mean of the data."""


def precondition(sigma: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], ...]:
    """EDM's ``(skip, out, in)``: ``D = skip x + out F(in x, sigma)``, F of unit variance."""
    total = jnp.sqrt(1 + sigma**2)
    return 1 / total**2, sigma / total, 1 / total


def loss_weight(sigma: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """What makes the squared error of D that of F: one over ``out`` squared."""
    return (1 + sigma**2) / sigma**2


def noise_level(
    i: Int[Array, ""], steps: Int[Array, ""], *, low: float, high: float, rho: float = 7.0
) -> Float[Array, ""]:
    """Level ``i`` of ``steps``: from ``high`` to ``low`` evenly in sigma^(1/rho), then 0 at ``i = steps``."""
    share = i / jnp.maximum(steps - 1, 1)
    ends = high ** (1 / rho), low ** (1 / rho)
    level = (ends[0] + share * (ends[1] - ends[0])) ** rho
    return jnp.where(i < steps, level, 0.0)


def euler_step(denoise: Denoiser, x: Array, sigma: Array, lower: Array) -> Array:
    """Along the flow's slope ``(x - D) / sigma`` from one level to a lower one."""
    clean = denoise(x, sigma)
    return clean + lower / sigma * (x - clean)


def heun_step(denoise: Denoiser, x: Array, sigma: Array, lower: Array) -> Array:
    """Along the mean of the slopes at both ends; the last step, to level 0, is Euler's."""
    slope = (x - denoise(x, sigma)) / sigma
    there = x + (lower - sigma) * slope

    def both() -> Array:
        other = (there - denoise(there, lower)) / lower
        return x + (lower - sigma) * 0.5 * (slope + other)

    return jax.lax.cond(lower > 0, both, lambda: there)


def ddim_step(denoise: Denoiser, x: Array, sigma: Array, lower: Array) -> Array:
    """DDIM's step of ``y = a data + b noise``, ``a = 1 / sqrt(1 + sigma^2)``, ``b = a sigma``."""
    a, a_next = 1 / jnp.sqrt(1 + sigma**2), 1 / jnp.sqrt(1 + lower**2)
    y = a * x
    clean = denoise(x, sigma)
    noise = (y - a * clean) / (a * sigma)
    return (a_next * clean + a_next * lower * noise) / a_next


def flow_step(denoise: Denoiser, x: Array, sigma: Array, lower: Array) -> Array:
    """A step of ``y = (1 - t) data + t noise`` along its velocity ``noise - data``."""
    t, t_next = sigma / (1 + sigma), lower / (1 + lower)
    y = (1 - t) * x
    clean = denoise(x, sigma)
    velocity = (y - clean) / t
    return (y + (t_next - t) * velocity) / (1 - t_next)


STEPS = {"euler": euler_step, "heun": heun_step, "ddim": ddim_step, "flow": flow_step}
"""By the name of the sampler."""


def sample(
    denoise: Denoiser,
    noise: Float[Array, "..."],
    steps: Int[Array, ""],
    *,
    low: float,
    high: float,
    sampler: Sampler = "euler",
) -> Float[Array, "..."]:
    """Draw data from unit noise in some steps of one compiled loop.

    Args:
      denoise: the denoiser.
      noise: standard normal, of the data's shape.
      steps: at least 1; another number is no retrace.
      low, high: lowest and highest noise level; the last step goes from ``low`` to 0, a single one from
        ``high``.
      sampler: ``euler``, ``heun``, or the equals of the first, ``ddim`` and ``flow``.
    """
    level = lambda i: noise_level(i, steps, low=low, high=high)
    step = STEPS[sampler]
    start = (1 + high**2) ** 0.5 * noise  # as much as noisy data: high need not drown it
    return jax.lax.fori_loop(0, steps, lambda i, x: step(denoise, x, level(i), level(i + 1)), start)
