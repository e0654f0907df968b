"""From the configuration to the method's own objects: network, recipe, objective, judge."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from common import storage
from common.config import ConfigError
from common.nets import lpips
from ign import classifier, features, losses, noise, population, principal
from ign.data import ImageSet
from ign.evaluate import Judge
from ign.models import NetConfig
from ign.train import Recipe

IMAGES = "images.safetensors"


def net_config(config: ConfigDict, classes: int) -> NetConfig:
    """From `config.net` and `config.data`; `classes` are the data set's."""
    c = config.net
    if c.conditional and not classes:
        raise ConfigError("config.net.conditional: the data set has no classes")
    return NetConfig(
        size=config.data.size,
        channels=config.data.channels,
        kind=c.kind,
        width=c.width,
        latent=c.latent,
        hidden=c.hidden,
        depth=c.depth,
        linear=c.linear,
        principal=c.principal,
        norm=c.norm,
        dropout=c.dropout,
        classes=classes if c.conditional else 0,
    )


def components(
    config: ConfigDict, images: np.ndarray, distortion: float
) -> principal.Components | None:
    """Principal components of the training images, distorted like theirs; None where
    `config.net.principal` is off."""
    c = config.net
    if not c.principal:
        return None
    try:
        return principal.fit(images, c.latent, distortion)
    except ValueError as error:
        raise ConfigError(f"config.net.latent: {error}") from error


def recipe(config: ConfigDict) -> Recipe:
    """From `config.train`."""
    c = config.train
    names = [field.name for field in dataclasses.fields(Recipe) if field.name != "shared"]
    try:
        return Recipe(**{name: c[name] for name in names})
    except ValueError as error:
        raise ConfigError(f"config.train: {error}") from error


def objective(config: ConfigDict) -> losses.Objective:
    """From `config.loss`; fetches the weights of LPIPS where a metric needs them."""
    c = config.loss
    weighted = [c.matching, *c.grid.get("matching", ())]
    return losses.Objective(
        metric=_metric(c.metric),
        reconstruction_metric=_metric(c.reconstruction_metric or c.metric),
        idempotence=c.idempotence_form,
        use_matching=any(weight > 0 for weight in weighted),
        joint=c.joint and any(weight > 0 for weight in weighted),
    )


def _metric(name: str) -> losses.Metric:
    if name == "lpips":
        return losses.lpips_metric(lpips.load_params("alex"), pixels=1.0)
    known = {"l1": losses.l1, "l2": losses.l2}
    if name not in known:
        raise ConfigError(f"metric {name!r}, expected one of {', '.join(known)}, lpips")
    return known[name]


def weights(config: ConfigDict) -> losses.Weights:
    """From `config.loss`; a clamp of 0 is none."""
    c = config.loss
    names = ("reconstruction", "idempotence", "tightness", "matching", "temperature", "spread")
    return losses.Weights(**{name: float(c[name]) for name in names}, clamp=_clamp(c.clamp))


def _clamp(ratio: float) -> float:
    return float(ratio) if ratio > 0 else float("inf")


def members(config: ConfigDict) -> list[population.Member]:
    """The trainings of the run: `config.train.seeds` with all values of `config.loss.grid`."""
    grid = {name: tuple(values) for name, values in config.loss.grid.items() if len(values)}
    if "clamp" in grid:
        grid["clamp"] = tuple(_clamp(value) for value in grid["clamp"])
    try:
        return population.members(config.train.seeds, grid)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_images(folder: Path) -> ImageSet:
    """Reads what the stage `data` wrote."""
    arrays, header = storage.load_arrays(folder / IMAGES)
    return ImageSet(
        arrays["train"],
        arrays["test"],
        arrays.get("train_labels"),
        arrays.get("test_labels"),
        tuple(header["classes"]),
    )


def load_spectrum(folder: Path) -> noise.Spectrum | None:
    """Reads the noise statistics that the stage `data` wrote."""
    arrays, header = storage.load_arrays(folder / "noise.safetensors")
    return noise.from_arrays(arrays, header["form"])


def load_judge(folder: Path) -> Judge:
    """The classifier that the stage `judge` trained, or the feature network without classes."""
    path = folder / "classifier.safetensors"
    if not path.exists():
        return features.judge
    params = jax.tree.map(jax.numpy.asarray, storage.load_tree(path))
    return functools.partial(classifier.judge, params)


def signed(images: np.ndarray) -> np.ndarray:
    """uint8 images as float32 in [-1, 1], on the host."""
    return images.astype(np.float32) / 127.5 - 1.0


def drawn_labels(labels: np.ndarray | None, classes: int, count: int) -> np.ndarray | None:
    """Labels for `count` drawn images: all classes in turn; None for an unconditional network."""
    if labels is None or not classes:
        return None
    return (np.arange(count) % classes).astype(np.int32)
