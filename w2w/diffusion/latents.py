"""Photographs as what the autoencoder makes of them: Gaussians of latents, and draws from them.

The expensive half of the autoencoder runs once for each view of a photograph; a training step then
draws from its posterior, as the published recipes do in every step.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from w2w.diffusion.autoencoder import Autoencoder
from w2w.diffusion.layers import apply
from w2w.diffusion.pipeline import Pipeline


class Photographs(NamedTuple):
    """Latents of people's photographs; a pytree, with a leading axis of people where it has one.

    Attributes:
      mean: mean of the autoencoder's posterior, scaled, ``[(people,) views, h, w, c]``.
      deviation: its standard deviation, scaled, of the same shape.
      views: int32 ``[(people)]``, number of the views that are there; the others are padding.
      mask: None or weights ``[(people,) views, h, w, 1]`` in [0, 1].
    """

    mean: jax.Array
    deviation: jax.Array
    views: jax.Array
    mask: jax.Array | None


@functools.partial(jax.jit, static_argnames="vae")
def _posterior(params: Any, image: jax.Array, vae: Autoencoder) -> tuple[jax.Array, jax.Array]:
    mean, log_variance = apply(vae, params, image[None], method="encode")
    mean, log_variance = (x[0].astype(jnp.float32) for x in (mean, log_variance))
    return mean, jnp.exp(0.5 * log_variance)


def posterior(pipeline: Pipeline, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of one image's scaled latents, float32 ``[h, w, c]``.

    Args:
      pipeline: holds the autoencoder.
      image: ``[height, width, 3]`` in [-1, 1].
    """
    mean, deviation = _posterior(pipeline.params["vae"], image, vae=pipeline.vae)
    return mean * pipeline.latent_scale, deviation * pipeline.latent_scale


def draw(
    pick_key: jax.Array, posterior_key: jax.Array, photographs: Photographs, batch: int
) -> tuple[jax.Array, jax.Array | None]:
    """Latents of views of one person, chosen uniformly, with a sample of each view's posterior.

    Args:
      pick_key: chooses the views.
      posterior_key: of the samples.
      photographs: of one person.
      batch: number of views.

    Returns:
      Latents ``[batch, h, w, c]``, and their masks ``[batch, h, w, 1]`` or None.
    """
    chosen = jax.random.randint(pick_key, (batch,), 0, photographs.views)
    mean, deviation = photographs.mean[chosen], photographs.deviation[chosen]
    latents = mean + deviation * jax.random.normal(posterior_key, mean.shape, mean.dtype)
    return latents, None if photographs.mask is None else photographs.mask[chosen]


def repeat(condition: Any, batch: int) -> Any:
    """A condition of one prompt, pytree of ``[1, ...]``, for a batch of images."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape[1:])), condition)
