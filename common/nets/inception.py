"""The features of the Frechet inception distance.

FID (M. Heusel et al., NeurIPS 2017) is defined by TensorFlow's graph of December 2015 of the
network of `common.nets.inception_v3`, which has the style "fid" for it. The weights are read from
the PyTorch port that pytorch-fid and its successors distribute
(`pt_inception-2015-12-05-6726825d.pth`, by the user; 95 MB).

Cost: 21.8 million parameters; 5.5 billion multiply-adds an image of 299 x 299, by XLA's count.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp

from common import torch_reader
from common.nets import inception_v3

__all__ = ["FEATURES", "SIZE", "features", "load_params", "prepare"]

SIZE = 299
FEATURES = 2048
_NETWORK = inception_v3.InceptionV3("fid")


def load_params(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads `{"params": ..., "batch_stats": ...}` from a file of pytorch-fid's weights.

    Raises:
        FileNotFoundError: there is no such file.
        porting.PortingError: the tensors are not those of this network.
    """
    tensors = {n: a for n, a in torch_reader.read(path).items() if not n.startswith("fc.")}
    return inception_v3.from_tensors(_NETWORK, tensors)


def prepare(images: jax.Array) -> jax.Array:
    """The network's input of `images [batch, height, width, 1 or 3]` in [0, 1].

    Images of other sizes are resized to 299 x 299 (bilinear, without antialiasing), grey ones
    repeated, as pytorch-fid does it.

    Raises:
        ValueError: not four axes, or channels other than 1 or 3.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected images [batch, height, width, 1 or 3], found shape {tuple(images.shape)}")
    size = (images.shape[0], SIZE, SIZE, images.shape[3])
    x = jax.image.resize(images, size, "bilinear", antialias=False)
    return 2 * jnp.broadcast_to(x, (*size[:3], 3)) - 1


@jax.jit
def features(params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Features `[batch, 2048]` of `images [batch, height, width, 1 or 3]` in [0, 1].

    FID is `common.metrics.distribution.frechet_from_features` of two sets of them, customarily of
    10,000 images or more. Raises as `prepare`.
    """
    maps: jax.Array = _NETWORK.apply(params, prepare(images))  # type: ignore[assignment]
    return maps.mean(axis=(1, 2))
