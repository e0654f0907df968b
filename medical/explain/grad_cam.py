"""Grad-CAM on any layer, also for networks with several inputs.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017, eq. 1 and 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# `head(features, *others) -> [batch]`: the score of each image from the layer's output.
Head = Callable[..., jax.Array]


def grad_cam(head: Head, features: jax.Array, *others: Any, relu: bool = True) -> jax.Array:
    """Class activation map of a layer, at the layer's resolution.

    The network is given cut in two: the features it computes from the image, and `head`, the rest
    of it. Further inputs, such as clinical variables of a fusion network, go to `head` as they are.

    Args:
      head: ``head(features, *others) -> [batch]``.
      features: output of the layer, ``[batch, h, w, channels]``.
      *others: further arguments of `head`.
      relu: keep only what raises the score.

    Returns:
      ``sum_c mean_hw(d score / d features_c) * features_c``, ``[batch, h, w]``.
    """
    weights = jnp.mean(_slope(head, features, others), axis=(1, 2), keepdims=True)
    found = jnp.sum(weights * features, axis=-1)
    return jax.nn.relu(found) if relu else found


def as_released(head: Head, features: jax.Array, *others: Any) -> jax.Array:
    """What the code released with medXGAN computes under the name of Grad-CAM.

    It *adds* the pooled gradient to each channel instead of multiplying by it, and averages the
    channels: in effect a map of mean activation. Only for comparison with figures made by it.
    """
    weights = jnp.mean(_slope(head, features, others), axis=(1, 2), keepdims=True)
    return jax.nn.relu(jnp.mean(features + weights, axis=-1))


def enlarge(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Maps ``[batch, h, w]`` at the resolution of the image, bilinear."""
    return jax.image.resize(maps, (maps.shape[0], *size), "bilinear")


def _slope(head: Head, features: jax.Array, others: tuple) -> jax.Array:
    return jax.grad(lambda f: jnp.sum(head(f, *others)))(features)
