"""Distances between pairs of images in pixel space: mean squared error, PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["mse", "psnr", "ssim", "ssim_map"]

_WINDOW = 11  # pixels
_SIGMA = 1.5  # pixels
_K1, _K2 = 0.01, 0.03


def mse(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of each pair.

    Args:
        x: `[batch, height, width, channels]`.
        y: like `x`.

    Returns:
        `[batch]`.

    Raises:
        ValueError: the shapes differ or do not have four axes.
    """
    _check(x, y)
    return jnp.mean(jnp.square(x - y), axis=(1, 2, 3))


def psnr(x: jax.Array, y: jax.Array, data_range: float = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio of each pair in dB, `10 log10(data_range^2 / mse)`.

    Args:
        x: `[batch, height, width, channels]`.
        y: like `x`.
        data_range: difference between the largest and smallest possible value.

    Returns:
        `[batch]`, infinite for equal images.

    Raises:
        ValueError: the shapes differ or do not have four axes.
    """
    return 20.0 * jnp.log10(data_range) - 10.0 * jnp.log10(mse(x, y))


def ssim(x: jax.Array, y: jax.Array, data_range: float = 1.0) -> jax.Array:
    """Mean structural similarity of each pair, the average of `ssim_map`.

    Args:
        x: `[batch, height, width, channels]`, height and width at least 11.
        y: like `x`.
        data_range: difference between the largest and smallest possible value.

    Returns:
        `[batch]`, 1 for equal images.

    Raises:
        ValueError: the shapes differ, do not have four axes or are smaller than the window.
    """
    return jnp.mean(ssim_map(x, y, data_range), axis=(1, 2, 3))


def ssim_map(x: jax.Array, y: jax.Array, data_range: float = 1.0) -> jax.Array:
    """Structural similarity of each pair around each position.

    Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE TIP 2004, eq. 13: Gaussian window of 11 x 11 pixels with standard
    deviation 1.5, K1 = 0.01, K2 = 0.03, population covariances, where the window lies inside the
    image. Channels are compared one by one.

    Args:
        x: `[batch, height, width, channels]`, height and width at least 11, values from 0 to
            `data_range`.
        y: like `x`.
        data_range: difference between the largest and smallest possible value.

    Returns:
        `[batch, height - 10, width - 10, channels]`; position (0, 0) is the window whose centre is
        pixel (5, 5).

    Raises:
        ValueError: the shapes differ, do not have four axes or are smaller than the window.
    """
    _check(x, y)
    if min(x.shape[1:3]) < _WINDOW:
        raise ValueError(
            f"SSIM needs {_WINDOW} x {_WINDOW} pixels, found {x.shape[1]} x {x.shape[2]}")
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    # Subtracting one constant from both images changes no covariance and avoids cancellation in it.
    offset = data_range / 2
    x, y = x - offset, y - offset
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + offset, mean_y + offset
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return luminance * structure


def _blur(x: jax.Array) -> jax.Array:
    """Separable Gaussian filter of each channel, without padding."""
    position = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(position**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).astype(x.dtype)
    for axis in (1, 2):
        count = x.shape[axis] - _WINDOW + 1
        x = sum(lax.slice_in_dim(x, start, start + count, axis=axis) * weight
                for start, weight in enumerate(weights))
    return x


def _check(x: jax.Array, y: jax.Array) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"expected two batches [batch, height, width, channels] of one shape, "
                         f"found {tuple(x.shape)} and {tuple(y.shape)}")
