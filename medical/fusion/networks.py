"""Networks of a configuration: the trunk with its first weights, and the heads on it."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from common import torch_reader
from common.config import ConfigError
from common.nets import densenet
from medical.fusion import models

PyTree = Any
KINDS = ("image", "clinical", "fusion")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, for images in [0, 1]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def make_trunk(net: ConfigDict, classes: int = 0) -> densenet.DenseNet:
    """The DenseNet of ``config.net``."""
    return densenet.DenseNet(tuple(net.blocks), net.growth, net.stem, classes,
                             epsilon=1.001e-5, momentum=net.momentum)


def make_net(net: ConfigDict, kind: str, classes: int, learned: bool = False) -> nn.Module:
    """The network of a kind: "image", "clinical" or "fusion"."""
    if kind == "clinical":
        return models.ClinicalNet(classes)
    if kind == "image":
        return models.ImageNet(make_trunk(net), classes)
    if kind != "fusion":
        raise ConfigError(f"unknown kind of network {kind!r}; known: {', '.join(KINDS)}")
    return models.FusionNet(make_trunk(net), classes, net.image_width, net.clinical_width,
                            net.width, learned)


def to_input(images: np.ndarray, net: ConfigDict) -> np.ndarray:
    """Grey images ``[n, h, w, 1]`` in [-1, 1] as the trunk wants them.

    ``net.channels`` 3: repeated and normalised with the constants of ImageNet, as weights trained
    there (and the released code) expect; 1: as they are.
    """
    if net.channels == 1:
        return images
    if net.channels != 3:
        raise ConfigError(f"config.net.channels: {net.channels}; known: 1, 3")
    return (np.repeat(images / 2 + 0.5, 3, -1) - MEAN) / DEVIATION


def read_trunk(path: str, net: ConfigDict) -> PyTree:
    """Variables of the trunk from a user's file.

    Args:
      path: ``.safetensors``, or a torch file read without executing it; with the tensor names of
        torchvision, timm, torchxrayvision or Keras. A classifier in it is left out.
      net: ``config.net``.

    Raises:
      FileNotFoundError: there is no such file.
      PortingError: the tensors are not those of this trunk.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"config.trunk: no file {path}")
    if file.suffix == ".safetensors":
        tensors = safetensors.numpy.load_file(file)
    else:
        tensors = torch_reader.read(file)
        tensors = dict(tensors.get("state_dict", tensors))
    tensors = {name: value for name, value in tensors.items()
               if not name.startswith(("classifier", "predictions"))}
    return jax.tree.map(jnp.asarray, densenet.from_tensors(make_trunk(net), tensors))


def init(
    net: nn.Module, key: jax.Array, image: jax.Array, clinical: jax.Array, trunk: PyTree | None
) -> PyTree:
    """First variables ``{"params": ..., "batch_stats": ...}``, with the given trunk inside.

    Args:
      net: network.
      key: random key.
      image: one image ``[1, h, w, c]``.
      clinical: variables of one patient, ``[1, columns]``.
      trunk: variables of the trunk; None for a network without trunk, or an untrained one.
    """
    if isinstance(net, models.ClinicalNet):
        return dict(net.init(key, clinical))
    variables = dict(net.init(key, image, clinical))
    if trunk is not None:
        for name, tree in trunk.items():
            variables[name] = {**variables[name], "trunk": tree}
    return variables
