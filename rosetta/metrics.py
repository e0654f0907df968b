"""Metrics of inverted images as the published script computes them.

Images are rounded to 8 bits first. PSNR has peak 255; SSIM a uniform window of 7 x 7 pixels, sample
covariances, each channel by itself, data range 255, mean over the positions where the window lies
inside the image (scikit-image's defaults); LPIPS is AlexNet's, version 0.1.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from common.nets.lpips import lpips

__all__ = ["image_metrics", "psnr", "ssim"]

_WINDOW = 7  # pixels
LEAST = 31  # pixels that AlexNet needs


def image_metrics(perceptual: Any, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR (dB), SSIM and LPIPS of each pair of images, `[images]` each.

    There is no LPIPS of images that AlexNet's pooling leaves nothing of, below 31 pixels.

    Args:
      perceptual: parameters of LPIPS, `common.nets.lpips.load_params("alex")`.
      first, second: `[images, height, width, 3]` in [0, 1].

    Raises:
      ValueError: images of different shapes, not in [0, 1], or smaller than the window.
    """
    first, second = _bytes(first), _bytes(second)
    pair = (jnp.asarray(first / 255, jnp.float32), jnp.asarray(second / 255, jnp.float32))
    found = {"psnr": psnr(first, second), "ssim": ssim(first, second)}
    if min(first.shape[1:3]) >= LEAST:
        found["lpips"] = np.asarray(lpips(perceptual, *pair))
    return found


def psnr(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of images `[images, ...]` in [0, 255], float64."""
    _check(first, second)
    axes = tuple(range(1, first.ndim))
    error = np.square(first - second).mean(axes)
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-12))


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Structural similarity of images `[images, h, w, c]` in [0, 255], see the module.

    Z. Wang et al., IEEE Trans. Image Processing 13, 2004, eq. 13, K1 0.01, K2 0.03.
    """
    _check(first, second)
    if min(first.shape[1:3]) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} x {_WINDOW} pixels, found {first.shape[1:3]}")
    count = _WINDOW**2
    sample = count / (count - 1)
    mean_a, mean_b = _window_mean(first), _window_mean(second)
    variance_a = sample * (_window_mean(first**2) - mean_a**2)
    variance_b = sample * (_window_mean(second**2) - mean_b**2)
    covariance = sample * (_window_mean(first * second) - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ratio = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    ratio /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return ratio.mean((1, 2, 3))


def _window_mean(x: np.ndarray) -> np.ndarray:
    views = np.lib.stride_tricks.sliding_window_view(x, (_WINDOW, _WINDOW), axis=(1, 2))
    return views.mean((-2, -1))


def _bytes(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as the numbers 0 to 255, float64."""
    images = np.asarray(images, np.float64)
    if not (images.min() >= 0 and images.max() <= 1):  # also catches NaN
        raise ValueError(f"image values {images.min():.3g} to {images.max():.3g} are not in [0, 1]")
    return np.round(images * 255)


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(f"images of shapes {first.shape} and {second.shape}")
