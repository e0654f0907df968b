"""Features of image sets without classes: AlexNet's last convolution, averaged over the image.

Distances in it are called FD-alex and KID-alex; they are not comparable with any other network's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.nets import lpips
from ign import project
from ign.classifier import Judged
from ign.train import to_signed

_SIZE = 64  # pixels that smaller images are enlarged to: the network needs 31


@functools.cache
def _params() -> dict:
    return lpips.load_params("alex")["features"]


def judge(images: np.ndarray) -> Judged:
    """Features `[n, 256]` of `images [n, h, w, c]`, uint8 or in [-1, 1]; no probabilities."""
    found = project.in_blocks(functools.partial(_forward, _params()), images, block=64)
    return Judged(np.zeros((len(images), 0), np.float32), found)


@jax.jit
def _forward(params: dict, images: jax.Array) -> jax.Array:
    x = to_signed(images)
    if x.shape[1] < _SIZE:
        x = jax.image.resize(x, (x.shape[0], _SIZE, _SIZE, x.shape[3]), "bilinear")
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    # ImageNet's channel statistics, for inputs in [-1, 1].
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (
        (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    maps: Any = lpips.Alex().apply({"params": params}, (x - mean) / std)
    return maps[-1].mean(axis=(1, 2))
