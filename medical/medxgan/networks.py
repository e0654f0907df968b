"""Networks of a configuration, and a classifier's first weights from a user's file."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy
from ml_collections import ConfigDict

from common import torch_reader
from common.config import ConfigError
from medical.medxgan import models, train, vgg

KINDS = ("small", "brain64", "covid128")
"""Of ``config.net.kind``: small networks, or those of one of the two published experiments."""
SIZES = {"brain64": 64, "covid128": 128}


def make_classifier(net: ConfigDict) -> Any:
    """The classifier of ``config.net``."""
    if net.kind not in KINDS:
        raise ConfigError(f"config.net.kind {net.kind!r}; known: {', '.join(KINDS)}")
    if net.kind == "brain64":
        return models.BrainClassifier()
    if net.kind == "covid128":
        plan: Any = tuple(map(tuple, net.vgg))
        return vgg.VggClassifier(plan, tuple(net.vgg_head))
    return models.Classifier(tuple(net.classifier))


def make_nets(net: ConfigDict) -> train.Nets:
    """The networks of ``config.net``."""
    judge = make_classifier(net)
    latent = (net.latent[0], net.latent[1])
    widths, narrow = tuple(net.generator), tuple(net.discriminator)
    if net.kind == "small":
        return train.Nets(
            models.Generator(net.size, widths, net.channels), models.Discriminator(narrow), judge,
            models.Encoder(latent, narrow), latent)
    if net.size != SIZES[net.kind]:
        raise ConfigError(f"config.net.size: {net.size}; the networks of {net.kind!r} take "
                          f"{SIZES[net.kind]} pixels")
    return train.Nets(models.PaperGenerator(widths, net.channels),
                      models.PaperDiscriminator(narrow), judge, None, latent)


def read_classifier(path: str, net: Any, params: Any) -> Any:
    """First parameters of a VGG classifier: those of a user's file in place of the random ones.

    Args:
      path: torchvision's VGG16, as ``.safetensors`` or a torch file, read without executing it.
      net: the classifier.
      params: its random parameters.

    Raises:
      ConfigError: the classifier is not a VGG16.
      FileNotFoundError: there is no such file.
      PortingError: the tensors are not those of this network.
    """
    if not isinstance(net, vgg.VggClassifier):
        raise ConfigError("config.classifier.weights: only the classifier of the kind covid128 "
                          "starts from a file")
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"config.classifier.weights: no file {path}")
    if file.suffix == ".safetensors":
        tensors = safetensors.numpy.load_file(file)
    else:
        tensors = torch_reader.read(file)
        tensors = dict(tensors.get("state_dict", tensors))
    return {**params, **jax.tree.map(jnp.asarray, vgg.from_tensors(net, tensors))}
