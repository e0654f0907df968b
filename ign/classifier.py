"""A small convolutional classifier, trained here, that judges generated images.

Its last hidden layer is the feature space of the Frechet and kernel distances ("FD-cnn"; never to
be called FID, which is Inception's), its classes are those of coverage and entropy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import rng
from common.train_state import TrainState
from ign.train import to_signed

FEATURES = 128


class Classifier(nn.Module):
    """`[batch, height, width, channels]` in [-1, 1] -> (logits `[batch, classes]`, features).

    Three convolutions of stride 2 with 32, 64 and 128 maps, then 128 features.
    """

    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for index, (width, kernel) in enumerate(((32, 4), (64, 3), (128, 3))):
            x = nn.relu(nn.Conv(width, (kernel, kernel), 2, name=f"conv{index}")(x))
        features = nn.relu(nn.Dense(FEATURES, name="features")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes, name="logits")(features), features


class Judged(NamedTuple):
    """What the classifier says of images: probabilities `[n, classes]`, features `[n, 128]`."""

    probabilities: np.ndarray
    features: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The most probable class of each image, `[n]`."""
        return self.probabilities.argmax(axis=1)


def init_state(key: jax.Array, shape: tuple[int, ...], classes: int, steps: int) -> TrainState:
    """Fresh parameters and Adam with a cosine schedule from 2e-3."""
    params = Classifier(classes).init(key, jnp.zeros((1, *shape)))["params"]
    schedule = optax.cosine_decay_schedule(2e-3, steps)
    return TrainState.create(params, optax.adam(schedule))


def make_train_step(classes: int, shift: int = 2) -> Callable:
    """Returns the pure step `(state, batch, key) -> (state, metrics)`: cross-entropy.

    `batch` has `image` `[batch, h, w, c]` and `label` `[batch]`. Each image is moved by up to
    `shift` pixels in either direction, its border repeated.
    """
    net = Classifier(classes)

    def step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        images = to_signed(batch["image"])
        padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        offsets = jax.random.randint(key, (len(images), 2), 0, 2 * shift + 1)

        def moved(image: jax.Array, offset: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

        images = jax.vmap(moved)(padded, offsets)

        def loss(params):
            logits, _ = net.apply({"params": params}, images)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return entropy.mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads), {"loss": value}

    return step


def judge(params: dict, images: np.ndarray, block: int = 256) -> Judged:
    """Probabilities and features of `images [n, h, w, c]`, uint8 or float in [-1, 1]."""
    classes = params["logits"]["bias"].shape[0]
    block = min(block, len(images))
    probabilities = np.empty((len(images), classes), np.float32)
    features = np.empty((len(images), FEATURES), np.float32)
    for start in range(0, len(images), block):
        # The last rows again fill up the last block: one compilation.
        rows = np.minimum(np.arange(start, start + block), len(images) - 1)
        p, f = _forward(params, to_signed(jnp.asarray(images[rows])), classes)
        probabilities[rows], features[rows] = p, f
    return Judged(probabilities, features)


@jax.jit(static_argnames="classes")
def _forward(params: dict, images: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    result: Any = Classifier(classes).apply({"params": params}, images)
    logits, features = result
    return jax.nn.softmax(logits), features


def init_key(seed: int) -> jax.Array:
    """The stream of the classifier's initial parameters."""
    return rng.stream(jax.random.key(seed), "classifier-init")
