"""The generators of the paper, from checkpoint files that the user has.

Latents follow the published pipeline: truncated normal on [-1, 1] for BigGAN and StyleGAN2, one
class for a whole run, StyleGAN2 with psi 0.7 towards its mean latent. Unlike there, StyleGAN2's
noise maps are the checkpoint's own, so that an image is a function of its latent.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import torch_reader
from common.nets import biggan, stylegan2
from rosetta.zoo.checkpoints import read_tensors
from rosetta.zoo.tapped import Generator, Maps

__all__ = ["biggan_deep", "load_biggan_deep", "load_stylegan2", "stylegan2_generator"]


def biggan_deep(module: biggan.BigGan, variables: Any, name: str, label: int) -> Generator:
    """BigGAN-deep on one class, all convolutions tapped.

    Args:
      module: the network.
      variables: its parameters, of truncation 1.
      name: of the generator.
      label: number of the class; an image's class is not part of its latent.

    Raises:
      ValueError: no such class.
    """
    if not 0 <= label < module.classes:
        raise ValueError(f"class {label} of {module.classes}")

    def apply(variables: Any, z: jax.Array) -> tuple[jax.Array, Maps]:
        classes = jax.nn.one_hot(jnp.full(z.shape[0], label), module.classes)
        output: Any = module.apply(variables, z, classes)
        return (output[0] + 1) / 2, output[1]

    def sample(key: jax.Array, count: int) -> jax.Array:
        return jax.random.truncated_normal(key, -1.0, 1.0, (count, module.latent))

    return Generator(name, apply, variables, biggan.tap_names(module), sample)


def load_biggan_deep(path: str | os.PathLike[str], size: int, label: int) -> Generator:
    """BigGAN-deep of 128, 256 or 512 pixels with the weights of a file.

    Args:
      path: `biggan-deep-SIZE-pytorch_model.bin`, or its tensors as safetensors.
      size: side of the images in pixels.
      label: number of the ImageNet class.

    Raises:
      ValueError: another size, no such class, or a file without named tensors.
      porting.PortingError: the file belongs to another network; lists what does not fit.
    """
    if size not in biggan.VARIANTS:
        raise ValueError(f"BigGAN-deep of {size} pixels; there are {sorted(biggan.VARIANTS)}")
    module = biggan.BigGan(biggan.VARIANTS[size])
    variables = biggan.from_tensors(module, read_tensors(path))
    return biggan_deep(module, variables, f"biggan{size}", label)


def stylegan2_generator(
    module: stylegan2.StyleGan2, variables: Any, name: str, psi: float = 0.7
) -> Generator:
    """StyleGAN2, convolutions (but the first) and colour convolutions (but the first) tapped."""

    def apply(variables: Any, z: jax.Array) -> tuple[jax.Array, Maps]:
        output: Any = module.apply(variables, z, psi)
        return (output[0] + 1) / 2, output[1]

    def sample(key: jax.Array, count: int) -> jax.Array:
        return jax.random.truncated_normal(key, -1.0, 1.0, (count, module.latent))

    return Generator(name, apply, variables, stylegan2.tap_names(module), sample)


def load_stylegan2(path: str | os.PathLike[str], size: int, psi: float = 0.7) -> Generator:
    """StyleGAN2 (configuration F) with the weights of a file with rosinality's names.

    Args:
      path: PyTorch file with the keys "g_ema" and "latent_avg".
      size: side of the images in pixels.
      psi: truncation towards the mean latent.

    Raises:
      KeyError: the file lacks one of the keys.
      porting.PortingError: the file belongs to another network; lists what does not fit.
    """
    found = torch_reader.read(path)
    missing = [key for key in ("g_ema", "latent_avg") if key not in found]
    if missing:
        raise KeyError(f"{path} has no {missing[0]!r}; it has {list(found)[:10]}")
    module = stylegan2.StyleGan2(size)
    mean = np.asarray(found["latent_avg"])
    variables = stylegan2.from_tensors(module, found["g_ema"], mean)
    return stylegan2_generator(module, variables, f"stylegan2_{size}", psi)
