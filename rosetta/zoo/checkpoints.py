"""The discriminative networks of the paper, from checkpoint files that the user has.

| name | supervision | file |
|---|---|---|
| resnet50 | ImageNet classes | torchvision, timm or Hugging Face (`microsoft/resnet-50`) |
| dino_resnet50 | self-distillation | `dino_resnet50_pretrain.pth` |
| dino_vits16, dino_vitb16, dino_vitb8 | self-distillation | `dino_*_pretrain.pth`, or the hub's |
| mae_vitb16 | masked autoencoding | `mae_pretrain_vit_base.pth`, or the hub's |
| clip_resnet50 | contrastive, text | OpenAI's `RN50.pt`, or a state dict of it or of open_clip's |

Files are `.safetensors`, or PyTorch files and TorchScript archives read without executing them.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy

from common import torch_reader
from common.nets import clip_resnet, resnet, vit
from rosetta.zoo import torchscript
from rosetta.zoo.images import CLIP, IMAGENET, bicubic, standardise
from rosetta.zoo.shipped import calibrator
from rosetta.zoo.tapped import Maps, Tapped

__all__ = ["NETWORKS", "Network", "load", "read_tensors", "tapped"]

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network without weights.

    Attributes:
      module: returns (output, maps by tap).
      from_tensors: `(module, tensors) -> variables`.
      taps: mined, in the order of units.
      statistics: mean and deviation of its input.
      size: side of its input in pixels.
    """

    module: nn.Module
    from_tensors: Callable[[Any, Tensors], Any]
    taps: tuple[str, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    size: int = 224


_LAYERS = tuple(f"layer{number}" for number in range(1, 5))


def _vit(variant: str) -> Network:
    sizes: dict[str, Any] = dict(vit.VARIANTS[variant])
    taps = tuple(f"block{index}" for index in range(sizes["depth"]))
    return Network(vit.ViT(**sizes), vit.from_tensors, taps)


NETWORKS: dict[str, Network] = {
    "resnet50": Network(resnet.ResNet(), resnet.from_tensors, _LAYERS),
    "dino_resnet50": Network(resnet.ResNet(classes=0), resnet.from_tensors, _LAYERS),
    "dino_vits16": _vit("vit_s16"),
    "dino_vitb16": _vit("vit_b16"),
    "dino_vitb8": _vit("vit_b8"),
    "mae_vitb16": _vit("vit_b16"),
    "clip_resnet50": Network(
        clip_resnet.ClipResNet(), clip_resnet.from_tensors, _LAYERS, statistics=CLIP
    ),
}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Named tensors of a checkpoint file.

    A state dict may stand under one of the keys "model" and "state_dict", and every name may begin
    with "module.".

    Raises:
      FileNotFoundError: no such file.
      PickleError: a damaged PyTorch file, or one that holds more than tensors.
      ValueError: the file holds no named tensors.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if torchscript.is_archive(path):
        return torchscript.read_tensors(path)
    found = torch_reader.read(path)
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, np.ndarray) for v in found.values()):
        raise ValueError(f"{path} holds no state dict but {type(found).__name__}")
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): array for name, array in found.items()}
    return found


def tapped(name: str, network: Network, variables: Any) -> Tapped:
    """A network with weights, as mining sees it."""

    def prepare(images: jax.Array) -> jax.Array:
        return standardise(bicubic(images, network.size), network.statistics)

    def apply(variables: Any, images: jax.Array) -> Maps:
        output: Any = network.module.apply(variables, prepare(images))
        return output[1]

    calibrate = calibrator(network.module, prepare) if "batch_stats" in variables else None
    return Tapped(name, apply, variables, network.taps, calibrate)


def load(name: str, path: str | os.PathLike[str]) -> Tapped:
    """The network of this name (a key of `NETWORKS`) with the weights of a file.

    Raises:
      ValueError: no such network, or a file without named tensors.
      porting.PortingError: the file belongs to another architecture; lists what does not fit.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    return tapped(name, network, network.from_tensors(network.module, read_tensors(path)))
