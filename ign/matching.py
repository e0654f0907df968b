"""Matching: for each real image the nearest generated one, which is then drawn towards it.

Implicit maximum likelihood estimation (Li and Malik, "Implicit Maximum Likelihood Estimation",
arXiv 1809.09087, 2018): of a pool of samples the nearest to each real image is moved, so every
real image keeps a sample near it and no mode can be dropped. Al-Jaff et al. (arXiv 2511.02614,
2025) train idempotent networks so, without the adversarial pair of terms (there: NAIGN); here it is
one more term, with or without that pair. For a conditional network only samples of the image's own
condition compete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from ign.losses import Apply, Batch

PyTree = Any


def nearest_noise(apply: Apply, params: PyTree, batch: Batch) -> jax.Array:
    """The noise of the pool whose image is nearest to each real image; carries no gradient.

    Images are compared by the sum of squares, whatever the metric of the term: it needs one matrix
    product for all pairs.

    Args:
        apply: the network.
        params: its parameters.
        batch: with `images [batch, ...]` and `pool [candidates, ...]`. With a condition, the pool
            must be a multiple of the batch: candidate j is drawn with condition `j % batch`.

    Returns:
        Like `batch.images`.

    Raises:
        ValueError: there is no pool, or its size does not fit the condition.
    """
    if batch.pool is None:
        raise ValueError("the matching term needs a batch with a pool of noise")
    count, size = batch.pool.shape[0], batch.images.shape[0]
    condition = None
    if batch.condition is not None:
        if count % size:
            raise ValueError(f"a pool of {count} is no multiple of the batch of {size} conditions")
        condition = jax.tree.map(lambda c: jnp.concatenate([c] * (count // size)), batch.condition)
    samples = jax.lax.stop_gradient(apply(params, batch.pool, condition))
    distances = squared_distances(batch.images, samples)
    if condition is not None:
        for own, other in zip(
            jax.tree.leaves(batch.condition), jax.tree.leaves(condition), strict=True
        ):
            same = (own[:, None] == other[None, :]).reshape(size, count, -1).all(axis=-1)
            distances = jnp.where(same, distances, jnp.inf)
    return batch.pool[jnp.argmin(distances, axis=1)]


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sums of squared differences of all pairs, `[n, ...]` and `[m, ...]` -> `[n, m]`.

    From one product of the arrays less their common mean, in full precision, so that near pairs
    keep their digits; rounding may leave values slightly below 0.
    """
    x, y = x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)
    centre = y.mean(axis=0, keepdims=True)
    x, y = x - centre, y - centre
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :]
    return squares - 2.0 * product
