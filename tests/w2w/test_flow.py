"""Flow matching: exact sampling of a Gaussian, invariants of the loss, classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w.diffusion import flow


def test_velocity_is_noise_minus_image():
    rng = np.random.default_rng(0)
    image, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 1)), jnp.float32) for _ in range(2))
    times = jnp.array([0.1, 0.5, 0.9])
    noisy = flow.add_noise(image, noise, times)
    velocity = (noisy - image) / times[:, None, None, None]
    np.testing.assert_allclose(velocity, noise - image, atol=1e-5)  # divided by 0.1


def test_loss_is_the_velocity_error():
    rng = np.random.default_rng(1)
    image, noise, guess = (
        jnp.asarray(rng.normal(size=(3, 4, 4, 1)), jnp.float32) for _ in range(3)
    )
    times = jnp.array([0.1, 0.5, 0.9])
    noisy = flow.add_noise(image, noise, times)
    shaped = times[:, None, None, None]
    error = (noisy - guess) / shaped - (noisy - image) / shaped
    found = flow.velocity_loss(guess, image, times)
    np.testing.assert_allclose(found, (error**2).mean((1, 2, 3)), rtol=1e-4)
    assert (flow.velocity_loss(image, image, times) == 0).all()


def gaussian_denoiser(mean, std):
    """E[x | x_t] for independent Gaussian pixels."""

    def denoise(x, times, t):
        gain = (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2)
        return mean + gain * (x - (1 - t) * mean)

    return denoise


def test_sampler_draws_from_the_data_distribution():
    # The flow of a Gaussian is the affine map noise -> mean + std * noise.
    mean, std = 0.3, 0.5
    noise = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    errors = []
    for steps in (8, 32):
        images = flow.sample(gaussian_denoiser(mean, std), noise, steps)
        errors.append(float(jnp.abs(images - (mean + std * noise)).max()))
    assert errors[1] < 0.04
    assert errors[1] < errors[0]


def test_shift_spends_steps_at_high_noise():
    plain, shifted = flow.time_grid(10), flow.time_grid(10, 3.0)
    for grid in (plain, shifted):
        assert float(grid[0]) == 1.0 and float(grid[-1]) == 0.0
        assert (jnp.diff(grid) < 0).all()
    assert (shifted[1:-1] > plain[1:-1]).all()


def test_guidance():
    one, other = jnp.ones((2, 2)), jnp.zeros((2, 2))
    np.testing.assert_array_equal(flow.guided(one, other, 1.0), one)
    np.testing.assert_array_equal(flow.guided(one, other, 3.0), 3 * one)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampler_equals_a_written_out_loop_of_heun_steps(steps):
    noise = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))

    def denoise(x, times, t):  # depends on both forms of the time
        return jnp.tanh(x * (1 + times.reshape(-1, 1, 1, 1))) * jnp.where(t > 0.5, 1.0, 0.7)

    def velocity(x, t):
        return (x - denoise(x, jnp.full((2,), t), t)) / max(float(t), flow.MIN_TIME)

    grid = flow.time_grid(steps, 1.5)
    x = noise
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        first = velocity(x, t)
        x = x + (s - t) * 0.5 * (first + velocity(x + (s - t) * first, s))
    expected = denoise(x, jnp.full((2,), grid[-2]), grid[-2])
    np.testing.assert_allclose(flow.sample(denoise, noise, steps, 1.5), expected, atol=1e-6)


def test_times_are_logit_normal_and_spread_over_each_batch():
    mean, std, count = 0.3, 1.2, 8
    keys = jax.random.split(jax.random.key(0), 4000)
    times = jax.vmap(lambda key: flow.sample_times(key, count, mean, std))(keys)
    logits = jnp.log(times) - jnp.log1p(-times)
    # Each place of the batch has the whole distribution: standard errors are 0.02 and 0.014.
    np.testing.assert_allclose(logits.mean(axis=0), mean, atol=0.08)
    np.testing.assert_allclose(logits.std(axis=0), std, atol=0.06)
    # One time in each eighth of the quantiles, whatever the offset.
    quantiles = jax.scipy.stats.norm.cdf((logits - mean) / std)
    gaps = jnp.diff(jnp.sort(quantiles, axis=1), axis=1)
    np.testing.assert_allclose(gaps, 1 / count, atol=1e-4)
