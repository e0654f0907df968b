"""Flow matching: noising, the network's target, and the sampler, as pure functions.

Noisy images are ``x_t = (1 - t) x + t e`` with ``t`` in [0, 1] and ``e`` standard normal; the
probability-flow velocity is ``v = e - x = (x_t - x) / t`` (Lipman et al., "Flow Matching for
Generative Modeling", 2023; Liu et al., "Flow Straight and Fast", 2023). The network predicts the
clean image ``x`` and is scored on the velocity, which bounds it to the image manifold at every
noise level (Li & He, "Back to Basics: Let Denoising Generative Models Denoise", 2025).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

MIN_TIME = 0.05
"""Smallest divisor of the velocity; below it the target is ``(x_t - x) / MIN_TIME``."""

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
"""``(noisy [batch, ...], times [batch]) -> predicted clean images [batch, ...]``."""


def sample_times(key: jax.Array, count: int, mean: float, std: float) -> jax.Array:
    """Logit-normal times ``[count]`` in (0, 1) (Esser et al., 2024); larger is noisier.

    The times of one batch are spread evenly over the quantiles of the distribution, with one random
    offset (the low-discrepancy sampler of Kingma et al., "Variational Diffusion Models", 2021,
    appendix I.1): each time has the stated distribution, and a batch's mean loss has less variance.
    """
    offset = jax.random.uniform(key)
    quantiles = jnp.mod(offset + jnp.arange(count) / count, 1.0)
    tiny = jnp.finfo(jnp.float32).eps
    return jax.nn.sigmoid(mean + std * ndtri(jnp.clip(quantiles, tiny, 1.0 - tiny)))


def add_noise(images: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """``x_t`` for ``images`` and ``noise [batch, ...]`` at ``times [batch]``."""
    t = times.reshape(times.shape + (1,) * (images.ndim - times.ndim))
    return (1.0 - t) * images + t * noise


def velocity_loss(
    predicted: jax.Array,
    images: jax.Array,
    times: jax.Array,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean squared velocity error per example, ``[batch]``.

    Predicted and true velocity share ``x_t``, so the error is that of the clean image over
    ``max(t, MIN_TIME)``. As in the paper's masked objective, the mask multiplies prediction and
    target and the mean runs over all elements.

    Args:
      predicted: clean images predicted by the network ``[batch, height, width, channels]``.
      images: true clean images, same shape.
      times: ``[batch]``.
      mask: None or ``[batch, height, width, 1]`` weights in [0, 1].
    """
    error = predicted - images
    if mask is not None:
        error = error * mask
    square = jnp.mean(error * error, axis=tuple(range(1, error.ndim)))
    return square / jnp.maximum(times, MIN_TIME) ** 2


def time_grid(steps: int, shift: float = 1.0) -> jax.Array:
    """``steps + 1`` times from 1 to 0; ``shift > 1`` spends more of them at high noise."""
    t = jnp.linspace(1.0, 0.0, steps + 1)
    return shift * t / (1.0 + (shift - 1.0) * t)


def sample(
    denoise: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    noise: jax.Array,
    steps: int,
    shift: float = 1.0,
) -> jax.Array:
    """Integrates the flow from ``noise`` (t = 1) to images (t = 0) by Heun's method.

    The last step is Euler's, which returns the network's own prediction. One ``lax.scan`` over
    evaluations, predictors and correctors by turns, so that the trace holds the network once
    however many steps run.

    Args:
      denoise: ``(x_t, times [batch], t scalar) -> clean images``; the scalar lets a caller change
        weights with time (delayed injection).
      noise: standard normal ``[batch, height, width, channels]``.
      steps: number of steps, at least 1.
      shift: see :func:`time_grid`.
    """
    grid = time_grid(steps, shift)
    batch = noise.shape[0]
    # step i from t to s: its predictor is evaluated at t, its corrector at s
    times = jnp.append(jnp.stack([grid[:-2], grid[1:-1]], axis=1).ravel(), grid[-2])
    lengths = jnp.append(jnp.repeat(grid[1:-1] - grid[:-2], 2), 0.0)
    corrects = jnp.arange(2 * steps - 1) % 2 == 1

    def evaluate(carry, row):
        place, start, first, _ = carry  # where to evaluate, the step's start and its first velocity
        t, length, correct = row
        clean = denoise(place, jnp.full((batch,), t), t)
        velocity = (place - clean) / jnp.maximum(t, MIN_TIME)
        predicted = start + length * velocity
        corrected = start + length * 0.5 * (first + velocity)
        place = jnp.where(correct, corrected, predicted)
        return (place, jnp.where(correct, corrected, start), velocity, clean), None

    zero = jnp.zeros_like(noise)
    (_, _, _, clean), _ = jax.lax.scan(
        evaluate, (noise, noise, zero, zero), (times, lengths, corrects)
    )
    return clean


def guided(conditional: jax.Array, unconditional: jax.Array, scale: float) -> jax.Array:
    """Classifier-free guidance (Ho & Salimans, 2022): ``u + scale (c - u)``."""
    return unconditional + scale * (conditional - unconditional)
