"""A face model small enough for tests: 16 x 16 pixels, 4 x 4 latents, 5 words."""

import jax
import jax.numpy as jnp
import numpy as np

from w2w import lora, losses, train
from w2w.diffusion.autoencoder import AutoencoderConfig
from w2w.diffusion.text import TextConfig
from w2w.diffusion.unet import UNetConfig
from w2w.models import FaceModel

WORDS = ("sks", "person", "man", "woman", "smiling")
MODEL = FaceModel(
    16,
    WORDS,
    AutoencoderConfig(1, 3, 2, (8, 8), 1, 4),
    UNetConfig(3, 3, 1, (8, 16), 1, (False, True), 2, 8, 2, 4),
    TextConfig(len(WORDS) + 3, 6, 8, 1, 2),
)
LORA = lora.LoraConfig(rank=2, alpha=4.0)
SCHEDULE = losses.NoiseSchedule(0.0, 1.0)


def params(seed: int = 0) -> dict:
    """Random parameters without compiling an initialiser; none is zero, output layers neither."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        values = random.normal(size=leaf.shape)
        if leaf.ndim > 1:
            return jnp.asarray(values / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)
        return jnp.asarray((name in ("scale", "std")) + 0.05 * values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(MODEL.init, jax.random.key(0)))


def shared(tree: dict) -> train.Shared:
    text = MODEL.encode(tree, MODEL.tokenizer(["sks person", "person"]))
    images = np.random.default_rng(3).normal(size=(5, *MODEL.latent_shape)).astype(np.float32)
    return train.Shared(tree["unet"], text[:1], text[1:], jnp.asarray(images))


def recipe(**changes) -> train.AdapterRecipe:
    values = dict(
        num_steps=4,
        batch=2,
        class_batch=1,
        learning_rate=1e-2,
        prior_weight=1.0,
        weight_decay=0.0,
        ema_decay=0.0,
        schedule=SCHEDULE,
    )
    return train.AdapterRecipe(**{**values, **changes})


def layout(tree: dict) -> lora.Layout:
    return lora.Layout.from_params(tree["unet"], LORA)


def adapters(tree: dict, count: int, seed: int = 7) -> jax.Array:
    """Random flat adapters ``[count, D]`` with an effect."""
    return 0.3 * jax.random.normal(jax.random.key(seed), (count, layout(tree).size))
