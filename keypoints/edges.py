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


def draw(
    points: jax.Array,
    weights: jax.Array,
    shape: tuple[int, int],
    sigma: float,
    seen: jax.Array | None = None,
) -> jax.Array:
    """Maps of the skeleton: max over edges of weight * exp(-distance^2 / (2 sigma^2)).

    Only the edge that is largest at a pixel has a gradient there, so all edges are drawn once to
    find it, and it alone is differentiated. Temporary memory: images x edges x height x width
    float32, in the forward pass only.

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
    grid_x, grid_y = (g.reshape(1, 1, -1) for g in jnp.meshgrid(x, y))
    ends = pairs(points.shape[1])
    strength = jnp.broadcast_to(weights[None], (points.shape[0], len(ends)))
    if seen is not None:
        strength = jnp.where(seen[:, ends[:, 0]] & seen[:, ends[:, 1]], strength, 0.0)
    from_, to = points[:, ends[:, 0]], points[:, ends[:, 1]]
    # [images, 5, edges]: both ends' coordinates and the strength
    edges = jnp.stack([from_[..., 0], from_[..., 1], to[..., 0], to[..., 1], strength], axis=1)

    def value(each: jax.Array) -> jax.Array:
        """`[images, 5, edges, 1]`, or `[images, 5, 1, pixels]` -> `[images, edges | 1, pixels]`."""
        x0, y0, x1, y1, weight = jnp.moveaxis(each, 1, 0)
        along_x, along_y, offset_x, offset_y = x1 - x0, y1 - y0, grid_x - x0, grid_y - y0
        square = along_x**2 + along_y**2
        share = offset_x * along_x + offset_y * along_y
        share = jnp.clip(share / jnp.where(square > 1e-12, square, 1.0), 0.0, 1.0)
        distance = (offset_x - share * along_x) ** 2 + (offset_y - share * along_y) ** 2
        return weight * jnp.exp(-distance / (2.0 * sigma**2))

    all_of_them = value(jax.lax.stop_gradient(edges)[..., None])
    winner = jnp.argmax(all_of_them, axis=1)  # [images, pixels]
    chosen = jax.nn.one_hot(winner, len(ends), axis=1, dtype=points.dtype)
    largest = jnp.einsum("ice,iep->icp", edges, chosen, precision="highest")
    return value(largest[:, :, None])[:, 0].reshape(-1, height, width)
