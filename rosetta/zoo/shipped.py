"""The networks whose trained weights package registries carry, so that mining runs anywhere.

A DCGAN generator of faces as anchor, and networks of three kinds of supervision: ImageNet classes
(EfficientNet-Lite0 and 1, VGG16, AlexNet) and face identity (dlib's recogniser).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets import dcgan, efficientnet_lite, face_images, face_recogniser, lpips
from rosetta.zoo.images import bicubic, standardise
from rosetta.zoo.tapped import Generator, Maps, Tapped, captured, edited_inputs

__all__ = ["MODELS", "calibrator", "dcgan_faces", "load"]


def dcgan_faces() -> Generator:
    """DCGAN of 64 x 64 faces: 4 taps, 960 units.

    Raises:
      registry.RegistryError: the weights cannot be obtained.
    """
    module = dcgan.Dcgan()

    def apply(variables: Any, z: jax.Array) -> tuple[jax.Array, Maps]:
        output: Any = module.apply(variables, z)
        return (output[0] + 1) / 2, output[1]

    def sample(key: jax.Array, count: int) -> jax.Array:
        return jax.random.normal(key, (count, dcgan.LATENT))

    taps = tuple(f"block{index}" for index in range(4))
    consumers = {f"conv{index + 1}": tap for index, tap in enumerate(taps)}

    def edited(variables: Any, z: jax.Array, edit: Any) -> tuple[jax.Array, Maps]:
        output, maps = edited_inputs(lambda: module.apply(variables, z), edit, consumers)
        return (output[0] + 1) / 2, maps

    mean = jnp.zeros(dcgan.LATENT)
    return Generator("dcgan", apply, dcgan.load_variables(), taps, sample, mean, edited)


def efficientnet(variant: str, size: int) -> Tapped:
    """EfficientNet-Lite0 or 1, outputs of the blocks.

    Lite0: 16 blocks, 1,808 units, `size` 224 in training; Lite1: 21 blocks, 2,256 units, 240.
    """
    module = efficientnet_lite.EfficientNetLite(variant)

    def prepare(images: jax.Array) -> jax.Array:
        return efficientnet_lite.preprocess(bicubic(images, size))

    def apply(variables: Any, images: jax.Array) -> Maps:
        output: Any = module.apply(variables, prepare(images))
        return output[1]

    variables = efficientnet_lite.load_variables(variant)
    count = sum(name.startswith("block") for name in variables["params"])
    taps = tuple(f"block{index}" for index in range(count))
    return Tapped(variant, apply, variables, taps, calibrator(module, prepare))


def vgg16(size: int) -> Tapped:
    """VGG16, rectified outputs of the 13 convolutions: 4,224 units; `size` is 224 in training."""
    return _rectified("vgg16", lpips.Vgg16(), "vgg", 13, size)


def alexnet(size: int) -> Tapped:
    """AlexNet, rectified outputs of the 5 convolutions: 1,152 units; `size` is 224 in training."""
    return _rectified("alexnet", lpips.Alex(), "alex", 5, size)


def face_identity(size: int) -> Tapped:
    """dlib's face recogniser, outputs of the 14 residual blocks: 1,760 units; `size` 150."""
    module = face_recogniser.FaceRecogniser()
    maps = captured(module, face_recogniser.ResidualBlock)

    def apply(variables: Any, images: jax.Array) -> Maps:
        return maps(variables, face_images.prepare(images, size))

    params = face_recogniser.load_params()
    # In the network's order: the parameters' keys say which blocks there are.
    order = [name for name, _ in face_recogniser._BLOCKS]
    return Tapped("faces", apply, {"params": params}, tuple(order))


MODELS: dict[str, Callable[[int], Tapped]] = {
    "lite0": functools.partial(efficientnet, "lite0"),
    "lite1": functools.partial(efficientnet, "lite1"),
    "vgg16": vgg16,
    "alexnet": alexnet,
    "faces": face_identity,
}


def load(name: str, size: int) -> Tapped:
    """The network of this name (a key of `MODELS`) for images resized to `size x size`.

    Raises:
      ValueError: no such network.
      registry.RegistryError: the weights cannot be obtained.
    """
    if name not in MODELS:
        raise ValueError(f"no network {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](size)


def calibrator(
    module: nn.Module, prepare: Callable[[jax.Array], jax.Array]
) -> Callable[[Any, jax.Array], Any]:
    """The `Tapped.calibrate` of a Flax module with `train` and a collection `batch_stats`."""

    def calibrate(variables: Any, images: jax.Array) -> Any:
        def updated(start: float) -> Any:
            stats = jax.tree.map(lambda x: jnp.full_like(x, start), variables["batch_stats"])
            given = {**variables, "batch_stats": stats}
            _, new = module.apply(given, prepare(images), train=True, mutable=["batch_stats"])
            return new["batch_stats"]

        # A running mean from 0 is (1 - momentum) times the batch's; from 1 it is momentum more.
        zero, one = updated(0.0), updated(1.0)
        stats = jax.tree.map(lambda a, b: a / (1 - (b - a)), zero, one)
        return {**variables, "batch_stats": stats}

    return jax.jit(calibrate)


def _rectified(name: str, module: nn.Module, weights: str, count: int, size: int) -> Tapped:
    maps = captured(module, nn.Conv)

    def apply(variables: Any, images: jax.Array) -> Maps:
        found = maps(variables, standardise(bicubic(images, size)))
        return {tap: nn.relu(x) for tap, x in found.items()}

    taps = tuple(f"conv{index}" for index in range(count))
    return Tapped(name, apply, {"params": lpips.load_params(weights)["features"]}, taps)
