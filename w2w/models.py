"""The text-conditioned face model: UNet and text encoder as one pytree, with its words."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from w2w.diffusion import flow
from w2w.diffusion.text import TextConfig, TextEncoder, WordTokenizer
from w2w.diffusion.unet import UNet, UNetConfig

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "face_base.safetensors"


@dataclasses.dataclass(frozen=True)
class FaceModel:
    """Static description of a face diffusion model; parameters travel separately.

    Attributes:
      image_size: side of the square grey images, in pixels.
      words: vocabulary of the prompts.
      unet: configuration of the denoising network.
      text: configuration of the text encoder.
    """

    image_size: int
    words: tuple[str, ...]
    unet: UNetConfig
    text: TextConfig

    @property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer(self.words, self.text.length)

    def init(self, key: jax.Array) -> dict:
        """Random parameters ``{"unet": ..., "text": ...}``."""
        unet_key, text_key = jax.random.split(key)
        size = self.image_size
        tokens = jnp.zeros((1, self.text.length), jnp.int32)
        text = TextEncoder(self.text).init(text_key, tokens)["params"]
        features = jnp.zeros((1, self.text.length, self.text.width))
        image = jnp.zeros((1, size, size, self.unet.in_channels))
        unet = UNet(self.unet).init(unet_key, image, jnp.zeros((1,)), features)["params"]
        return {"unet": unet, "text": text}

    def encode(self, params: dict, tokens: jax.Array | np.ndarray) -> jax.Array:
        """Text features ``[batch, length, width]`` of token rows ``[batch, length]``."""
        return TextEncoder(self.text).apply({"params": params["text"]}, jnp.asarray(tokens))

    def predict(
        self, unet_params: dict, noisy: jax.Array, times: jax.Array, text: jax.Array
    ) -> jax.Array:
        """Clean images predicted from ``noisy [batch, size, size, 1]`` at ``times`` in [0, 1]."""
        return UNet(self.unet).apply({"params": unet_params}, noisy, 1000.0 * times, text)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "FaceModel":
        def tuples(x):
            return tuple(x) if isinstance(x, list) else x

        unet = UNetConfig(**{k: tuples(v) for k, v in values["unet"].items()})
        return cls(
            values["image_size"], tuple(values["words"]), unet, TextConfig(**values["text"])
        )


def sample_images(
    predict: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    text: jax.Array,
    empty_text: jax.Array,
    image_size: int,
    *,
    steps: int,
    guidance: float,
    shift: float,
) -> jax.Array:
    """Draws one image for each row of ``text`` with classifier-free guidance.

    Args:
      predict: ``(noisy, times, text, t scalar) -> clean images``.
      key: random key of the initial noise.
      text: features of the prompts ``[batch, length, width]``.
      empty_text: features of the empty prompt ``[1, length, width]``.
      image_size: side of the images.
      steps: Heun steps.
      guidance: guidance scale, 1 for none.
      shift: time shift of the grid (see :func:`w2w.diffusion.flow.time_grid`).

    Returns:
      Images ``[batch, image_size, image_size, 1]`` in [-1, 1].
    """
    batch = text.shape[0]
    both = jnp.concatenate([text, jnp.broadcast_to(empty_text, text.shape)])

    def denoise(x, times, t):
        if guidance == 1.0:
            return predict(x, times, text, t)
        out = predict(jnp.concatenate([x, x]), jnp.concatenate([times, times]), both, t)
        return flow.guided(out[:batch], out[batch:], guidance)

    noise = jax.random.normal(key, (batch, image_size, image_size, 1))
    return jnp.clip(flow.sample(denoise, noise, steps, shift), -1.0, 1.0)


def save(path: Path, model: FaceModel, params: dict, card: dict) -> None:
    """Writes parameters as float16 safetensors with the model and ``card`` in the header."""
    flat = {k: np.asarray(v, np.float16) for k, v in flatten_dict(params, sep="/").items()}
    header = {"model": json.dumps(model.to_dict()), "card": json.dumps(card)}
    temporary = path.with_suffix(".tmp")
    save_file(flat, temporary, metadata=header)
    temporary.rename(path)


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
    expected = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    if set(expected) != set(flat):
        raise ValueError(f"{path}: tensors differ from the model: {set(expected) ^ set(flat)}")
    for name, tensor in flat.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tensor.shape}, the model wants {expected[name].shape}"
            )
    params = unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")
    return model, params, json.loads(header.get("card", "{}"))
