"""Facts of the noise with the data's spectrum: mean, variance, no point symmetry, storage."""

import jax
import numpy as np
import pytest

from ign import noise


@pytest.fixture(scope="module")
def images():
    """Smooth random images of stationary statistics around an asymmetric mean, 12 x 10, colour."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(600, 12, 10, 3))
    smooth = sum(np.roll(white, shift, axis=axis) for shift in (0, 1, 2) for axis in (1, 2))
    mean = np.linspace(-1, 1, 12)[:, None, None] * np.array([1.0, 0.5, -0.3])
    return (smooth + mean).astype(np.float32)


def own_share(spectrum):
    """Share of the power at the frequencies of a 12 x 10 image that are their own conjugate."""
    power = np.square(spectrum.std_real) + np.square(spectrum.std_imag)
    return float(power[::6, ::5].sum() / power.sum())


@pytest.mark.parametrize("form", noise.FORMS)
def test_mean_variance_and_no_point_symmetry(images, form):
    spectrum = noise.fit_spectrum(images, form)
    z = np.asarray(noise.sample(spectrum, jax.random.key(0), (2000, 12, 10, 3)))
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axis=0), images.mean(axis=0), atol=0.3)  # 5 deviations
    assert abs(float(np.mean(z.mean(axis=0) - images.mean(axis=0)))) < 0.05
    # Half of the power is lost, except at the frequencies that are their own conjugate.
    own = own_share(spectrum)
    ratio = 0.5 + 0.5 * own if form == "half" else 1.0
    assert 0.01 < own < 0.15
    assert z.var(axis=0).mean() / images.var(axis=0).mean() == pytest.approx(ratio, rel=0.03)
    # Those are symmetric about a point; nothing else may be, as all is with a real Gaussian factor.
    z = z - z.mean(axis=0)
    turned = np.roll(z[:, ::-1, ::-1], (1, 1), axis=(1, 2))
    symmetry = np.mean(z * turned) / np.mean(z * z)
    assert symmetry == pytest.approx(own / ratio, abs=0.03)


def test_neighbours_correlate_as_in_the_data(images):
    spectrum = noise.fit_spectrum(images, "hermitian")
    z = np.asarray(noise.sample(spectrum, jax.random.key(1), (500, 12, 10, 3)))
    z = z - z.mean(axis=0)
    real = images - images.mean(axis=0)
    for axis in (1, 2):
        expected = np.mean(real * np.roll(real, 1, axis)) / np.mean(real * real)
        found = np.mean(z * np.roll(z, 1, axis)) / np.mean(z * z)
        assert found == pytest.approx(expected, abs=0.03) and expected > 0.2


def test_statistics_are_those_of_the_transform(images):
    spectrum = noise.fit_spectrum(images)
    transform = np.fft.fft2(images.astype(np.float64), axes=(1, 2))
    np.testing.assert_allclose(spectrum.mean_real, transform.real.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(spectrum.std_imag, transform.imag.std(axis=0), rtol=1e-4, atol=1e-3)


def test_storage_and_mistakes(images):
    spectrum = noise.fit_spectrum(images, "hermitian")
    stored = {k: np.asarray(v) for k, v in noise.to_arrays(spectrum).items()}
    again = noise.from_arrays(stored, "hermitian")
    key = jax.random.key(2)
    shape = (3, 12, 10, 3)
    np.testing.assert_array_equal(
        noise.sample(spectrum, key, shape), noise.sample(again, key, shape)
    )
    assert noise.from_arrays(noise.to_arrays(None), "normal") is None
    normal = np.asarray(noise.sample(None, key, (4000, 2)))
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    with pytest.raises(ValueError, match=r"noise \(3, 8, 8, 3\) from a spectrum of .*12, 10, 3"):
        noise.sample(spectrum, key, (3, 8, 8, 3))
    with pytest.raises(ValueError, match="'pink', expected one of"):
        noise.fit_spectrum(images, "pink")
    with pytest.raises(ValueError, match="count > 1"):
        noise.fit_spectrum(images[:1])
