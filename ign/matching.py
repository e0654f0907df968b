"""Matching: each real image draws a generated one towards it.

Implicit maximum likelihood estimation (Li and Malik, "Implicit Maximum Likelihood Estimation",
arXiv 1809.09087, 2018): of many samples the nearest to each real image is moved, so every real
image keeps a sample near it and no mode can be dropped. Al-Jaff et al. (arXiv 2511.02614, 2025)
train idempotent networks so, without the adversarial pair of terms (there: NAIGN); here it is one
more term, with or without that pair.

The nearest of few samples is far away, and what is drawn towards many far images becomes their
blurred mean. So the samples wait in a bank: each step draws some anew in place of the oldest, and
the nearest is sought among all. Those that have waited were drawn by slightly older parameters,
which only affects the choice. A sample may also be taken once only; then no sample serves many
images, and nearly every noise is moved to some image of its own before it leaves the bank: a
transport of the noise to the data instead of a cover of the data.
"""


import jax
import jax.numpy as jnp
from flax import struct


class Bank(struct.PyTreeNode):
    """Samples that wait for an image.

    Attributes:
        noise, images: `[places, ...]`, a noise and the image that was drawn from it; a bank of
            images alone has no noise.
        squares: `[places]`, the image's sum of squares; infinite where a place is empty or taken.
        labels: int32 `[places]` of a conditional network, else None.
    """

    noise: jax.Array | None
    images: jax.Array
    squares: jax.Array
    labels: jax.Array | None = None


def make_bank(
    noise: jax.Array | None, images: jax.Array, labels: jax.Array | None = None
) -> Bank:
    """A bank of these samples."""
    squares = jnp.square(images).sum(axis=tuple(range(1, images.ndim)))
    return Bank(noise, images, squares, labels)


def empty_bank(places: int, shape: tuple[int, ...], conditional: bool = False) -> Bank:
    """A bank for images of `shape` in which nothing has been drawn."""
    labels = jnp.full(places, -1, jnp.int32) if conditional else None
    return Bank(
        jnp.zeros((places, *shape)), jnp.zeros((places, *shape)), jnp.full(places, jnp.inf), labels
    )


def refill(bank: Bank, fresh: Bank, step: jax.Array) -> Bank:
    """Puts the samples of a step in place of the oldest.

    Raises:
        ValueError: the places are no multiple of the fresh samples.
    """
    places, count = bank.images.shape[0], fresh.images.shape[0]
    if places % count:
        raise ValueError(f"a bank of {places} is no multiple of the {count} samples of a step")
    start = (step % (places // count)) * count
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 0), bank, fresh
    )


def choose(
    bank: Bank, images: jax.Array, labels: jax.Array | None = None, once: bool = False
) -> tuple[jax.Array, jax.Array, Bank]:
    """The nearest to each real image, noise and image `[batch, ...]`, and the bank after it.

    Images are compared by the sum of squares, whatever the metric of the loss: it needs one matrix
    product for all pairs, and no other pass over the bank. Nothing here carries gradient.

    Args:
        bank: samples.
        images: `[batch, ...]` real images.
        labels: int32 `[batch]` of a conditional network: samples of other labels do not compete.
        once: take the chosen samples out of the bank. Images of one batch that are nearest to the
            same sample still share it.
    """
    # |x - y|^2 less |x|^2, which all samples share.
    flat = bank.images.reshape(len(bank.images), -1)
    product = jnp.matmul(
        images.reshape(len(images), -1), flat.T, precision=jax.lax.Precision.HIGHEST
    )
    distances = bank.squares[None] - 2.0 * product
    if labels is not None and bank.labels is not None:
        same = labels[:, None] == bank.labels[None, :]
        distances = jnp.where(same, distances, jnp.inf)
    chosen = jnp.argmin(distances, axis=1)
    assert bank.noise is not None
    noise, nearest = bank.noise[chosen], bank.images[chosen]
    if once:
        bank = bank.replace(squares=bank.squares.at[chosen].set(jnp.inf))
    return noise, nearest, bank
