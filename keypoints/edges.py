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

    Only the edge that is largest at a pixel has a gradient there, so all edges are compared once to
    find it, and it alone is drawn and differentiated. Temporary memory: images x edges x pixels
    float32.

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
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)
    ends = pairs(points.shape[1])
    strength = jnp.broadcast_to(weights[None], (points.shape[0], len(ends)))
    if seen is not None:
        strength = jnp.where(seen[:, ends[:, 0]] & seen[:, ends[:, 1]], strength, 0.0)
    from_, to = points[:, ends[:, 0]], points[:, ends[:, 1]]
    # [images, 5, edges]: both ends' coordinates and the strength
    edges = jnp.stack([from_[..., 0], from_[..., 1], to[..., 0], to[..., 1], strength], axis=1)
    winner = largest(jax.lax.stop_gradient(edges), grid, sigma)
    drawn = _pick(edges, winner)
    square = _square_distance(drawn[:4], grid)
    return (drawn[4] * jnp.exp(-square / (2.0 * sigma**2))).reshape(-1, height, width)


def largest(edges: jax.Array, grid: jax.Array, sigma: float) -> jax.Array:
    """The edge whose line is strongest at each pixel, int32 `[images, pixels]`.

    Logarithms are compared, in which lines differ also where all of them are too faint for float32.

    Args:
        edges: `[images, 5, edges]`: x and y of both ends, and the weight.
        grid: `[pixels, 2]`.
        sigma: width of a line.
    """
    logs = 2.0 * sigma**2 * jnp.log(edges[:, 4])  # of a weight of 0: never the largest but of such
    if jax.default_backend() != "cpu":
        square = _square_distance(edges[:, :4].transpose(1, 0, 2)[..., None], grid)
        return jnp.argmin(square - logs[..., None], axis=1).astype(jnp.int32)

    # A reduction that remembers where takes a CPU many times as long as this loop.
    def nearer(best: tuple, edge: tuple) -> tuple[tuple, None]:
        value, winner = best
        index, place, log = edge
        found = _square_distance(place[..., None], grid) - log[:, None]
        better = found < value
        return (jnp.where(better, found, value), jnp.where(better, index, winner)), None

    shape = (len(edges), len(grid))
    start = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    count = jnp.arange(edges.shape[2], dtype=jnp.int32)
    each = count, edges[:, :4].transpose(2, 1, 0), logs.T
    return jax.lax.scan(nearer, start, each)[0][1]


def _pick(edges: jax.Array, winner: jax.Array) -> jax.Array:
    """Each pixel's edge, `[5, images, pixels]`."""
    if jax.default_backend() == "cpu":
        found = jnp.take_along_axis(edges, winner[:, None], axis=2, mode="promise_in_bounds")
        return found.transpose(1, 0, 2)
    # The gradient of a product is a product; of an indexing it would be a scatter with collisions.
    chosen = jax.nn.one_hot(winner, edges.shape[2], axis=1, dtype=edges.dtype)
    return jnp.einsum("ice,iep->cip", edges, chosen, precision="highest")


def _square_distance(ends: jax.Array, grid: jax.Array) -> jax.Array:
    """Squared distance of pixels to segments.

    Args:
        ends: x and y of both ends, `[4, ..., pixels]`, or with 1 for the pixels.
        grid: `[pixels, 2]`.

    Returns:
        `[..., pixels]`.
    """
    x0, y0, x1, y1 = ends
    x, y = (g.reshape((1,) * (x0.ndim - 1) + (-1,)) for g in grid.T)
    along_x, along_y, offset_x, offset_y = x1 - x0, y1 - y0, x - x0, y - y0
    square = along_x**2 + along_y**2
    share = (offset_x * along_x + offset_y * along_y) / jnp.where(square > 1e-12, square, 1.0)
    share = jnp.clip(share, 0.0, 1.0)
    return (offset_x - share * along_x) ** 2 + (offset_y - share * along_y) ** 2
