"""Ways to spoil an image that the network has not seen: what projection is measured on.

All take and return `[batch, height, width, channels]` in [-1, 1], are deterministic given the key,
and keep the shape. Noise, grey and sketch are those of Shocher et al., ICLR 2024.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Corruption = Callable[[jax.Array, jax.Array], jax.Array]


def gaussian_noise(sigma: float) -> Corruption:
    """Adds noise of deviation `sigma` (of the range from -1 to 1) and clips."""
    return lambda x, key: jnp.clip(x + sigma * jax.random.normal(key, x.shape), -1.0, 1.0)


def occlusion(share: float = 0.4) -> Corruption:
    """Sets a square of `share` times the width, at a random place of each image, to 0 (grey)."""

    def corrupt(x: jax.Array, key: jax.Array) -> jax.Array:
        size = x.shape[1]
        side = max(1, round(share * size))
        corner = jax.random.randint(key, (x.shape[0], 2, 1), 0, size - side + 1)
        place = jnp.arange(size).reshape(1, 1, -1)
        inside = (place >= corner) & (place < corner + side)
        hidden = inside[:, 0, :, None] & inside[:, 1, None, :]
        return jnp.where(hidden[..., None], 0.0, x)

    return corrupt


def blur(sigma: float = 1.5) -> Corruption:
    """Gaussian blur of deviation `sigma` pixels, border repeated."""
    return lambda x, key: _gaussian(x, sigma)


def low_resolution(factor: int = 4) -> Corruption:
    """Averages blocks of `factor` pixels and enlarges the result again, bilinearly.

    Raises (when applied):
        ValueError: the image is not divided into blocks.
    """

    def corrupt(x: jax.Array, key: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        if height % factor or width % factor:
            raise ValueError(f"{height} x {width} pixels have no blocks of {factor}")
        blocks = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
        return jax.image.resize(blocks.mean(axis=(2, 4)), x.shape, "bilinear")

    return corrupt


def grey() -> Corruption:
    """The channels' mean in every channel."""
    return lambda x, key: jnp.broadcast_to(x.mean(axis=-1, keepdims=True), x.shape)


def sketch(sigma: float = 3.5) -> Corruption:
    """Grey image divided by its blurred self, so that edges remain.

    `(g + 1) / (blur(g + 1) + 1e-10) - 1`, clipped to [-1, 1]; the publication's blur is 21 pixels
    wide, this one is Gaussian with 3 deviations on either side, 21 pixels at 3.5.
    """

    def corrupt(x: jax.Array, key: jax.Array) -> jax.Array:
        g = x.mean(axis=-1, keepdims=True) + 1.0
        drawn = g / (_gaussian(g, sigma) + 1e-10) - 1.0
        return jnp.broadcast_to(jnp.clip(drawn, -1.0, 1.0), x.shape)

    return corrupt


def standard(channels: int) -> dict[str, Corruption]:
    """The corruptions of the evaluation, by name; grey and sketch for colour images only."""
    found = {
        "noise 0.15": gaussian_noise(0.15),
        "noise 0.3": gaussian_noise(0.3),
        "noise 0.5": gaussian_noise(0.5),
        "occlusion": occlusion(),
        "blur": blur(),
        "low resolution": low_resolution(),
    }
    if channels == 3:
        found |= {"grey": grey(), "sketch": sketch()}
    return found


def shuffled_pixels(x: jax.Array, key: jax.Array) -> jax.Array:
    """The pixels of each image in another order, the same for all: its histogram without shape."""
    order = jax.random.permutation(key, x.shape[1] * x.shape[2])
    return x.reshape(x.shape[0], -1, x.shape[3])[:, order].reshape(x.shape)


def _gaussian(x: jax.Array, sigma: float) -> jax.Array:
    """Separable Gaussian filter of each channel, 3 deviations wide, border repeated."""
    reach = int(np.ceil(3 * sigma - 0.5))
    place = np.arange(-reach, reach + 1)
    weights = np.exp(-(place**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).tolist()
    for axis in (1, 2):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (reach, reach)
        padded = jnp.pad(x, widths, mode="edge")
        parts = (
            jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) * weight
            for i, weight in enumerate(weights)
        )
        x = sum(parts, jnp.zeros_like(x))
    return x
