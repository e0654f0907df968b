"""Training of the text-conditioned face model that the adapters customise."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from common import storage
from common.nets import age_gender, expression
from common.train_state import TrainState
from w2w import data, losses
from w2w.diffusion.autoencoder import AutoencoderConfig
from w2w.diffusion.text import TextConfig
from w2w.diffusion.unet import UNetConfig
from w2w.models import FaceModel, sample_latents


@dataclasses.dataclass(frozen=True)
class BaseRecipe:
    """Optimiser and noise of the base model's training."""

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    weight_decay: float
    ema_decay: float
    schedule: losses.NoiseSchedule


def face_model(config: ConfigDict) -> FaceModel:
    """The architecture from ``config.model`` with the vocabulary of the training people."""
    words = data.base_words()
    text = TextConfig(len(words) + 3, config.text_length, config.text_width, config.text_layers, 4)
    autoencoder = AutoencoderConfig(
        channels=1,
        latent_channels=config.latent_channels,
        patch_size=config.patch_size,
        block_out_channels=tuple(config.autoencoder_channels),
        layers_per_block=1,
        norm_groups=config.norm_groups,
    )
    unet = UNetConfig(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        attention_levels=tuple(config.attention_levels),
        num_heads=config.num_heads,
        cross_attention_dim=config.text_width,
        feed_forward_multiple=config.feed_forward_multiple,
        norm_groups=config.norm_groups,
    )
    return FaceModel(config.image_size, words, autoencoder, unet, text)


def prepare(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: jittered frames of all training photographs, each with its own caption.

    Writes ``bank.safetensors``: ``image`` uint8 ``[n, size, size]``, ``tokens`` int32
    ``[n, length]``. Olivetti people have several photographs; CelebA photographs get
    ``config.variants`` frames each and Olivetti photographs ``config.olivetti_variants``.
    """
    del inputs
    model = face_model(config.model)
    tokenizer = model.tokenizer
    rng = np.random.default_rng(config.seed)
    photographs = data.Photographs(config.model.image_size, config.celeba, config.olivetti)
    faces = photographs.faces()
    grey = faces.images[..., None]
    age, male = age_gender.predict_all(age_gender.load_params(), grey)
    feelings = expression.predict_all(expression.load_params(), grey)
    train = data.training_identities(photographs.identity)
    images, captions = [], []
    jitter = data.Jitter(**config.jitter)
    for olivetti, count in ((True, config.olivetti_variants), (False, config.variants)):
        chosen = np.flatnonzero(train & ((photographs.identity < data.FIRST_CELEBA) == olivetti))
        images.append(photographs.variants(chosen, count, jitter, rng).reshape(
            -1, config.model.image_size, config.model.image_size
        ))
        for index in chosen:
            words = data.describe(age[index], male[index], feelings[index])
            name = data.name_word(int(photographs.identity[index]))
            captions += [data.caption(words, name, rng) for _ in range(count)]
    storage.save_arrays(
        out / "bank.safetensors",
        {"image": np.concatenate(images), "tokens": tokenizer(captions)},
        {"examples": captions[:20]},
    )


def init_state(
    key: jax.Array, model: FaceModel, recipe: BaseRecipe, params: dict | None = None
) -> TrainState:
    """Fresh parameters, or those given, and AdamW with warm-up and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup, recipe.num_steps, 0.02 * recipe.learning_rate
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=recipe.weight_decay),
    )
    params = model.init(key) if params is None else params
    trained = {name: params[name] for name in ("unet", "text")}
    return TrainState.create(trained, optimiser, recipe.ema_decay)


def make_train_step(model: FaceModel, recipe: BaseRecipe) -> Callable:
    """Returns the pure step ``(state, batch, key) -> (state, metrics)``.

    ``batch`` holds ``latents`` ``[B, *latent_shape]`` and ``tokens`` int32 ``[B, length]``.
    """

    def train_step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        def loss_fn(params):
            text = model.encode(params, batch["tokens"])

            def predict(noisy, times, features):
                return model.predict(params["unet"], noisy, times, features)

            return losses.denoising(predict, batch["latents"], text, key, recipe.schedule).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return train_step


def draw(
    model: FaceModel,
    params: dict,
    prompts: list[str],
    key: jax.Array,
    config: Mapping[str, Any],
) -> np.ndarray:
    """One image for each prompt, float32 ``[n, size, size, 1]`` in [0, 1].

    ``config`` has ``steps``, ``guidance`` and ``shift`` of the sampler.
    """

    @jax.jit
    def sample(params, tokens, key):
        latents = sample_latents(
            lambda x, times, text, t: model.predict(params["unet"], x, times, text),
            key,
            model.encode(params, tokens),
            model.encode(params, model.tokenizer([""])),
            model.latent_shape,
            steps=config["steps"],
            guidance=config["guidance"],
            shift=config["shift"],
        )
        return model.to_images(params, latents)

    return np.asarray((sample(params, model.tokenizer(prompts), key) + 1.0) / 2.0)
