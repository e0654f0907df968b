"""Training of the classifier that is then frozen and explained."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from common.train_state import TrainState

PyTree = Any


class ClassifierState(struct.PyTreeNode):
    """Parameters with optimiser, and averages of batch normalisation (``{}`` without it)."""

    train: TrainState
    stats: PyTree

    @property
    def params(self) -> PyTree:
        return self.train.params

    def variables(self) -> PyTree:
        return {"params": self.train.eval_params, **self.stats}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW with a cosine schedule; images are mirrored at random and shifted by `shift` pixels.

    `frozen`: beginnings of the names of layers that keep their first weights.
    """

    num_steps: int
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    shift: int = 2
    frozen: tuple[str, ...] = ()


def init(
    net: nn.Module, recipe: Recipe, images: jax.Array, key: jax.Array, params: PyTree = None
) -> ClassifierState:
    """State before the first step, with the given parameters or random ones."""
    variables = net.init(key, images)
    optimiser = _adamw(recipe.learning_rate, recipe.num_steps, recipe.weight_decay)
    params = variables["params"] if params is None else params
    variables = {name: tree for name, tree in variables.items() if name != "params"}
    if recipe.frozen:
        kept = {name: name.startswith(recipe.frozen) for name in params}
        labels = {name: jax.tree.map(lambda _, k=kept[name]: "kept" if k else "trained", tree)
                  for name, tree in params.items()}
        optimiser = optax.multi_transform(
            {"trained": optimiser, "kept": optax.set_to_zero()}, labels)
    return ClassifierState(TrainState.create(params, optimiser), variables)


@functools.cache
def _adamw(rate: float, steps: int, decay: float) -> optax.GradientTransformation:
    """One and the same for all seeds and controls, so that their states have one program."""
    schedule = optax.cosine_decay_schedule(rate, max(steps, 1))
    return optax.adamw(schedule, weight_decay=decay)


@functools.cache
def make_train_step(
    net: nn.Module, recipe: Recipe
) -> Callable[[ClassifierState, dict[str, jax.Array], jax.Array], tuple[ClassifierState, dict]]:
    """Returns the pure step; `batch` holds ``image`` and ``label``."""

    def train_step(
        state: ClassifierState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[ClassifierState, dict[str, jax.Array]]:
        first, second = jax.random.split(key)
        images = _moved(batch["image"], recipe.shift, first)

        def loss(params: PyTree) -> tuple[jax.Array, tuple]:
            logits, new = net.apply({"params": params, **state.stats}, images, train=True,
                                    mutable=list(state.stats), rngs={"dropout": second})
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            right = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
            return jnp.mean(each), (dict(new), right)

        (value, (new, right)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        state = state.replace(train=state.train.apply_gradients(grads), stats=new)
        return state, {"loss": value, "accuracy": right}

    return train_step


def predict(net: nn.Module, variables: PyTree, images: np.ndarray, batch: int = 128) -> np.ndarray:
    """Logits ``[n, classes]``, computed in batches of one shape."""
    apply = _applied(net)
    found = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        padded = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
        found.append(np.asarray(apply(variables, padded))[: len(part)])
    return np.concatenate(found)


@functools.cache
def _applied(net: nn.Module) -> Callable:
    return jax.jit(lambda variables, images: net.apply(variables, images))


def _moved(images: jax.Array, shift: int, key: jax.Array) -> jax.Array:
    """Each batch mirrored or not, and shifted by up to `shift` pixels, edges repeated."""
    first, second = jax.random.split(key)
    flip = jax.random.bernoulli(first, 0.5, (len(images), 1, 1, 1))
    images = jnp.where(flip, images[:, :, ::-1], images)
    if not shift:
        return images
    pads = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    offset = jax.random.randint(second, (2,), 0, 2 * shift + 1)
    start = (jnp.int32(0), offset[0], offset[1], jnp.int32(0))
    return jax.lax.dynamic_slice(jnp.pad(images, pads, mode="edge"), start, images.shape)
