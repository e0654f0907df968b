"""Occlusion: how the score drops when a window of the image is replaced.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. A pixel's
attribution is the mean of ``score(x) - score(occluded x)`` over the windows that cover it, the
convention of captum and MONAI.
"""

import jax
import jax.numpy as jnp
import numpy as np

from medical.explain.gradients import Score


def occlusion(
    score: Score,
    images: jax.Array,
    window: tuple[int, int],
    stride: tuple[int, int],
    baseline: jax.Array | float = 0.0,
) -> jax.Array:
    """Attribution of each pixel.

    Args:
      score: see the package.
      images: ``[batch, h, w, c]``.
      window: height and width of the window in pixels; it covers all channels.
      stride: steps of the window; where it does not reach the edge, a last window is cut there.
      baseline: what replaces the window: a number, or an array that broadcasts to the images.

    Returns:
      ``[batch, h, w]``.

    Raises:
      ValueError: a stride larger than the window (pixels would never be covered) or a window
        larger than the image.
    """
    height, width = images.shape[1:3]
    sizes = ((height, window[0], stride[0]), (width, window[1], stride[1]))
    for size, length, step in sizes:
        if not 1 <= step <= length <= size:
            raise ValueError(f"window {window} with stride {stride} for {height} x {width} pixels")
    rows, columns = (_starts(*each) for each in sizes)
    corners = jnp.asarray(np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2))
    fill = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    whole = score(images)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def one(carry: tuple, corner: jax.Array) -> tuple[tuple, None]:
        total, count = carry
        inside_rows = (y >= corner[0]) & (y < corner[0] + window[0])
        inside = inside_rows & ((x >= corner[1]) & (x < corner[1] + window[1]))
        occluded = jnp.where(inside[None, :, :, None], fill, images)
        drop = whole - score(occluded)
        mask = inside.astype(images.dtype)
        total = total + drop[:, None, None] * mask[None]
        return (total, count + mask), None

    start = jnp.zeros(images.shape[:3], images.dtype), jnp.zeros((height, width), images.dtype)
    (total, count), _ = jax.lax.scan(one, start, corners)
    return total / count[None]


def _starts(size: int, window: int, stride: int) -> np.ndarray:
    """First pixels of the windows along one axis; the last window may reach over the edge."""
    return np.arange(0, size - window + stride, stride)
