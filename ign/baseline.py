"""Plain and denoising autoencoders of the same network: what restoration is compared with.

Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008.
Both minimise the mean absolute error, of distorted images if asked; the denoising one sees images
with Gaussian noise of a random deviation, so on noise it is trained for the very task and sets a
bar, on the other corruptions neither has an advantage.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from common.train_state import TrainState
from ign import augment, losses, models, principal
from ign.train import to_signed

NAMES = ("autoencoder", "denoising autoencoder")


class BaselineState(struct.PyTreeNode):
    """A training state with the largest deviation of the noise of its inputs, scalar."""

    train: TrainState
    noise: jax.Array

    @property
    def params(self) -> dict:
        """The trained parameters."""
        return self.train.params


def network(config: models.NetConfig) -> models.NetConfig:
    """The architecture of a baseline: that of the network, without labels and batch statistics."""
    norm = "group" if config.norm == "batch" else config.norm
    return dataclasses.replace(config, classes=0, norm=norm, dropout=0.0)


def init_state(
    key: jax.Array,
    config: models.NetConfig,
    learning_rate: float,
    steps: int,
    noise: float,
    components: principal.Components | None = None,
) -> BaselineState:
    """Fresh parameters and Adam with a cosine schedule; `noise` 0 is the plain autoencoder.

    `components` are for a network with `principal`.
    """
    params = models.init(models.build(config), key, config.shape)["params"]
    if components is not None:
        params = principal.start(params, components)
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    return BaselineState(TrainState.create(params, optax.adam(schedule)), jnp.float32(noise))


def make_train_step(config: models.NetConfig, distortion: float = 0.0) -> Callable:
    """Returns the pure step `(state, batch, key) -> (state, metrics)` of one baseline.

    Args:
        config: the network.
        distortion: strength of the images' random distortions, see `augment.affine`; 0 for none.
    """
    net = models.build(config)

    def step(state: BaselineState, batch: dict, key: jax.Array) -> tuple[BaselineState, dict]:
        images = to_signed(batch["image"])
        if distortion:
            images = augment.affine(images, jax.random.fold_in(key, 7), distortion)
        size, noise = jax.random.split(key)
        deviation = state.noise * jax.random.uniform(size, (images.shape[0], 1, 1, 1))
        inputs = images + deviation * jax.random.normal(noise, images.shape)
        inputs = jnp.clip(inputs, -1.0, 1.0)

        def loss(params):
            outputs: Any = net.apply({"params": params}, inputs)
            return losses.l1(outputs, images).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.replace(train=state.train.apply_gradients(grads)), {"loss": value}

    return step
