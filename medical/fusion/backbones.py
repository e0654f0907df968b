"""The six trunks of DeepCOVID-XR, by name, with a user's weights.

Each trunk is a flax module of images ``[batch, h, w, channels]`` to a feature map. Weights come
from one of two families, Keras or PyTorch (torchvision, timm), whose networks of the same name
differ in paddings and constants: the module and the weights must be of the same family.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from common import torch_reader
from common.nets import (
    densenet,
    efficientnet,
    inception_resnet,
    inception_v3,
    keras_weights,
    resnet_trunk,
    xception,
)

STYLES = ("keras", "torch")
_HEADS = re.compile(r"(predictions|probs|dense(_\d+)?|fc1000|normalization(_\d+)?)/.*"
                    r"|(fc|classifier|classif|last_linear|head)\..*")
"""Layers of other tasks (and the constants of Keras' input), which a trunk leaves out."""


class FamilyError(ValueError):
    """Weights of one family for a network of the other."""


class Backbone(NamedTuple):
    """A trunk.

    Attributes:
      title: for tables.
      least: pixels of the smallest image.
      make: the module of a style and a momentum of batch normalisation.
      port: variables from a module and its tensors by name.
      told: whether the names of the tensors tell the style: timm has Keras' EfficientNets, too,
        under PyTorch names.
    """

    title: str
    least: int
    make: Callable[[str, float], Any]
    port: Callable[[Any, Mapping[str, np.ndarray]], dict[str, Any]]
    told: bool = True


def _densenet(style: str, momentum: float) -> nn.Module:
    return densenet.DenseNet(classes=0, epsilon=1.001e-5 if style == "keras" else 1e-5,
                             momentum=momentum)


BACKBONES = {
    "densenet121": Backbone("DenseNet-121", 32, _densenet, densenet.from_tensors),
    "resnet50": Backbone(
        "ResNet-50", 32, lambda s, m: resnet_trunk.ResNetTrunk(style=s, momentum=m),
        resnet_trunk.from_tensors),
    "inception_v3": Backbone(
        "Inception-v3", 75, lambda s, m: inception_v3.InceptionV3(s, m),
        inception_v3.from_tensors),
    "inception_resnet_v2": Backbone(
        "Inception-ResNet-v2", 75, lambda s, m: inception_resnet.InceptionResNetV2(s, m),
        inception_resnet.from_tensors),
    "xception": Backbone(
        "Xception", 71, lambda s, m: xception.Xception(s, m), xception.from_tensors),
    "efficientnet_b2": Backbone(
        "EfficientNet-B2", 32,
        lambda s, m: efficientnet.EfficientNet(*efficientnet.SCALES["b2"], s, m),
        efficientnet.from_tensors, told=False),
}


def make(name: str, size: int, style: str = "keras", momentum: float = 0.99) -> Any:
    """The trunk.

    Args:
      name: one of `BACKBONES`.
      size: side of the images in pixels.
      style: "keras" or "torch".
      momentum: of the averages of batch normalisation.

    Raises:
      ValueError: unknown name or style, or images that are too small.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r}; known: {', '.join(BACKBONES)}")
    if style not in STYLES:
        raise ValueError(f"style {style!r}; known: {', '.join(STYLES)}")
    if size < BACKBONES[name].least:
        raise ValueError(f"{size} pixels; {BACKBONES[name].title} needs {BACKBONES[name].least}")
    return BACKBONES[name].make(style, momentum)


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """Tensors of a file by name: ``.safetensors``, a torch file (read without executing it), or
    Keras' ``.h5``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or of another kind.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no file {path}")
    if file.suffix == ".safetensors":
        return safetensors.numpy.load_file(file)
    if file.suffix in (".h5", ".hdf5"):
        return keras_weights.read(file)
    tensors = torch_reader.read(file)
    return dict(tensors.get("state_dict", tensors))


def family(tensors: Mapping[str, np.ndarray]) -> str:
    """"keras" or "torch", by the names."""
    return "keras" if any("/" in name for name in tensors) else "torch"


def port(name: str, module: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """Variables of a trunk on the device; layers of other tasks are left out.

    Raises:
      FamilyError: the tensors are of the other family.
      PortingError: they are not those of this network: something is missing or left over.
    """
    style, names = getattr(module, "style", None), family(tensors)
    if style is not None and style != names and (BACKBONES[name].told or names == "keras"):
        raise FamilyError(f"weights with the names of {names} for a {name} of style {style!r}: "
                          "their paddings and constants differ")
    kept = {key: array for key, array in tensors.items() if not _HEADS.fullmatch(key)}
    return jax.tree.map(jnp.asarray, BACKBONES[name].port(module, kept))
