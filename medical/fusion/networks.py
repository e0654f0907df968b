"""Networks of a configuration: the trunk with its first weights, and the heads on it."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from common.config import ConfigError
from common.nets import densenet
from medical.fusion import backbones, models

PyTree = Any
KINDS = ("image", "clinical", "fusion")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, for images in [0, 1]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def make_trunk(net: ConfigDict) -> Any:
    """The trunk of ``config.net``: a DenseNet of any size, or one of `backbones` as it is."""
    if net.backbone != "densenet":
        try:
            return backbones.make(net.backbone, net.size, net.style, net.momentum)
        except ValueError as error:
            raise ConfigError(f"config.net: {error}, densenet") from error
    return make_densenet(net)


def make_pretrained(net: ConfigDict, classes: int) -> Any:
    """The trunk with a classifier on it: the averaged feature map and one dense layer."""
    if net.backbone != "densenet":
        return models.TrunkClassifier(make_trunk(net), classes)
    return make_densenet(net, classes)


def trunk_of(net: ConfigDict, variables: PyTree) -> PyTree:
    """The trunk's variables in those of `make_pretrained`."""
    if net.backbone != "densenet":
        return {name: tree["trunk"] for name, tree in variables.items()}
    params = {name: tree for name, tree in variables["params"].items() if name != "classifier"}
    return {**variables, "params": params}


def make_densenet(net: ConfigDict, classes: int = 0) -> densenet.DenseNet:
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
      path: ``.safetensors``, Keras' ``.h5``, or a torch file read without executing it; with the
        tensor names of torchvision, timm, torchxrayvision (DenseNet) or Keras. A classifier in it
        is left out.
      net: ``config.net``.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: the tensors are of the other family than ``net.style``.
      PortingError: the tensors are not those of this trunk.
    """
    try:
        tensors = backbones.read_tensors(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"config.trunk: {error}") from error
    name = "densenet121" if net.backbone == "densenet" else net.backbone
    try:
        return backbones.port(name, make_trunk(net), tensors)
    except backbones.FamilyError as error:
        raise ConfigError(f"config.trunk, config.net.style: {path}: {error}") from error


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
