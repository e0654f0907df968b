"""The generators of the paper, from checkpoint files that the user has.

Latents follow the published pipeline: truncated normal on [-1, 1] for BigGAN and StyleGAN2, one
class for a whole run, StyleGAN2 with psi 0.7 towards its mean latent. Unlike there, StyleGAN2's
noise maps are the checkpoint's own, so that an image is a function of its latent.
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import torch_reader
from common.nets import biggan, stylegan2, stylegan3
from rosetta.zoo import nvidia
from rosetta.zoo.checkpoints import read_tensors
from rosetta.zoo.tapped import Generator, Maps, edited_outputs

__all__ = [
    "SPACES", "biggan_deep", "load_biggan_deep", "load_stylegan2", "load_stylegan3",
    "load_stylegan_xl", "stylegan2_generator", "stylegan3_generator",
]

SPACES = ("z", "w", "w+")


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

    taps = biggan.tap_names(module)
    paths = {tap.replace(".", "/"): tap for tap in taps}

    def edited(variables: Any, z: jax.Array, edit: Any) -> tuple[jax.Array, Maps]:
        classes = jax.nn.one_hot(jnp.full(z.shape[0], label), module.classes)
        output, maps = edited_outputs(lambda: module.apply(variables, z, classes), edit, paths)
        return (output[0] + 1) / 2, maps

    mean = jnp.zeros(module.latent)
    return Generator(name, apply, variables, taps, sample, mean, edited)


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
    module: stylegan2.StyleGan2, variables: Any, name: str, psi: float = 0.7, space: str = "z"
) -> Generator:
    """StyleGAN2, convolutions (but the first) and colour convolutions (but the first) tapped.

    Args:
      module: the network.
      variables: its parameters.
      name: of the generator.
      psi: truncation towards the mean style.
      space: what its latents are: "z", styles "w" `[latent]`, or "w+", a style for each layer
        `[layers, latent]`, both after truncation. Inversion works in any of them.

    Raises:
      ValueError: another space.
    """
    _check_space(space)
    layers = 2 * len(module.sizes())

    def run(variables: Any, latents: jax.Array) -> Any:
        if space == "z":
            return module.apply(variables, latents, psi)
        return module.apply(variables, latents, method="synthesise")

    def apply(variables: Any, latents: jax.Array) -> tuple[jax.Array, Maps]:
        output = run(variables, latents)
        return (output[0] + 1) / 2, output[1]

    def centre() -> jax.Array:
        return jnp.asarray(variables["params"]["mean_latent"])

    def sample(key: jax.Array, count: int) -> jax.Array:
        z = jax.random.truncated_normal(key, -1.0, 1.0, (count, module.latent))
        if space == "z":
            return z
        styles: Any = module.apply(variables, z, method="styles")
        middle = centre().reshape(1, -1)
        w = middle + psi * (styles - middle)
        return w if space == "w" else jnp.tile(w[:, None], (1, layers, 1))

    if space == "z":
        mean = jnp.zeros(module.latent)
    else:
        mean = centre() if space == "w" else jnp.tile(centre(), (layers, 1))
    taps = stylegan2.tap_names(module)

    def changed(output: Any, edit: Any) -> tuple[Any, jax.Array]:
        x, raw = output
        if raw.shape[-1] == 3:  # colours: the map is what is added to the bias
            new = edit(raw)
            return (x + new - raw, new), new
        new = edit(x)
        return (new, raw), new

    def edited(variables: Any, latents: jax.Array, edit: Any) -> tuple[jax.Array, Maps]:
        output, maps = edited_outputs(
            lambda: run(variables, latents), edit, {tap: tap for tap in taps}, changed
        )
        return (output[0] + 1) / 2, maps

    return Generator(name, apply, variables, taps, sample, mean, edited)


def load_stylegan2(
    path: str | os.PathLike[str], size: int, psi: float = 0.7, space: str = "z"
) -> Generator:
    """StyleGAN2 (configuration F) with the weights of a file.

    Args:
      path: PyTorch file with the keys "g_ema" and "latent_avg" (rosinality's names), or a pickle
        `.pkl` of NVIDIA's PyTorch code (official names).
      size: side of the images in pixels.
      psi: truncation towards the mean latent.
      space: of the latents, see `stylegan2_generator`.

    Raises:
      KeyError: the file lacks one of the keys.
      porting.PortingError: the file belongs to another network; lists what does not fit.
    """
    if pathlib.Path(path).suffix == ".pkl":
        tensors, mean = nvidia.official_to_rosinality(nvidia.read_generator(path))
    else:
        found = torch_reader.read(path)
        missing = [key for key in ("g_ema", "latent_avg") if key not in found]
        if missing:
            raise KeyError(f"{path} has no {missing[0]!r}; it has {list(found)[:10]}")
        tensors, mean = found["g_ema"], np.asarray(found["latent_avg"])
    module = stylegan2.StyleGan2(size)
    variables = stylegan2.from_tensors(module, tensors, mean)
    return stylegan2_generator(module, variables, f"stylegan2_{size}", psi, space)


def load_stylegan3(
    path: str | os.PathLike[str], size: int, config: str = "r", space: str = "z",
    crop: bool = False,
) -> Generator:
    """StyleGAN3 with the weights of NVIDIA's pickle.

    Args:
      path: `stylegan3-...pkl`, or its tensors as safetensors by their official names.
      size: side of the images in pixels.
      config: "t" or "r".
      space: of the latents, see `stylegan2_generator`.
      crop: see `stylegan3_generator`.

    Raises:
      ValueError: another configuration or space.
      PickleError: a file that is no such pickle; nothing in it is executed.
      porting.PortingError: the file belongs to another network; lists what does not fit.
    """
    if config not in ("t", "r"):
        raise ValueError(f"StyleGAN3 has configurations t and r, not {config!r}")
    if config == "r":
        layers = stylegan3.stylegan3_layers(size, base=65536, most=1024, kernel=1, radial=True)
    else:
        layers = stylegan3.stylegan3_layers(size)
    module = stylegan3.StyleGan3(layers)
    variables = stylegan3.from_tensors(module, _official(path))
    name = f"stylegan3{config}_{size}"
    return stylegan3_generator(module, variables, name, crop=crop, space=space)


def load_stylegan_xl(
    path: str | os.PathLike[str], size: int, label: int, psi: float = 0.7, space: str = "z",
    crop: bool = False,
) -> Generator:
    """StyleGAN-XL on ImageNet with the weights of its pickle.

    Args:
      path: `imagenetSIZE.pkl`, or its tensors as safetensors by their official names.
      size: side of the images in pixels, 16 to 1024.
      label: number of the ImageNet class.
      psi: truncation towards the mean style of the class.
      space: of the latents, see `stylegan2_generator`.
      crop: see `stylegan3_generator`.

    Raises:
      ValueError: another size or space, or no such class.
      PickleError: a file that is no such pickle; nothing in it is executed.
      porting.PortingError: the file belongs to another network; lists what does not fit.
    """
    layers = stylegan3.stylegan_xl_layers(size)
    module = stylegan3.StyleGan3(layers, latent=64, classes=1000)
    variables = stylegan3.from_tensors(module, _official(path))
    name = f"stylegan_xl{size}"
    return stylegan3_generator(module, variables, name, label, psi, crop, space)


def stylegan3_generator(
    module: stylegan3.StyleGan3,
    variables: Any,
    name: str,
    label: int | None = None,
    psi: float = 1.0,
    crop: bool = False,
    space: str = "z",
) -> Generator:
    """StyleGAN3 or StyleGAN-XL, all synthesis maps tapped.

    Args:
      module: the network.
      variables: its parameters.
      name: of the generator.
      label: class, for StyleGAN-XL.
      psi: truncation towards the mean style.
      crop: takes the margin of 10 cells off the maps that have one. The published code leaves it
        on, so that these maps are smaller than what the other networks see.
      space: what its latents are: "z", styles "w" `[style]`, or "w+", a style for the input and
        each layer `[1 + layers, style]`, both after truncation. The published inversions are in w.

    Raises:
      ValueError: another space, no such class, or a class for a network without.
    """
    _check_space(space)
    if (label is None) != (module.classes == 0) or not 0 <= (label or 0) < max(module.classes, 1):
        raise ValueError(f"class {label} of {module.classes}")
    margins = {layer.name: layer.size > layer.rate for layer in module.layers}
    taps = stylegan3.tap_names(module)
    margins["input"] = module.layers[0].in_size > module.layers[0].in_rate

    rows = 1 + len(module.layers)

    def labels(count: int) -> jax.Array | None:
        return None if label is None else jnp.full(count, label)

    def run(variables: Any, latents: jax.Array) -> Any:
        if space == "z":
            return module.apply(variables, latents, labels(len(latents)), psi)
        return module.apply(variables, latents, method="synthesise")

    def centre() -> jax.Array:
        mean: Any = module.apply(variables, labels(1), method="mean")
        return mean[0]

    def cropped(maps: Maps) -> Maps:
        if not crop:
            return maps
        inner = slice(stylegan3.MARGIN, -stylegan3.MARGIN)
        return {tap: x[:, inner, inner] if margins.get(tap) else x for tap, x in maps.items()}

    def apply(variables: Any, z: jax.Array) -> tuple[jax.Array, Maps]:
        image, maps = run(variables, z)
        return (image + 1) / 2, cropped(maps)

    def edited(variables: Any, z: jax.Array, edit: Any) -> tuple[jax.Array, Maps]:
        parts = {tap: tap for tap in taps[1:]}
        output, maps = edited_outputs(lambda: run(variables, z), edit, parts)
        image = edit("synthesis", output[0])
        return (image + 1) / 2, cropped({"synthesis": image, **maps})

    def sample(key: jax.Array, count: int) -> jax.Array:
        if module.classes:
            z = jax.random.truncated_normal(key, -1.0, 1.0, (count, module.latent))
        else:
            z = jax.random.normal(key, (count, module.latent))
        if space == "z":
            return z
        styles: Any = module.apply(variables, z, labels(count), method="styles")
        middle = centre().reshape(1, -1)
        w = middle + psi * (styles - middle)
        return w if space == "w" else jnp.tile(w[:, None], (1, rows, 1))

    if space == "z":
        mean = jnp.zeros(module.latent)
    else:
        mean = centre() if space == "w" else jnp.tile(centre(), (rows, 1))
    return Generator(name, apply, variables, taps, sample, mean, edited)


def _check_space(space: str) -> None:
    if space not in SPACES:
        raise ValueError(f"latent spaces are z, w and w+, not {space!r}")


def _official(path: str | os.PathLike[str]) -> Any:
    """Tensors by official names, of a pickle or a safetensors file."""
    if pathlib.Path(path).suffix == ".safetensors":
        return read_tensors(path)
    return nvidia.read_generator(path)
