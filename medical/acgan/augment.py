"""Classical augmentation of small images: shifts and mirror images."""

import jax
import jax.numpy as jnp


def shift_and_flip(key: jax.Array, images: jax.Array, shift: int, flip: bool) -> jax.Array:
    """Each image moved by up to ``shift`` pixels in both directions and, half of them, mirrored.

    Args:
      key: random key.
      images: ``[batch, height, width, channels]`` in [-1, 1].
      shift: largest shift in pixels; what moves in is background (-1).
      flip: whether images are mirrored left to right; not for digits.

    Returns:
      Images of the same shape.
    """
    first, second = jax.random.split(key)
    batch, height, width, channels = images.shape
    if shift:
        ends = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        padded = jnp.pad(images, ends, constant_values=-1)
        starts = jax.random.randint(first, (batch, 2), 0, 2 * shift + 1)
        images = jax.vmap(lambda image, start: jax.lax.dynamic_slice(
            image, (start[0], start[1], 0), (height, width, channels)))(padded, starts)
    if flip:
        mirrored = jax.random.bernoulli(second, shape=(batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
