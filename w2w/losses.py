"""Denoising losses as pure functions of a predictor, a batch and a key."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from w2w.diffusion import flow

Predictor = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""``(noisy [B, H, W, C], times [B], text [B, L, D]) -> clean images or latents [B, H, W, C]``."""


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Logit-normal distribution of training times.

    Attributes:
      mean: of the logit; positive means noisier than half.
      std: of the logit.
    """

    mean: float = 0.0
    std: float = 1.0


def denoising(
    predict: Predictor,
    images: jax.Array,
    text: jax.Array,
    key: jax.Array,
    schedule: NoiseSchedule,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Velocity error of each image at a random time, ``[batch]``.

    Args:
      predict: the network with its parameters bound in.
      images: clean images or latents ``[batch, height, width, channels]``.
      text: prompt features ``[batch, length, width]``.
      key: source of times and noise.
      schedule: distribution of times.
      mask: None or ``[batch, height, width, 1]``; multiplies prediction and target.
    """
    time_key, noise_key = jax.random.split(key)
    times = flow.sample_times(time_key, images.shape[0], schedule.mean, schedule.std)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    predicted = predict(flow.add_noise(images, noise, times), times, text)
    return flow.velocity_loss(predicted, images, times, mask)


def dreambooth(
    predict: Predictor,
    images: jax.Array,
    text: jax.Array,
    class_images: jax.Array,
    class_text: jax.Array,
    key: jax.Array,
    schedule: NoiseSchedule,
    prior_weight: float,
) -> jax.Array:
    """Personalisation loss with prior preservation (Ruiz et al., "DreamBooth", 2023), a scalar.

    The mean error on the person's images under the instance prompt, plus ``prior_weight`` times
    that on images of the class under the class prompt. Both halves go through the network as one
    batch.
    """
    both = jnp.concatenate([images, class_images])
    errors = denoising(predict, both, jnp.concatenate([text, class_text]), key, schedule)
    count = images.shape[0]
    return errors[:count].mean() + prior_weight * errors[count:].mean()
