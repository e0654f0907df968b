"""Inversion: finding the point of the weight space whose model draws given photographs.

Only the coefficients of the principal components are optimised, against the masked denoising loss
under the instance prompt, from the mean model (section 3.4 of the paper). All people are inverted
at once, as one batch axis.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from common.train_state import TrainState
from w2w import lora, losses, subspace, train
from w2w.models import FaceModel


@dataclasses.dataclass(frozen=True)
class InversionRecipe:
    """How coefficients are optimised.

    Attributes:
      num_steps: Adam steps.
      batch: noisy copies of the photographs in each step.
      learning_rate: of Adam, in units of the coefficients' standard deviations.
      prior: weight of the Gaussian prior, the mean squared coefficient in the same units.
      schedule: distribution of noise levels.
    """

    num_steps: int
    batch: int
    learning_rate: float
    prior: float
    schedule: losses.NoiseSchedule

    @functools.cache  # noqa: B019 (few recipes exist); states of one recipe have one pytree type
    def optimiser(self) -> optax.GradientTransformation:
        """Adam with a linear decay over the last half of the steps."""
        return optax.adam(train.linear_decay(self.learning_rate, self.num_steps))


def coefficients(space: subspace.Subspace, scaled: jax.Array) -> jax.Array:
    """Coefficients ``[..., k]`` from ``scaled`` ones in units of each component's deviation."""
    return scaled * jnp.broadcast_to(jnp.sqrt(space.variances), scaled.shape)


def inversion_loss(
    scaled: jax.Array,
    images: jax.Array,
    mask: jax.Array | None,
    key: jax.Array,
    space: subspace.Subspace,
    shared: train.Shared,
    layout: lora.Layout,
    model: FaceModel,
    config: lora.LoraConfig,
    recipe: InversionRecipe,
) -> jax.Array:
    """Denoising loss of the model at ``scaled [k]``, plus the prior.

    Args:
      scaled: coefficients in units of the standard deviations of the components.
      images: latents of the person's photographs, ``[n, height, width, channels]``.
      mask: None or weights of the latents ``[n, height, width]`` in [0, 1].
      key: random key of this step.
      space: the weight space; its first ``k`` components are used.
      shared: base network and prompts.
      layout: order of the adapter's values.
      model: the face model.
      config: the adapters' rank and scale.
      recipe: batch and noise.
    """
    pick_key, noise_key = jax.random.split(key)
    chosen = jax.random.randint(pick_key, (recipe.batch,), 0, images.shape[0])
    vector = subspace.unproject(space, coefficients(space, scaled))
    adapter = lora.unflatten(vector, layout)
    predict = train.adapted_predictor(model, shared.unet, adapter, config)
    error = losses.denoising(
        predict,
        images[chosen],
        train.repeat(shared.instance_text, recipe.batch),
        noise_key,
        recipe.schedule,
        None if mask is None else mask[chosen][..., None],
    )
    return error.mean() + recipe.prior * jnp.mean(scaled * scaled)


def init_inversion(count: int, k: int, recipe: InversionRecipe) -> TrainState:
    """States of ``count`` inversions at the mean model."""
    zeros = jnp.zeros((count, k))
    return jax.vmap(lambda beta: TrainState.create(beta, recipe.optimiser()))(zeros)


def make_inversion_step(
    model: FaceModel,
    config: lora.LoraConfig,
    layout: lora.Layout,
    recipe: InversionRecipe,
) -> Callable:
    """Returns the pure step over people.

    ``(states, latents [P, n, h, w, c], masks or None, keys [P], space, shared)`` gives
    ``(states, losses [P])``. States hold scaled coefficients ``[P, k]``.
    """

    def one(state, images, mask, key, space, shared):
        step_key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(inversion_loss)(
            state.params, images, mask, step_key, space, shared, layout, model, config, recipe
        )
        return state.apply_gradients(grads), loss

    return jax.vmap(one, in_axes=(0, 0, 0, 0, None, None))


@functools.cache
def compiled_inversion_step(
    model: FaceModel, config: lora.LoraConfig, layout: lora.Layout, recipe: InversionRecipe
) -> Callable:
    """The jitted step with donated states; one compilation for all spaces of equal size."""
    return jax.jit(make_inversion_step(model, config, layout, recipe), donate_argnums=0)


def invert(
    images: jax.Array,
    key: jax.Array,
    space: subspace.Subspace,
    shared: train.Shared,
    layout: lora.Layout,
    model: FaceModel,
    config: lora.LoraConfig,
    recipe: InversionRecipe,
    masks: jax.Array | None = None,
    echo: Callable[[int, float], None] | None = None,
) -> jax.Array:
    """Coefficients ``[P, k]`` of the models that draw the photographs of each person.

    Args:
      images: latents of the photographs ``[P, n, height, width, channels]``.
      key: random key; person ``i`` uses ``fold_in(key, i)``.
      space: the weight space.
      shared: base network and prompts.
      layout: order of the adapter's values.
      model: the face model.
      config: the adapters' rank and scale.
      recipe: optimiser, batch and noise.
      masks: None or ``[P, n, height, width]``.
      echo: called with (step, mean loss) every 25 steps.

    Raises:
      FloatingPointError: if a loss is not finite.
    """
    people = images.shape[0]
    step = compiled_inversion_step(model, config, layout, recipe)
    space = space.replace(n=0)  # static and not used: each number would compile again
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(people))
    states = init_inversion(people, space.k, recipe)
    for number in range(recipe.num_steps):
        states, values = step(states, images, masks, keys, space, shared)
        if echo is not None and number % 25 == 0:
            echo(number, float(values.mean()))
    if not bool(jnp.isfinite(values).all()):
        raise FloatingPointError(f"inversion: loss {values} after {recipe.num_steps} steps")
    return coefficients(space, states.params)
