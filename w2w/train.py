"""Customising the base model for many people at once: DreamBooth-LoRA as one batch axis."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding

from common.train_state import TrainState
from w2w import lora, losses
from w2w.models import FaceModel


def linear_decay(learning_rate: float, num_steps: int) -> optax.Schedule:
    """Constant for half of the steps, then linear to a twentieth."""
    half = num_steps // 2
    return optax.linear_schedule(learning_rate, 0.05 * learning_rate, num_steps - half, half)


@dataclasses.dataclass(frozen=True)
class AdapterRecipe:
    """How one adapter is trained.

    Attributes:
      num_steps: optimiser steps.
      batch: the person's photographs in each step.
      class_batch: images of the class in each step (0: no prior preservation).
      learning_rate: of Adam.
      prior_weight: weight of the class half of the loss.
      weight_decay: decoupled, as AdamW's.
      ema_decay: of the moving average that is kept as the adapter; 0 keeps the last step's.
      schedule: distribution of noise levels.
    """

    num_steps: int
    batch: int
    class_batch: int
    learning_rate: float
    prior_weight: float
    weight_decay: float
    ema_decay: float
    schedule: losses.NoiseSchedule

    @functools.cache  # noqa: B019 (few recipes exist); states of one recipe have one pytree type
    def optimiser(self) -> optax.GradientTransformation:
        """AdamW with clipped gradients and a linear decay over the last half of the steps."""
        rate = linear_decay(self.learning_rate, self.num_steps)
        return optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=self.weight_decay)
        )


class Shared(struct.PyTreeNode):
    """What all adapters of a population have in common; never batched.

    Attributes:
      unet: parameters of the base network.
      instance_text: features of the instance prompt, ``[1, length, width]``.
      class_text: features of the class prompt, ``[1, length, width]``.
      class_latents: latents of images of the class ``[n, *latent_shape]``.
    """

    unet: Any
    instance_text: jax.Array
    class_text: jax.Array
    class_latents: jax.Array


def adapted_predictor(
    model: FaceModel,
    unet: Any,
    adapter: lora.Adapter,
    config: lora.LoraConfig,
    multiplier: float | jax.Array = 1.0,
) -> losses.Predictor:
    """``(noisy, times, text) -> clean latents`` of the base network with ``adapter``, unmerged."""

    def predict(noisy, times, text):
        network = lora.adapted(model.predict, unet, adapter, config, multiplier)
        return network(noisy, times, text)

    return predict


def repeat(text: jax.Array, count: int) -> jax.Array:
    """``[1, length, width]`` to ``[count, length, width]``."""
    return jnp.broadcast_to(text, (count, *text.shape[1:]))


def person_loss(
    adapter: lora.Adapter,
    latents: jax.Array,
    key: jax.Array,
    shared: Shared,
    model: FaceModel,
    config: lora.LoraConfig,
    recipe: AdapterRecipe,
) -> jax.Array:
    """DreamBooth loss of one adapter on one person's ``latents [n, *latent_shape]``."""
    pick_key, class_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.randint(pick_key, (recipe.batch,), 0, latents.shape[0])
    images = latents[chosen]
    text = repeat(shared.instance_text, recipe.batch)
    predict = adapted_predictor(model, shared.unet, adapter, config)
    if recipe.class_batch == 0:
        return losses.denoising(predict, images, text, noise_key, recipe.schedule).mean()
    other = jax.random.randint(class_key, (recipe.class_batch,), 0, shared.class_latents.shape[0])
    return losses.dreambooth(
        predict,
        images,
        text,
        shared.class_latents[other],
        repeat(shared.class_text, recipe.class_batch),
        noise_key,
        recipe.schedule,
        recipe.prior_weight,
    )


def init_population(
    key: jax.Array, count: int, shared: Shared, config: lora.LoraConfig, recipe: AdapterRecipe
) -> TrainState:
    """States of ``count`` adapters along a leading axis, all with the same ``a`` (gauge)."""
    adapters = lora.init(key, shared.unet, config, n=count)
    decay = recipe.ema_decay or None
    return jax.vmap(lambda one: TrainState.create(one, recipe.optimiser(), decay))(adapters)


def make_population_step(
    model: FaceModel, config: lora.LoraConfig, recipe: AdapterRecipe
) -> Callable[[TrainState, jax.Array, jax.Array, Shared], tuple[TrainState, jax.Array]]:
    """Returns the pure step ``(states, latents, key, shared) -> (states, losses [N])``.

    ``states`` have one entry for each person, ``latents`` is ``[N, n, *latent_shape]``. The base
    network is one set of weights for the whole batch; only the thin factors of the adapters have a
    batch of weights.

    The key is common: in step ``i`` every person gets the same choice of images, times and noise,
    as the original's models do, which were all trained with one seed. What the noise does to an
    adapter is then nearly the same for all and stays out of their differences, which are what the
    weight space describes.
    """

    def one(
        state: TrainState, latents: jax.Array, key: jax.Array, shared: Shared
    ) -> tuple[TrainState, jax.Array]:
        step_key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(person_loss)(
            state.params, latents, step_key, shared, model, config, recipe
        )
        return state.apply_gradients(grads), loss

    return jax.vmap(one, in_axes=(0, 0, None, None))


@functools.cache
def compiled_population_step(
    model: FaceModel,
    config: lora.LoraConfig,
    recipe: AdapterRecipe,
    rows: NamedSharding | None = None,
) -> Callable:
    """The jitted step with donated states; one compilation for all calls of equal shapes.

    Args:
      model: the face model.
      config: the adapters' rank and scale.
      recipe: optimiser, batch and noise.
      rows: sharding of states and losses over adapters. The results keep it; left to the compiler
        they would come back otherwise sharded, and the next call would compile again.
    """
    step = make_population_step(model, config, recipe)
    return jax.jit(step, donate_argnums=0, out_shardings=rows)
