"""Stable Diffusion 1.x, 2.x and XL pipelines from folders in diffusers' layout.

A folder holds ``model_index.json``, which names the components, and one folder for each of them
with its configuration and weights. Nothing in it is executed.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from common import storage
from w2w.diffusion import (
    component_config,
    hub,
    pretrained,
    scheduler_config,
    tokenizer,
    weight_files,
)
from w2w.diffusion.autoencoder import Autoencoder, sample_posterior
from w2w.diffusion.layers import apply
from w2w.diffusion.schedulers import Scheduler
from w2w.diffusion.text import TextEncoder, TextOutputs
from w2w.diffusion.unet import UNet


class Condition(NamedTuple):
    """What the UNet is told besides the noisy latents; a pytree with the batch in front.

    Attributes:
      text: text features ``[batch, tokens, width]``.
      pooled: pooled text ``[batch, width]``, of SDXL.
      sizes: see :class:`w2w.diffusion.unet.UNet`, of SDXL.
    """

    text: jax.Array
    pooled: jax.Array | None = None
    sizes: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A text-to-image model: modules, their parameters, a scheduler and tokenizers.

    Attributes:
      unet: denoising network.
      vae: autoencoder.
      text_encoders: one, or SDXL's two.
      tokenizers: one for each text encoder; maps prompts to int32 ``[prompts, length]``.
      scheduler: noise process and sampler.
      params: ``{"unet", "vae", "text_encoder_0", ...}``, pytrees of float32 (or as loaded).
      latent_scale: factor from the autoencoder's latents to those that are noised.
      sample_size: sides ``(height, width)`` of the latents the UNet was made for.
      zero_empty_negative: features of a negative prompt that is not given are zero (SDXL).
    """

    unet: UNet
    vae: Autoencoder
    text_encoders: tuple[TextEncoder, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Scheduler
    params: Mapping[str, Any]
    latent_scale: float
    sample_size: tuple[int, int]
    zero_empty_negative: bool = False

    @property
    def is_xl(self) -> bool:
        """Whether the UNet takes pooled text and sizes."""
        return self.unet.config.size_embedding is not None

    def predict(
        self, unet_params: Any, x: jax.Array, timesteps: jax.Array, condition: Condition
    ) -> jax.Array:
        """The UNet's prediction for ``x [batch, h, w, c]`` at ``timesteps [batch]``."""
        return predict(self.unet, unet_params, x, timesteps, condition)

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Token rows ``[prompts, length]`` for each text encoder."""
        return tuple(tokenizer(prompts) for tokenizer in self.tokenizers)

    def encode_text(self, tokens: Sequence[Any], image_size: tuple[int, int]) -> Condition:
        """Features of tokenized prompts.

        SD 1.x and 2.x use the normed last features of one encoder; SDXL the penultimate ones of
        both, side by side, and the second one's pooled text (Podell et al., 2023, section 2.1).

        Args:
          tokens: what :meth:`tokenize` returns.
          image_size: height and width in pixels; original and target size of SDXL, uncropped.
        """
        params = tuple(self.params[f"text_encoder_{i}"] for i in range(len(self.text_encoders)))
        rows = tuple(jnp.asarray(row) for row in tokens)
        outputs = _encode_text(params, rows, encoders=self.text_encoders)
        if not self.is_xl:
            return Condition(outputs[0].last)
        text = jnp.concatenate([out.penultimate for out in outputs], axis=-1)
        sizes = jnp.asarray([[*image_size, 0, 0, *image_size]], jnp.float32)
        sizes = jnp.broadcast_to(sizes, (len(text), 6))
        return Condition(text, outputs[-1].pooled, sizes)

    def encode_images(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Scaled latents of images in [-1, 1]: a sample of the posterior, or without key its mean.

        Args:
          images: ``[batch, height, width, 3]``.
          key: random key.
        """
        mean, log_variance = _encode_images(self.params["vae"], images, vae=self.vae)
        latents = mean if key is None else sample_posterior(key, mean, log_variance)
        return latents * self.latent_scale

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images ``[batch, height, width, 3]`` in [-1, 1], not clipped, of scaled latents."""
        return _decode(self.params["vae"], latents / self.latent_scale, vae=self.vae)


def predict(
    unet: UNet, params: Any, x: jax.Array, timesteps: jax.Array, condition: Condition
) -> jax.Array:
    """The prediction of a UNet; see :meth:`Pipeline.predict`."""
    return apply(unet, params, x, timesteps, *condition)


@functools.cache
def predictor(unet: UNet) -> Callable[..., jax.Array]:
    """``(params, x, timesteps, condition) -> prediction`` of a UNet; one object for each UNet."""
    return functools.partial(predict, unet)


# Modules are static and parameters arguments, so that pipelines of one architecture share programs.
@functools.partial(jax.jit, static_argnames="encoders")
def _encode_text(
    params: tuple, tokens: tuple[jax.Array, ...], encoders: tuple[TextEncoder, ...]
) -> list[TextOutputs]:
    triples = zip(encoders, params, tokens, strict=True)
    return [apply(module, tree, rows, method="outputs") for module, tree, rows in triples]


@functools.partial(jax.jit, static_argnames="vae")
def _encode_images(params: Any, images: jax.Array, vae: Autoencoder) -> tuple[jax.Array, jax.Array]:
    return apply(vae, params, images, method="encode")


@functools.partial(jax.jit, static_argnames="vae")
def _decode(params: Any, latents: jax.Array, vae: Autoencoder) -> jax.Array:
    # One image at a time: the decoder's activations are hundreds of megabytes for each.
    return jax.lax.map(lambda x: apply(vae, params, x[None], method="decode")[0], latents)


# Component classes of each pipeline class; None where a pipeline has no such component.
_ONE = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_TWO = {
    **_ONE,
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_PIPELINES = {"StableDiffusionPipeline": _ONE, "StableDiffusionXLPipeline": _TWO}
# Work on images or prompts around the model, not in it.
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def load_pipeline(
    path_or_hub_id: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    revision: str | None = None,
    scheduler: Scheduler | None = None,
    remat: bool = False,
) -> Pipeline:
    """Loads a pipeline from a folder in diffusers' layout, or from a hub repository.

    As in diffusers, the scheduler of a ``StableDiffusionPipeline`` gets ``steps_offset`` 1 and no
    clipping whatever its file says (files of 2022 say otherwise by mistake); a change is logged.

    Args:
      path_or_hub_id: folder, or ``owner/name`` of a repository, of which one copy of the weights
        is downloaded.
      dtype: of the computation, ``jnp.float32`` or ``jnp.bfloat16``.
      param_dtype: of the parameters, likewise; float16 files are converted.
      revision: branch, tag or commit of the repository.
      scheduler: used instead of the folder's.
      remat: gradient checkpointing in the UNet.

    Raises:
      FileNotFoundError, ImportError, ConnectionError: see :func:`w2w.diffusion.hub.locate`; a
        missing file.
      ValueError: a component, a key of a configuration or a value that is not supported, damaged
        weights, or weights that are not those of the configuration (with all names).
    """
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        if jnp.dtype(value) not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"{name} = {value} is not supported; expected float32 or bfloat16")
    compute = None if jnp.dtype(dtype) == jnp.dtype(param_dtype) == jnp.float32 else dtype
    folder = hub.locate(path_or_hub_id, revision)
    index = _read_json(folder / "model_index.json")
    kind = _check_index(index, folder)

    def params_of(name: str, library: str, convert: Any, config: Any) -> dict:
        tensors = weight_files.read(folder / name, library)
        try:
            numpy_params = convert(tensors, config, param_dtype)
        except ValueError as error:
            raise type(error)(f"{folder / name}: {error}") from error
        return jax.tree.map(jnp.asarray, numpy_params)

    params = {}
    unet_json = _read_json(folder / "unet" / "config.json")
    unet = component_config.unet_config(unet_json)
    unet = dataclasses.replace(unet, remat=remat)
    params["unet"] = params_of("unet", "diffusers", pretrained.unet_params, unet)
    vae_json = _read_json(folder / "vae" / "config.json")
    vae, latent_scale = component_config.autoencoder_config(vae_json)
    params["vae"] = params_of("vae", "diffusers", pretrained.autoencoder_params, vae)
    encoders, tokenizers = [], []
    for i, suffix in enumerate(("", "_2") if kind is _TWO else ("",)):
        name = f"text_encoder{suffix}"
        config = component_config.text_config(
            _read_json(folder / name / "config.json"), projected=bool(suffix)
        )
        params[f"text_encoder_{i}"] = params_of(
            name, "transformers", pretrained.text_params, config
        )
        encoders.append(TextEncoder(config, compute))
        tokenizers.append(tokenizer.load(folder / f"tokenizer{suffix}"))
    if scheduler is None:
        scheduler = _scheduler(folder, corrected=kind is _ONE)
    size = unet_json.get("sample_size") or (128 if kind is _TWO else 64)
    result = Pipeline(
        unet=UNet(unet, compute),
        vae=Autoencoder(vae, compute),
        text_encoders=tuple(encoders),
        tokenizers=tuple(tokenizers),
        scheduler=scheduler,
        params=params,
        latent_scale=latent_scale,
        sample_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        zero_empty_negative=kind is _TWO and index.get("force_zeros_for_empty_prompt", True),
    )
    _check_widths(result, folder)
    return result


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; not a folder of a diffusers pipeline?")
    value = storage.load_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, not an object")
    return value


def _check_index(index: dict, folder: Path) -> dict[str, tuple[str, ...]]:
    """The components of the pipeline's class, after comparing them with the index."""
    where, name = folder / "model_index.json", index.get("_class_name")
    if name not in _PIPELINES:
        raise ValueError(
            f"{where}: pipeline class {name!r} is not supported; expected one of "
            f"{', '.join(_PIPELINES)}"
        )
    kind = _PIPELINES[name]
    for component, classes in kind.items():
        entry = index.get(component)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if found not in classes:
            raise ValueError(
                f"{where}: {component} is {found!r}; expected {' or '.join(classes)}"
            )
    for component, entry in index.items():
        is_component = isinstance(entry, list) and any(entry)
        if is_component and component not in (*kind, "scheduler", *_UNUSED):
            raise ValueError(f"{where}: component {component} = {entry} is not supported")
    return kind


def _scheduler(folder: Path, corrected: bool) -> Scheduler:
    config = _read_json(folder / "scheduler" / "scheduler_config.json")
    if corrected:
        defaults = scheduler_config.DEFAULTS.get(config.get("_class_name", ""), {})
        for key, value in (("steps_offset", 1), ("clip_sample", False)):
            found = config.get(key, defaults.get(key, value))
            if found != value:
                logging.info("%s: %s = %s is read as %s", folder, key, found, value)
                config = {**config, key: value}
    try:
        return scheduler_config.from_config(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'scheduler'}: {error}") from error


def _check_widths(pipeline: Pipeline, folder: Path) -> None:
    """Components that do not fit each other are an error here, not in the first matmul."""
    texts = [encoder.config for encoder in pipeline.text_encoders]
    unet = pipeline.unet.config
    width = sum(config.width for config in texts)
    pooled = texts[-1].projection or 0
    for what, found, wanted in (
        ("text features", width, unet.cross_attention_dim),
        ("pooled text", pooled, unet.pooled_width),
        ("latent channels", pipeline.vae.config.latent_channels, unet.in_channels),
        ("predicted channels", pipeline.vae.config.latent_channels, unet.out_channels),
    ):
        if found != wanted:
            raise ValueError(f"{folder}: {found} {what}, but the UNet is made for {wanted}")
