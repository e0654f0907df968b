"""Codes of real images, by optimisation: all images and restarts in one program."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Draw = Callable[[jax.Array, jax.Array], jax.Array]
Score = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Published: 5,000 steps at 0.01 from one start, class term 1, pixels 4, prior 0.

    Attributes:
      num_steps: of Adam (0.5, 0.999).
      learning_rate: of Adam.
      pixels: weight of the mean squared error.
      class_weight: weight of the cross-entropy between the classifier's probabilities of the
        reconstruction and of the image.
      prior: weight of the mean squared code.
      temperature: divisor of the margin in the class term.
    """

    num_steps: int = 200
    learning_rate: float = 0.03
    pixels: float = 4.0
    class_weight: float = 1.0
    prior: float = 0.0
    temperature: float = 1.0


class Codes(NamedTuple):
    """Codes ``[images, d1]`` and ``[images, d2]``, and the final loss ``[images]``."""

    z1: jax.Array
    z2: jax.Array
    loss: jax.Array


def published_start(key: jax.Array, count: int, latent: tuple[int, int]) -> Codes:
    """z1 = 0 and z2 normal, as the released code begins."""
    z2 = jax.random.normal(key, (count, latent[1]))
    return Codes(jnp.zeros((count, latent[0])), z2, jnp.zeros(count))


def invert(
    draw: Draw, score: Score, images: jax.Array, start: Codes, recipe: Recipe,
    wanted: jax.Array | None = None,
) -> Codes:
    """Improves the codes of each image.

    Args:
      draw: ``draw(z1, z2) -> images``, each from its own codes alone (no batch statistics).
      score: margin of the classifier, ``[batch]``.
      images: ``[n, h, w, c]``.
      start: first codes; of ``r n`` rows for `r` restarts, image by image within a restart.
      recipe: see `Recipe`.
      wanted: probabilities of the positive class to be reached, ``[n]``; None: those of the
        images, as an inversion wants.

    Returns:
      For each image the codes of its best restart.
    """
    count = len(images)
    restarts = len(start.z1) // count
    if restarts * count != len(start.z1):
        raise ValueError(f"{len(start.z1)} starts for {count} images")
    targets = jnp.tile(images, (restarts, 1, 1, 1))
    if wanted is None:
        wanted = jax.nn.sigmoid(score(images) / recipe.temperature)
    wanted = jnp.tile(wanted, restarts)

    def each(codes: tuple[jax.Array, jax.Array]) -> jax.Array:
        drawn = draw(*codes)
        loss = recipe.pixels * jnp.mean(jnp.square(drawn - targets), axis=(1, 2, 3))
        if recipe.class_weight:
            logit = score(drawn) / recipe.temperature
            entropy = jax.nn.softplus(logit) - wanted * logit
            loss = loss + recipe.class_weight * entropy
        if recipe.prior:
            both = jnp.concatenate(codes, axis=-1)
            loss = loss + recipe.prior * jnp.mean(both * both, axis=-1)
        return loss

    optimiser = optax.adam(recipe.learning_rate, 0.5, 0.999)
    codes = (start.z1, start.z2)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        codes, state = carry
        grads = jax.grad(lambda c: jnp.sum(each(c)))(codes)
        updates, state = optimiser.update(grads, state)
        return (optax.apply_updates(codes, updates), state), None

    (codes, _), _ = jax.lax.scan(step, (codes, optimiser.init(codes)), None, recipe.num_steps)
    loss = each(codes).reshape(restarts, count)
    row = jnp.argmin(loss, axis=0) * count + jnp.arange(count)
    return Codes(codes[0][row], codes[1][row], loss.reshape(-1)[row])
