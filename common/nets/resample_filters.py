"""Low-pass filters of alias-free networks, as banded matrices along one axis or radial kernels.

T. Karras et al., "Alias-Free Generative Adversarial Networks", NeurIPS 2021, appendix C: Kaiser
windows whose transition band is given by its half-width; radially symmetric ones from the jinc
function. Frequencies are in cycles an image, rates in samples an image.
"""

import numpy as np
import scipy.signal
import scipy.special

__all__ = ["kaiser_lowpass", "matrix_down", "matrix_up", "radial_lowpass"]

Band = tuple[float, float, float]  # cutoff, half-width of the transition, sampling rate


def kaiser_lowpass(taps: int, cutoff: float, half_width: float, rate: float) -> np.ndarray:
    """The filter `[taps]`, float64, of sum 1; `[1.0]` for one tap."""
    if taps == 1:
        return np.ones(1)
    return scipy.signal.firwin(taps, cutoff, width=2 * half_width, fs=rate)


def radial_lowpass(taps: int, cutoff: float, half_width: float, rate: float) -> np.ndarray:
    """The radially symmetric filter `[taps, taps]`, float64, of sum 1."""
    places = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(places.reshape(-1, 1), places.reshape(1, -1))
    # The jinc function; radius 0 occurs for odd numbers of taps only, where its limit is cutoff.
    safe = np.where(radius > 0, radius, 1)
    jinc = scipy.special.j1(2 * np.pi * cutoff * radius) / (np.pi * safe)
    jinc = np.where(radius > 0, jinc, cutoff)
    attenuation = scipy.signal.kaiser_atten(taps, 2 * half_width / (rate / 2))
    window = np.kaiser(taps, scipy.signal.kaiser_beta(attenuation))
    kernel = jinc * np.outer(window, window)
    return kernel / kernel.sum()


def matrix_up(
    size: int, factor: int, taps: int, band: Band, padding: tuple[int, int]
) -> np.ndarray:
    """Upsampling along one axis: zeros between samples, padding, filter of gain `factor`.

    Args:
      size: samples of the input.
      factor: of upsampling; `factor - 1` zeros follow each sample.
      taps: of the filter.
      band: of the filter.
      padding: zeros before and after; negative ones cut off.

    Returns:
      `[size factor + before + after - taps + 1, size]`, float64.
    """
    kernel = kaiser_lowpass(taps, *band)[::-1] * factor
    before, after = padding
    count = size * factor + before + after - taps + 1
    result = np.zeros((count, size))
    for tap, value in enumerate(kernel):
        place = np.arange(count) + tap - before  # in the spread-out samples
        inside = (place >= 0) & (place < size * factor) & (place % factor == 0)
        result[np.flatnonzero(inside), place[inside] // factor] += value
    return result


def matrix_down(size: int, factor: int, taps: int, band: Band) -> np.ndarray:
    """Filter and every `factor`-th sample, `[(size - taps) // factor + 1, size]`, float64."""
    kernel = kaiser_lowpass(taps, *band)[::-1]
    count = (size - taps) // factor + 1
    result = np.zeros((count, size))
    for tap, value in enumerate(kernel):
        result[np.arange(count), np.arange(count) * factor + tap] += value
    return result
