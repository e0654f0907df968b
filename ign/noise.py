"""The noise an idempotent network starts from: standard normal, or with the data's spectrum.

The second has, at each frequency and channel, the mean and deviation that the Fourier transforms of
real images have there (Shocher et al., ICLR 2024, section on the noise distribution, as reported by
independent re-implementations). The statistics are fixed once and stored with the model, not taken
from each batch. Two forms:

    half       real and imaginary parts are independent at every frequency, and the real part of the
               inverse transform is kept. That drops half of the random power, except at the four
               frequencies that are their own conjugate: each pixel has little more than half of
               the data's variance.
    hermitian  the random part is the transform of a real white-noise image, so nothing is dropped:
               each pixel has the data's variance, if that is stationary.

The mean of either is the mean image.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

FORMS = ("half", "hermitian")
_STATISTICS = ("mean_real", "mean_imag", "std_real", "std_imag")


class Spectrum(struct.PyTreeNode):
    """Statistics of Fourier transforms of images, per frequency and channel.

    Attributes:
        mean_real, mean_imag, std_real, std_imag: `[height, width, channels]`, float32, of
            `fft2` without normalisation.
        form: "half" or "hermitian", see the module.
    """

    mean_real: jax.Array
    mean_imag: jax.Array
    std_real: jax.Array
    std_imag: jax.Array
    form: str = struct.field(pytree_node=False, default="half")


def fit_spectrum(images: np.ndarray, form: str = "half") -> Spectrum:
    """Statistics of `images [count, height, width, channels]`, on the host in float64.

    Raises:
        ValueError: unknown form, or fewer than 2 images.
    """
    if form not in FORMS:
        raise ValueError(f"form of the noise is {form!r}, expected one of {FORMS}")
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"expected [count > 1, height, width, channels], got {images.shape}")
    shape = images.shape[1:]
    total, squares = np.zeros((2, *shape)), np.zeros((2, *shape))
    # Centred by the mean image, so that the squares do not cancel.
    centre = images.mean(axis=0, dtype=np.float64)
    for start in range(0, len(images), 1024):
        transform = np.fft.fft2(images[start : start + 1024] - centre, axes=(1, 2))
        for part, values in enumerate((transform.real, transform.imag)):
            total[part] += values.sum(axis=0)
            squares[part] += np.square(values).sum(axis=0)
    mean = total / len(images)
    std = np.sqrt(np.maximum(squares / len(images) - mean**2, 0.0))
    offset = np.fft.fft2(centre, axes=(0, 1))
    arrays = (mean[0] + offset.real, mean[1] + offset.imag, std[0], std[1])
    return _spectrum(arrays, form)


def sample(
    spectrum: Spectrum | None, key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Noise `[count, height, width, channels]` (any shape without a spectrum), float32.

    Args:
        spectrum: from `fit_spectrum`; None is the standard normal distribution.
        key: random key.
        shape: of the result.

    Raises:
        ValueError: the images of the spectrum have another shape.
    """
    if spectrum is None:
        return jax.random.normal(key, shape)
    if shape[1:] != spectrum.mean_real.shape:
        raise ValueError(f"noise {shape} from a spectrum of images {spectrum.mean_real.shape}")
    if spectrum.form == "half":
        real, imag = jax.random.normal(key, (2, *shape))
    else:
        real, imag = _white(key, shape)
    transform = jax.lax.complex(
        spectrum.mean_real[None] + spectrum.std_real[None] * real,
        spectrum.mean_imag[None] + spectrum.std_imag[None] * imag,
    )
    return jnp.fft.ifft2(transform, axes=(1, 2)).real


def _white(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Real and imaginary part, each of variance 1, of the transform of real white noise.

    At frequencies that are their own conjugate the imaginary part is 0 and the real part has all of
    the variance; elsewhere each part has half of it.
    """
    height, width = shape[1:3]
    transform = jnp.fft.fft2(jax.random.normal(key, shape), axes=(1, 2))
    rows, columns = ((-np.arange(n) % n) == np.arange(n) for n in (height, width))
    own = np.logical_and.outer(rows, columns)
    scale = np.where(own, 1.0, np.sqrt(2.0)) / np.sqrt(height * width)
    scale = jnp.asarray(scale[None, :, :, None], jnp.float32)
    return transform.real * scale, transform.imag * scale


def to_arrays(spectrum: Spectrum | None) -> dict[str, jax.Array]:
    """The statistics by name, to be saved with the model; empty for the standard normal."""
    if spectrum is None:
        return {}
    return {name: getattr(spectrum, name) for name in _STATISTICS}


def from_arrays(arrays: dict[str, np.ndarray], form: str) -> Spectrum | None:
    """The inverse of `to_arrays`.

    Raises:
        KeyError: a statistic is missing.
    """
    if not arrays:
        return None
    return _spectrum([arrays[name] for name in _STATISTICS], form)


def _spectrum(arrays: Sequence[np.ndarray], form: str) -> Spectrum:
    values = {n: jnp.asarray(a, jnp.float32) for n, a in zip(_STATISTICS, arrays, strict=True)}
    return Spectrum(form=form, **values)
