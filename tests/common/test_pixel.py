"""Tests of PSNR and SSIM against closed forms and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from common.metrics import pixel

mse, psnr = jax.jit(pixel.mse), jax.jit(pixel.psnr)
ssim = jax.jit(pixel.ssim, static_argnames="data_range")


def pairs(channels=3, shape=(20, 17)):
    random = np.random.default_rng(0)
    x = random.uniform(size=(4, *shape, channels)).astype(np.float32)
    noise = random.normal(size=x.shape) * np.asarray([0.01, 0.05, 0.2, 0.5]).reshape(4, 1, 1, 1)
    return x, np.clip(x + noise, 0, 1).astype(np.float32)


def test_psnr_of_a_constant_difference():
    x = jnp.full((1, 4, 4, 1), 0.5)
    np.testing.assert_allclose(psnr(x, x + 0.1), 20, rtol=1e-5)
    np.testing.assert_allclose(mse(x, x + 0.1), 0.01, rtol=1e-5)
    assert psnr(x, x)[0] == np.inf


def test_psnr_equals_scikit_image():
    x, y = pairs()
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(x, y), expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(channels):
    x, y = pairs(channels)
    expected = [
        structural_similarity(a.astype(np.float64), b.astype(np.float64), data_range=1,
                              channel_axis=-1, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y), expected, atol=1e-5)


def test_ssim_of_equal_and_of_constant_images():
    x, _ = pairs()
    np.testing.assert_allclose(ssim(x, x), 1, atol=1e-6)
    a, b = jnp.full((1, 11, 11, 1), 0.2), jnp.full((1, 11, 11, 1), 0.6)
    np.testing.assert_allclose(ssim(a, b), (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rtol=1e-4)


def test_ssim_scales_with_the_range_and_has_a_gradient():
    x, y = pairs()
    np.testing.assert_allclose(ssim(255 * x, 255 * y, 255.0), ssim(x, y), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(ssim(x, z))))(y)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_bad_shapes_are_refused():
    x, y = pairs()
    with pytest.raises(ValueError, match="of one shape"):
        psnr(x, y[:2])
    with pytest.raises(ValueError, match="needs 11 x 11 pixels, found 10 x 17"):
        ssim(x[:, :10], y[:, :10])
