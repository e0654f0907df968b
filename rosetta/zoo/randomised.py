"""Untrained twins of networks: the null that keeps architecture, images and size of the weights.

Every kernel's values are exchanged at random inside the kernel, so that their distribution stays
and what training arranged is lost; biases and the scales of normalisation stay. Statistics of batch
normalisation are then set from images, layer by layer, because those of the trained network would
drive the maps far from its working range.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from rosetta.zoo.tapped import Tapped

__all__ = ["randomised"]


def randomised(model: Tapped, seed: int, images: Any) -> Tapped:
    """The model `NAME~SEED` with exchanged weights.

    Args:
      model: a network whose parameters are nested dicts; arrays with two or more axes count as
        kernels.
      seed: of the exchange.
      images: `[batch, height, width, 3]` in [0, 1], for the statistics of normalisation.
    """
    random = np.random.default_rng(seed)

    def exchanged(leaf: Any) -> Any:
        array = np.asarray(leaf)
        if array.ndim < 2:
            return leaf
        return random.permutation(array.ravel()).reshape(array.shape)

    params = jax.tree.map(exchanged, model.params)
    if model.calibrate is not None:
        params = jax.device_get(model.calibrate(params, images))
    return dataclasses.replace(model, name=f"{model.name}~{seed}", params=params)
