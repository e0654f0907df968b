"""Training of the autoencoder whose latents the face model denoises."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common.nets import lpips
from common.train_state import TrainState
from w2w.diffusion.autoencoder import Autoencoder, kl_divergence
from w2w.diffusion.layers import apply
from w2w.models import FaceModel


@dataclasses.dataclass(frozen=True)
class AutoencoderRecipe:
    """Optimiser and loss of the autoencoder.

    Attributes:
      num_steps: optimiser steps.
      batch_size: images of each step.
      learning_rate: peak of the cosine schedule of AdamW.
      perceptual_weight: weight of LPIPS beside the mean absolute error.
      kl_weight: weight of the KL divergence per pixel.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    perceptual_weight: float
    kl_weight: float


def init_state(key: jax.Array, model: FaceModel, recipe: AutoencoderRecipe) -> TrainState:
    """Fresh parameters and AdamW with warm-up and cosine decay; keeps a moving average."""
    warmup = min(100, recipe.num_steps // 4)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, warmup, recipe.num_steps, 0.02 * recipe.learning_rate
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99))
    return TrainState.create(model.init_autoencoder(key), optimiser, 0.995)


def make_train_step(
    model: FaceModel, recipe: AutoencoderRecipe, perceptual: Mapping[str, Any]
) -> Callable:
    """Returns the pure step ``(state, batch, key) -> (state, metrics)``.

    The loss is the mean absolute error, LPIPS (Zhang et al., 2018) and the KL divergence of the
    latents, as in latent diffusion without its discriminator.

    Args:
      model: the face model.
      recipe: weights of the terms.
      perceptual: parameters of LPIPS with AlexNet.
    """
    network = Autoencoder(model.autoencoder)

    def loss_fn(params, images, key):
        mean, log_variance = apply(network, params, images, method="encode")
        noise = jax.random.normal(key, mean.shape)
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        output = apply(network, params, latents, method="decode")
        pixel = jnp.abs(output - images).mean()
        distance = lpips.lpips(perceptual, (output + 1) / 2, (images + 1) / 2).mean()
        divergence = kl_divergence(mean, log_variance).mean() / (model.image_size**2)
        loss = pixel + recipe.perceptual_weight * distance + recipe.kl_weight * divergence
        return loss, {"pixel": pixel, "lpips": distance, "kl": divergence}

    def train_step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        images = batch["image"].astype(jnp.float32)[..., None] / 127.5 - 1.0
        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, images, key)
        return state.apply_gradients(grads), {"loss": loss, **parts}

    return train_step


def encode_all(
    model: FaceModel, params: dict, images: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Standardised latents float32 ``[n, *latent_shape]`` of uint8 images ``[n, size, size]``."""
    out = []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        pixels = images[rows].astype(np.float32)[..., None] / 127.5 - 1.0
        out.append(np.asarray(_encode(model, params, jnp.asarray(pixels))))
    return np.concatenate(out)[: len(images)]


@functools.partial(jax.jit, static_argnames="model")
def _encode(model: FaceModel, params: dict, pixels: jax.Array) -> jax.Array:
    return model.to_latents(params, pixels)


def standardised(model: FaceModel, params: dict, images: np.ndarray) -> dict:
    """Parameters whose latents of ``images`` have mean 0 and variance 1 in each channel."""
    channels = model.autoencoder.latent_channels
    plain = {**params, "latent": {"mean": jnp.zeros(channels), "std": jnp.ones(channels)}}
    latents = encode_all(model, plain, images).reshape(-1, channels).astype(np.float64)
    moments = {"mean": latents.mean(axis=0), "std": latents.std(axis=0)}
    return {**params, "latent": {k: jnp.asarray(v, jnp.float32) for k, v in moments.items()}}
