"""Pre-processing that the face networks share: colour, framing, size, and evaluation in batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["MEAN_RGB", "in_batches", "prepare"]

# Mean colour of the networks' training photographs (King, dlib; face-api.js).
MEAN_RGB = (122.782 / 255, 117.001 / 255, 104.298 / 255)


def prepare(images: jax.Array, size: int, margin: float = 0.0) -> jax.Array:
    """Brings face crops to the colour and size that a face network expects.

    Args:
        images: `[batch, height, width, channels]` in [0, 1], channels 1 or 3 (RGB).
        size: side of the output in pixels.
        margin: border added on each side by repeating the edge, as a fraction of height and width.
            A tightly cropped face needs one, because the networks were trained with some surround.

    Returns:
        `[batch, size, size, 3]` with `MEAN_RGB` subtracted. Resampling is bilinear with half-pixel
        centres, with anti-aliasing where it shrinks.

    Raises:
        ValueError: not four axes, or channels other than 1 or 3.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected images [batch, height, width, 1 or 3], found shape {tuple(images.shape)}")
    batch, height, width, channels = images.shape
    rows, columns = round(height * margin), round(width * margin)
    x = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode="edge")
    x = jax.image.resize(x, (batch, size, size, channels), "linear")
    return x - jnp.asarray(MEAN_RGB, x.dtype).reshape(1, 1, 1, 3)


def in_batches(
    function: Callable[[Any, jax.Array], Any], params: Any, images: np.ndarray, batch_size: int = 8
) -> Any:
    """Applies a jitted `function(params, images)` to many images with one compilation.

    Args:
        function: returns arrays (in any pytree) with the batch as first axis.
        params: first argument of `function`.
        images: `[count, height, width, channels]` or `[count, height, width]`; uint8 is divided by
        255.
        batch_size: images a call; the last batch is padded to it and the padding is cut off. On a
            CPU more at once are no faster.

    Returns:
        The pytree of `function` with NumPy arrays `[count, ...]`.

    Raises:
        ValueError: no images.
    """
    count = len(images)
    if count == 0:
        raise ValueError("expected at least one image, found none")
    outputs = []
    for start in range(0, count, batch_size):
        chunk = np.asarray(images[start:start + batch_size])
        if chunk.dtype == np.uint8:
            chunk = chunk.astype(np.float32) / np.float32(255)
        if chunk.ndim == 3:
            chunk = chunk[..., None]
        valid = len(chunk)
        if valid < batch_size:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch_size - valid, axis=0)])
        result = jax.device_get(function(params, jnp.asarray(chunk, jnp.float32)))
        outputs.append(jax.tree.map(lambda x, n=valid: x[:n], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
