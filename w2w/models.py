"""The text-conditioned face model: autoencoder, UNet and text encoder as one pytree."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from w2w.diffusion import flow
from w2w.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from w2w.diffusion.layers import apply
from w2w.diffusion.text import TextConfig, TextEncoder, WordTokenizer
from w2w.diffusion.unet import UNet, UNetConfig

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "face_base.safetensors"


@dataclasses.dataclass(frozen=True)
class FaceModel:
    """Static description of a face diffusion model; parameters travel separately.

    Attributes:
      image_size: side of the square grey images, in pixels.
      words: vocabulary of the prompts.
      autoencoder: configuration of the autoencoder.
      unet: configuration of the denoising network, which works on latents.
      text: configuration of the text encoder.
    """

    image_size: int
    words: tuple[str, ...]
    autoencoder: AutoencoderConfig
    unet: UNetConfig
    text: TextConfig

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)`` of the latents of one image."""
        side = self.image_size // self.autoencoder.factor
        return side, side, self.autoencoder.latent_channels

    @property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer(self.words, self.text.length)

    def init(self, key: jax.Array) -> dict:
        """Random parameters ``{"unet", "text", "autoencoder", "latent"}``."""
        unet_key, text_key, autoencoder_key = jax.random.split(key, 3)
        tokens = jnp.zeros((1, self.text.length), jnp.int32)
        text = TextEncoder(self.text).init(text_key, tokens)["params"]
        features = jnp.zeros((1, self.text.length, self.text.width))
        latents = jnp.zeros((1, *self.latent_shape))
        unet = UNet(self.unet).init(unet_key, latents, jnp.zeros((1,)), features)["params"]
        return {
            "unet": unet,
            "text": text,
            "autoencoder": self.init_autoencoder(autoencoder_key),
            "latent": {"mean": jnp.zeros(latents.shape[-1:]), "std": jnp.ones(latents.shape[-1:])},
        }

    def init_autoencoder(self, key: jax.Array) -> dict:
        """Random parameters of the autoencoder alone."""
        image = jnp.zeros((1, self.image_size, self.image_size, self.autoencoder.channels))
        return Autoencoder(self.autoencoder).init(key, image)["params"]

    def to_latents(self, params: dict, images: jax.Array) -> jax.Array:
        """Standardised mean latents ``[B, *latent_shape]`` of images in [-1, 1]."""
        network = Autoencoder(self.autoencoder)
        mean, _ = apply(network, params["autoencoder"], images, method="encode")
        shift, scale = (params["latent"][k][None, None, None] for k in ("mean", "std"))
        return (mean - shift) / scale

    def to_images(self, params: dict, latents: jax.Array) -> jax.Array:
        """Images ``[B, size, size, 1]`` in [-1, 1] of standardised latents."""
        shift, scale = (params["latent"][k][None, None, None] for k in ("mean", "std"))
        network = Autoencoder(self.autoencoder)
        images = apply(network, params["autoencoder"], latents * scale + shift, method="decode")
        return jnp.clip(images, -1.0, 1.0)

    def encode(self, params: dict, tokens: jax.Array | np.ndarray) -> jax.Array:
        """Text features ``[batch, length, width]`` of token rows ``[batch, length]``."""
        return _encode(self.text, params["text"], jnp.asarray(tokens))

    def predict(
        self, unet_params: dict, noisy: jax.Array, times: jax.Array, text: jax.Array
    ) -> jax.Array:
        """Clean latents predicted from ``noisy [batch, *latent_shape]`` at ``times`` in [0, 1]."""
        return apply(UNet(self.unet), unet_params, noisy, 1000.0 * times, text)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "FaceModel":
        def tuples(x):
            return tuple(x) if isinstance(x, list) else x

        parts: dict[str, Any] = {
            name: kind(**{k: tuples(v) for k, v in values[name].items()})
            for name, kind in (
                ("autoencoder", AutoencoderConfig),
                ("unet", UNetConfig),
                ("text", TextConfig),
            )
        }
        return cls(values["image_size"], tuple(values["words"]), **parts)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: TextConfig, params: dict, tokens: jax.Array) -> jax.Array:
    return apply(TextEncoder(config), params, tokens)


def sample_latents(
    predict: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    text: jax.Array,
    empty_text: jax.Array,
    latent_shape: tuple[int, int, int],
    *,
    steps: int,
    guidance: float,
    shift: float,
) -> jax.Array:
    """Draws the latents of one image for each row of ``text`` with classifier-free guidance.

    Args:
      predict: ``(noisy, times, text, t scalar) -> clean latents``.
      key: random key of the initial noise.
      text: features of the prompts ``[batch, length, width]``.
      empty_text: features of the empty prompt ``[1, length, width]``.
      latent_shape: shape of one image's latents.
      steps: Heun steps.
      guidance: guidance scale, 1 for none.
      shift: time shift of the grid (see :func:`w2w.diffusion.flow.time_grid`).

    Returns:
      ``[batch, *latent_shape]``.
    """
    batch = text.shape[0]
    both = jnp.concatenate([text, jnp.broadcast_to(empty_text, text.shape)])

    def denoise(x, times, t):
        if guidance == 1.0:
            return predict(x, times, text, t)
        out = predict(jnp.concatenate([x, x]), jnp.concatenate([times, times]), both, t)
        return flow.guided(out[:batch], out[batch:], guidance)

    noise = jax.random.normal(key, (batch, *latent_shape))
    return flow.sample(denoise, noise, steps, shift)


def save(path: Path, model: FaceModel, params: dict, card: dict) -> None:
    """Writes parameters as float16 safetensors with the model and ``card`` in the header."""
    flat = {k: np.asarray(v, np.float16) for k, v in flatten_dict(params, sep="/").items()}
    header = {"model": json.dumps(model.to_dict()), "card": json.dumps(card)}
    temporary = path.with_suffix(".tmp")
    save_file(flat, temporary, metadata=header)
    temporary.rename(path)


@functools.cache
def _shapes(model: FaceModel) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the parameters by path; tracing the networks for them takes seconds."""
    return flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")


def load(path: Path) -> tuple[FaceModel, dict, dict]:
    """Reads ``(model, float32 parameters, card)`` written by :func:`save`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the tensors are not those of the model in the header.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no base model; train one with configs/face_base.py or give --config.base.path"
        )
    with safe_open(path, framework="np") as file:
        header = file.metadata() or {}
        if "model" not in header:
            raise ValueError(f"{path}: no model description in the header")
        flat = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
    model = FaceModel.from_dict(json.loads(header["model"]))
    expected = _shapes(model)
    if set(expected) != set(flat):
        raise ValueError(f"{path}: tensors differ from the model: {set(expected) ^ set(flat)}")
    for name, tensor in flat.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tensor.shape}, the model wants {expected[name].shape}"
            )
    params = unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")
    return model, params, json.loads(header.get("card", "{}"))


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
