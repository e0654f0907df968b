"""What every stage after the base model needs: model, parameters, adapter layout, prompts."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from common import rng, storage
from w2w import autoencode, data, lora, losses, models, train
from w2w.generate import Drawing
from w2w.inversion import InversionRecipe


@dataclasses.dataclass(frozen=True)
class Context:
    """The base model with the prompts and the adapters' shape.

    Attributes:
      model: the face model.
      params: its parameters.
      lora_config: rank, scale and targets of the adapters.
      layout: order of an adapter's values.
      shared: base network, prompt features and latents of class images.
      drawing: sampler settings.
    """

    model: models.FaceModel
    params: dict
    lora_config: lora.LoraConfig
    layout: lora.Layout
    shared: train.Shared
    drawing: Drawing


def load(config: ConfigDict, base: Path) -> Context:
    """Context of the base model that stage ``base`` left in the folder ``base``.

    Args:
      config: has ``lora`` (rank, alpha), ``sample`` (steps, guidance, shift) and ``prompts``
        (instance, class_).
      base: folder with ``face_base.safetensors`` and ``class_images.safetensors``.
    """
    model, params, _ = models.load(base / "face_base.safetensors")
    arrays, _ = storage.load_arrays(base / "class_images.safetensors")
    latents = autoencode.encode_all(model, params, arrays["images"])
    lora_config = lora.LoraConfig(config.lora.rank, config.lora.alpha)
    prompts = [config.prompts.instance, config.prompts.class_]
    text = model.encode(params, model.tokenizer(prompts))
    shared = train.Shared(params["unet"], text[:1], text[1:], jax.numpy.asarray(latents))
    drawing = Drawing(config.sample.steps, config.sample.guidance, config.sample.shift)
    layout = lora.Layout.from_params(params["unet"], lora_config)
    return Context(model, params, lora_config, layout, shared, drawing)


def encode(ctx: Context, images: np.ndarray) -> np.ndarray:
    """Latents ``[..., *latent_shape]`` of uint8 images ``[..., size, size]``."""
    flat = images.reshape(-1, *images.shape[-2:])
    latents = autoencode.encode_all(ctx.model, ctx.params, flat)
    return latents.reshape(*images.shape[:-2], *latents.shape[1:])


def key(config: ConfigDict, name: str) -> jax.Array:
    """The run's random stream of this name."""
    return rng.stream(jax.random.key(config.seed), name)


def adapter_recipe(config: ConfigDict) -> train.AdapterRecipe:
    """From ``config.adapter``."""
    c = config.adapter
    return train.AdapterRecipe(
        c.num_steps,
        c.batch,
        c.class_batch,
        c.learning_rate,
        c.prior_weight,
        c.weight_decay,
        c.ema_decay,
        losses.NoiseSchedule(c.time_mean, c.time_std),
    )


def inversion_recipe(config: ConfigDict) -> InversionRecipe:
    """From ``config.inversion``."""
    c = config.inversion
    return InversionRecipe(
        c.num_steps,
        c.batch,
        c.learning_rate,
        c.prior,
        losses.NoiseSchedule(c.time_mean, c.time_std),
    )


@dataclasses.dataclass(frozen=True)
class FaceTable:
    """The photographs with what the independent networks say of them.

    Attributes:
      faces: canonical photographs.
      descriptors: ``[photographs, 128]``.
      labels: attribute name to ``[photographs]``.
      centre: mean descriptor of the training photographs.
    """

    faces: data.Faces
    descriptors: np.ndarray
    labels: dict[str, np.ndarray]
    centre: np.ndarray

    def rows(self, identity: int) -> np.ndarray:
        return np.flatnonzero(self.faces.identity == identity)


def load_faces(folder: Path) -> FaceTable:
    """Reads what :func:`w2w.build.faces` wrote."""
    arrays, _ = storage.load_arrays(folder / "faces.safetensors")
    found = data.Faces(arrays["images"], arrays["identity"])
    train_rows = data.training_identities(found.identity)
    labels = {name[6:]: array for name, array in arrays.items() if name.startswith("label.")}
    centre = arrays["descriptors"][train_rows].mean(axis=0)
    return FaceTable(found, arrays["descriptors"], labels, centre)
