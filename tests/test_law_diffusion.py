"""Laws of diffusion: preconditioning, noise levels, and samplers that are one another in other variables."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldsim.ops import diffusion

pytestmark = pytest.mark.law

MEAN, DEVIATION = 0.7, 0.4


def gaussian(x, sigma):
    """The exact denoiser of data that is normal with MEAN and DEVIATION."""
    share = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    return MEAN + share * (x - MEAN)


def drawn(sampler, steps, *, denoise=gaussian, count=4000):
    noise = jax.random.normal(jax.random.key(0), (count,))
    run = partial(diffusion.sample, denoise, low=0.02, high=10.0, sampler=sampler)
    return np.asarray(jax.jit(run)(noise, jnp.int32(steps)))


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("sampler", ["ddim", "flow"])
def test_ddim_and_flow_take_the_steps_of_euler(sampler, steps):
    """For a denoiser with no closed form as well."""
    bent = lambda x, sigma: jnp.tanh(x) / (1 + 0.3 * sigma) + 0.1 * jnp.sin(3 * x)
    for denoise in (gaussian, bent):
        np.testing.assert_allclose(
            drawn(sampler, steps, denoise=denoise), drawn("euler", steps, denoise=denoise), atol=2e-4
        )


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_many_steps_draw_the_distribution(sampler):
    x = drawn(sampler, 64)
    assert abs(x.mean() - MEAN) < 0.05
    assert abs(x.std() - DEVIATION) < 0.03


def test_heun_is_nearer_than_euler_and_one_step_is_the_mean():
    """At 24 steps, against the flow followed to its end."""
    far = drawn("heun", 256)
    errors = {sampler: np.abs(drawn(sampler, 24) - far).mean() for sampler in ("euler", "heun")}
    assert errors["heun"] < 0.5 * errors["euler"]
    assert drawn("euler", 1).std() < 0.1 * DEVIATION  # all the detail is in the later steps


def test_levels_fall_from_high_to_low_to_nothing():
    levels = [float(diffusion.noise_level(jnp.int32(i), jnp.int32(5), low=0.05, high=8.0)) for i in range(6)]
    np.testing.assert_allclose([levels[0], levels[4], levels[5]], [8.0, 0.05, 0.0], rtol=1e-5)
    steps = np.diff(np.asarray(levels[:5]) ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert float(diffusion.noise_level(jnp.int32(0), jnp.int32(1), low=0.05, high=8.0)) == pytest.approx(8.0)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_preconditioning_keeps_unit_variance_in_and_out(sigma):
    """Input and target of the network, for data of unit variance; and the weight that undoes the output's."""
    keys = jax.random.split(jax.random.key(1))
    data, noise = (jax.random.normal(key, (100_000,)) for key in keys)
    x = data + sigma * noise
    skip, out, inward = diffusion.precondition(jnp.float32(sigma))
    assert float((inward * x).std()) == pytest.approx(1, abs=0.02)
    assert float(((data - skip * x) / out).std()) == pytest.approx(1, abs=0.02)
    assert float(diffusion.loss_weight(jnp.float32(sigma)) * out**2) == pytest.approx(1, rel=1e-4)
