"""A skeleton drawn into images: closed-form Gaussian distance to each segment, learned weights.

X. He et al., "AutoLink", NeurIPS 2022, and BKinD-3D: every pair of keypoints is an edge with a free
weight shared by the data set; a map is the largest weighted edge at each pixel. The distance of a
pixel to a segment is exact here.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np


def pairs(count: int) -> np.ndarray:
    """All unordered pairs of `count` keypoints, int `[count (count - 1) / 2, 2]`."""
    return np.asarray(list(itertools.combinations(range(count), 2)), np.int32).reshape(-1, 2)


def lengths(points: jax.Array) -> jax.Array:
    """Length of every edge, `[..., keypoints, d]` -> `[..., edges]`; gradient 0 at length 0."""
    ends = pairs(points.shape[-2])
    offset = points[..., ends[:, 0], :] - points[..., ends[:, 1], :]
    squared = jnp.sum(jnp.square(offset), axis=-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def normalised(pixels: jax.Array, size: jax.Array) -> jax.Array:
    """Pixels to coordinates in which the longer side of the image is [-1, 1], centre 0.

    Args:
        pixels: `[..., 2]`.
        size: (width, height), `[2]`.
    """
    flat = size.reshape((1,) * (pixels.ndim - 1) + (2,))
    return (2.0 * (pixels + 0.5) - flat) / jnp.max(size)


def _largest(x: jax.Array) -> jax.Array:
    """Maximum over the second axis by halves; see `v2v.pool` for why not `jnp.max`."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        rest = x[:, 2 * half :]
        x = jnp.concatenate([jnp.maximum(x[:, :half], x[:, half : 2 * half]), rest], axis=1)
    return x[:, 0]


def draw(
    points: jax.Array,
    weights: jax.Array,
    shape: tuple[int, int],
    sigma: float,
    seen: jax.Array | None = None,
) -> jax.Array:
    """Maps of the skeleton: max over edges of weight * exp(-distance^2 / (2 sigma^2)).

    Temporary memory is images x edges x height x width float32; gradients recompute it instead of
    keeping it.

    Args:
        points: `[images, keypoints, 2]`, normalised as by `normalised`.
        weights: weight of each edge in the order of `pairs`, `[edges]`, not negative.
        shape: (height, width) of the maps; their pixels cover the image.
        sigma: width of a line in the units of `points`.
        seen: `[images, keypoints]` bool; an edge with an end that is not seen is not drawn.

    Returns:
        `[images, height, width]`.
    """
    height, width = shape
    longest = max(height, width)
    y = (2.0 * (jnp.arange(height, dtype=jnp.float32) + 0.5) - height) / longest
    x = (2.0 * (jnp.arange(width, dtype=jnp.float32) + 0.5) - width) / longest
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(1, 1, -1, 2)
    ends = pairs(points.shape[1])

    @jax.checkpoint
    def render(points: jax.Array, weights: jax.Array) -> jax.Array:
        start = points[:, ends[:, 0], None]  # [images, edges, 1, 2]
        along = points[:, ends[:, 1], None] - start
        offset = grid - start
        square = jnp.sum(jnp.square(along), axis=-1)
        place = jnp.sum(offset * along, axis=-1) / jnp.where(square > 1e-12, square, 1.0)
        nearest = jnp.clip(place, 0.0, 1.0)[..., None] * along
        distance = jnp.sum(jnp.square(offset - nearest), axis=-1)
        strength = jnp.broadcast_to(weights[None], (points.shape[0], len(ends)))
        if seen is not None:
            strength = jnp.where(seen[:, ends[:, 0]] & seen[:, ends[:, 1]], strength, 0.0)
        return _largest(strength[..., None] * jnp.exp(-distance / (2.0 * sigma**2)))

    return render(points, weights).reshape(-1, height, width)
