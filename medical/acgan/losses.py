"""Losses of auxiliary-classifier GANs: standard and Wasserstein with gradient penalty.

Dravid, Schiffers, Wu, Cossairt, Katsaggelos, "Investigating the Potential of Auxiliary-Classifier
GANs for Image Classification in Low Data Regimes", ICASSP 2022. Gradient penalty: Gulrajani et al.,
"Improved Training of Wasserstein GANs", NeurIPS 2017, eq. 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Critic = Callable[[jax.Array], jax.Array]


def truncated_normal(key: jax.Array, shape: tuple[int, ...], limit: float = 1.0) -> jax.Array:
    """Standard normal numbers given that they lie in ``[-limit, limit]``; variance 0.2912 at 1."""
    return jax.random.truncated_normal(key, -limit, limit, shape)


def codes(key: jax.Array, shape: tuple[int, ...], truncation: float) -> jax.Array:
    """Codes of a generator: normal, truncated at a limit or (0) not.

    Infinite limits are no substitute: uniform numbers that become truncated normal ones include the
    end of their range, one in 2^23 of them, which would be a code of minus infinity.
    """
    return truncated_normal(key, shape, truncation) if truncation else jax.random.normal(key, shape)


def gradient_penalty(
    critic: Critic, real: jax.Array, fake: jax.Array, share: jax.Array
) -> jax.Array:
    """``(norm of the critic's gradient - 1)^2`` at a random point between each pair, ``[batch]``.

    Each image's term is its own only if the critic treats images alone: with batch normalisation in
    the critic (as released) it is not.

    Args:
      critic: images ``[batch, ...]`` to scores ``[batch]``.
      real: ``[batch, ...]``.
      fake: ``[batch, ...]``.
      share: of the real image at the point, ``[batch]`` in [0, 1].
    """
    share = share.reshape(-1, *[1] * (real.ndim - 1))
    point = share * real + (1 - share) * fake
    slope = jax.grad(lambda x: jnp.sum(critic(x)))(point)
    squared = jnp.sum(jnp.square(slope), axis=tuple(range(1, real.ndim)))
    # The derivative of the root at 0 is infinite; a gradient of 0 would become NaN.
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return jnp.square(norm - 1)


def class_loss(logits: jax.Array, labels: jax.Array, double: bool = False) -> jax.Array:
    """Mean cross-entropy of logits ``[batch, classes]``; `double` applies a softmax before, as the
    released code does."""
    if double:
        logits = jax.nn.softmax(logits, axis=-1)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def critic_loss(real: jax.Array, fake: jax.Array, wasserstein: bool) -> jax.Array:
    """Source loss of the discriminator from its scores ``[batch]`` of real and generated images."""
    if wasserstein:
        return jnp.mean(fake) - jnp.mean(real)
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def generator_loss(fake: jax.Array, wasserstein: bool) -> jax.Array:
    """Source loss of the generator from the discriminator's scores ``[batch]``."""
    return -jnp.mean(fake) if wasserstein else jnp.mean(jax.nn.softplus(-fake))
