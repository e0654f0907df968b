"""Small random distortions of images: without them a network of minutes learns its images by heart.

An affine map as two passes along one axis each (Catmull and Smith, "3-D transformations of images
in scanline order", SIGGRAPH 1980), both with Keys' cubic interpolation (1981), which keeps strokes
sharp where linear interpolation blurs them.
"""

import jax
import jax.numpy as jnp

__all__ = ["affine"]

# Greatest change at strength 1: share of the size, slope, and share of the side.
_SCALE, _SHEAR, _SHIFT = 0.1, 0.15, 0.04


def affine(images: jax.Array, key: jax.Array, strength: float = 1.0) -> jax.Array:
    """Each image scaled, sheared and shifted at random, along both axes.

    Args:
        images: `[batch, height, width, channels]` in [-1, 1].
        key: random key.
        strength: 1 changes the size by up to 10 %, slopes by up to 0.15, and places by up to 4 % of
            the side (one pixel of 28); 0 changes nothing.

    Returns:
        The same shape, in [-1, 1]; beyond the border lies what is on it.

    Raises:
        ValueError: `images` are not of that rank.
    """
    if images.ndim != 4:
        raise ValueError(f"images [batch, height, width, channels] expected, got {images.shape}")
    shape = (2, 3, len(images))
    limits = strength * jnp.array([_SCALE, _SHEAR, _SHIFT])[None, :, None]
    for scale, shear, shift in limits * jax.random.uniform(key, shape, minval=-1.0):
        images = jnp.swapaxes(_along_rows(images, scale, shear, shift), 1, 2)
    return jnp.clip(images, -1.0, 1.0)


def _along_rows(x: jax.Array, scale: jax.Array, shear: jax.Array, shift: jax.Array) -> jax.Array:
    """`x [batch, rows, columns, channels]`; pixels move within their row. Parameters `[batch]`."""
    rows, columns = x.shape[1:3]
    row = jnp.arange(rows, dtype=jnp.float32)[None, :, None] - (rows - 1) / 2
    column = jnp.arange(columns, dtype=jnp.float32)[None, None, :] - (columns - 1) / 2
    scale, shear, shift = (value[:, None, None] for value in (scale, shear, columns * shift))
    place = (columns - 1) / 2 + (1.0 + scale) * column + shear * row + shift
    place = jnp.clip(place, 0.0, columns - 1.0)
    before = jnp.floor(place)
    result, total = jnp.zeros_like(x), jnp.zeros_like(place)
    for tap in range(-1, 3):
        source = before + tap
        inside = (source >= 0.0) & (source < columns)
        weight = jnp.where(inside, _cubic(jnp.abs(place - source)), 0.0)
        index = jnp.clip(source, 0, columns - 1).astype(jnp.int32)[..., None]
        result += weight[..., None] * jnp.take_along_axis(x, index, axis=2, mode="clip")
        total += weight
    return result / total[..., None]  # near the border taps are missing


def _cubic(distance: jax.Array) -> jax.Array:
    """Keys' kernel with a = -1/2."""
    d = distance
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return jnp.where(d < 1.0, near, jnp.where(d < 2.0, far, 0.0))
