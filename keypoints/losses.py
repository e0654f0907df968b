"""Losses without units: change of structure between frames, its prediction, and the keypoints'.

Lengths are in half sides of the volume, images in [0, 1]. Sources: BKinD-3D (see `models`), with
every term divided by a scale of its own kind, so none depends on the world's units, the image's
size or the number of views.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from keypoints import edges

_C2 = 0.03**2


def gaussian_blur(x: jax.Array, sigma: float, radius: int) -> jax.Array:
    """Separable Gaussian of `[images, height, width, channels]`, edges replicated."""
    position = np.arange(-radius, radius + 1)
    kernel = np.exp(-(position**2) / (2.0 * sigma**2))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (1, 2):
        widths = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(x, widths, mode="edge")
        size = x.shape[axis]
        x = sum(
            jax.lax.slice_in_dim(padded, start, start + size, axis=axis) * weight
            for start, weight in enumerate(kernel)
        )
    return x


def change(
    first: jax.Array, second: jax.Array, sigma: float = 1.5, smooth: float = 1.0
) -> jax.Array:
    """Spatiotemporal difference 1 - cs: the contrast-structure term of SSIM, blurred.

    Wang et al., IEEE TIP 2004, eq. 9 with c2 = 0.03^2; Gaussian windows of 11 pixels at sigma 1.5.

    Args:
        first, second: `[images, height, width, channels]` in [0, 1].
        sigma: of the window, pixels.
        smooth: of the blur afterwards, pixels; 0 leaves it out.

    Returns:
        `[images, height, width]`, 0 for equal images, up to 2.
    """
    radius = int(np.ceil(3.3 * sigma))
    count = first.shape[-1]
    # a common offset changes no covariance and avoids cancellation in it
    x, y = first - 0.5, second - 0.5
    stacked = jnp.concatenate([x, y, x * x, y * y, x * y], axis=-1)
    blurred = gaussian_blur(stacked, sigma, radius)
    mean_x, mean_y, xx, yy, xy = (blurred[..., i * count : (i + 1) * count] for i in range(5))
    covariance = xy - mean_x * mean_y
    variance = xx - jnp.square(mean_x) + yy - jnp.square(mean_y)
    structure = (2.0 * covariance + _C2) / (variance + _C2)
    found = jnp.mean(1.0 - structure, axis=-1, keepdims=True)
    if smooth > 0:
        found = gaussian_blur(found, smooth, int(np.ceil(3.3 * smooth)))
    return found[..., 0]


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Means of stride x stride blocks, `[images, height, width]`."""
    n, h, w = x.shape
    return x.reshape(n, h // stride, stride, w // stride, stride).mean(axis=(2, 4))


def reconstruction(predicted: jax.Array, target: jax.Array, present: jax.Array) -> jax.Array:
    """Squared error over the mean square of the target: 1 for a prediction of zero.

    Args:
        predicted, target: `[pairs, views, h, w]`.
        present: `[pairs, views]`.
    """
    weights = present[..., None, None]
    error = jnp.sum(weights * jnp.square(predicted - target))
    scale = jnp.sum(weights * jnp.square(target))
    return error / (jax.lax.stop_gradient(scale) + 1e-6)


def perceptual(
    predicted: jax.Array, target: jax.Array, features: Callable[[jax.Array], list[jax.Array]]
) -> jax.Array:
    """Mean over layers of the squared error of features over the target's mean square.

    Args:
        predicted, target: `[images, h, w]`.
        features: of `[images, h, w, 3]` in [0, 1].
    """
    three = jnp.broadcast_to(jnp.concatenate([predicted, target])[..., None],
                             (2 * len(predicted), *predicted.shape[1:], 3))  # fmt: skip
    total = jnp.zeros(())
    layers = features(three)
    for layer in layers:
        own, goal = jnp.split(layer, 2)
        goal = jax.lax.stop_gradient(goal)
        total = total + jnp.mean(jnp.square(own - goal)) / (jnp.mean(jnp.square(goal)) + 1e-6)
    return total / len(layers)


def separation(points: jax.Array, sigma: float = 0.08) -> jax.Array:
    """Mean over pairs of exp(-d^2 / (2 sigma^2)), `[frames, keypoints, 3]` in half sides."""
    distance = edges.lengths(points)
    return jnp.mean(jnp.exp(-jnp.square(distance) / (2.0 * sigma**2)))


def length_consistency(
    points: jax.Array, running: jax.Array, skeleton: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Squared deviation of active edges' lengths from their running mean, over its square.

    An edge is active where its free weight is positive. Without an active edge the loss is 0.

    Args:
        points: `[frames, keypoints, 3]`.
        running: running mean of each edge's length, `[edges]`.
        skeleton: free weight of each edge, `[edges]`.

    Returns:
        (loss, mean length of each edge in these frames `[edges]`).
    """
    found = edges.lengths(points)
    active = (skeleton > 0).astype(found.dtype)
    scale = jnp.sum(active * jnp.square(running)) / jnp.maximum(active.sum(), 1.0)
    error = jnp.mean(jnp.square(found - running[None]), axis=0)
    loss = jnp.sum(active * error) / jnp.maximum(active.sum(), 1.0)
    return loss / (jax.lax.stop_gradient(scale) + 1e-4), jax.lax.stop_gradient(found.mean(axis=0))


def rotation(points: jax.Array, turned: jax.Array, matrix: jax.Array) -> jax.Array:
    """Equivariance: keypoints found in the turned world against the turned keypoints.

    The squared distance over the keypoints' mean square distance from their centroid: 2 where the
    two have nothing to do with each other. It is what tells parts of the animal from directions of
    the world: "the northernmost point" draws the animal as well as "the head".

    Args:
        points: `[frames, keypoints, 3]`, found in the volume.
        turned: `[frames, keypoints, 3]`, found after the world was turned by `matrix`.
        matrix: `[3, 3]`.
    """
    goal = jnp.einsum("ij,fkj->fki", matrix, points, precision="highest")
    centred = points - points.mean(axis=1, keepdims=True)
    spread = jax.lax.stop_gradient(jnp.mean(jnp.sum(jnp.square(centred), axis=-1)))
    return jnp.mean(jnp.sum(jnp.square(turned - goal), axis=-1)) / (spread + 1e-3)


def ramp(step: jax.Array, start: int, length: int) -> jax.Array:
    """Weight of a curriculum: 0 before `start`, then linear to 1 over `length` steps."""
    return jnp.clip((step.astype(jnp.float32) - start) / max(length, 1), 0.0, 1.0)


def weighted(terms: Mapping[str, jax.Array], weights: Mapping[str, float | jax.Array]) -> jax.Array:
    """Sum of the terms with their weights; every term has one."""
    return sum((weights[name] * term for name, term in terms.items()), jnp.zeros(()))
