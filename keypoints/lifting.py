"""The baseline without a volume: 2-D heat maps in each view, soft-argmax, triangulation of rays."""

import jax
import jax.numpy as jnp

from keypoints import cameras as cameras_lib
from keypoints.cameras import Cameras


def heatmap_moments(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean pixel and variance of the softmax of each map.

    Args:
        logits: `[images, height, width, keypoints]`.

    Returns:
        (pixels `[images, keypoints, 2]`, variance `[images, keypoints]` in squared pixels,
        confidence `[images, keypoints]`: the largest probability).
    """
    images, height, width, count = logits.shape
    flat = jnp.moveaxis(logits.reshape(images, -1, count), 2, 1).astype(jnp.float32)
    weights = jax.nn.softmax(flat, axis=-1)
    x, y = jnp.meshgrid(jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32))
    grid = jnp.stack([x, y], axis=-1).reshape(-1, 2)
    pixels = jnp.einsum("nkp,pc->nkc", weights, grid, precision="highest")
    squares = jnp.einsum("nkp,pc->nkc", weights, jnp.square(grid), precision="highest")
    variance = jnp.sum(squares - jnp.square(pixels), axis=-1)
    return pixels, variance, weights.max(axis=-1)


def meet(origins: jax.Array, directions: jax.Array, weights: jax.Array) -> jax.Array:
    """The point nearest to weighted rays, in the least-squares sense; smooth in all arguments.

    Solves sum_v w_v (I - d_v d_v^T) (x - o_v) = 0, with a ridge of 1e-4 towards the origin that
    keeps parallel rays and a single view finite.

    Args:
        origins: `[views, 3]`.
        directions: unit vectors, `[..., views, 3]`.
        weights: `[..., views]`, summing to 1.

    Returns:
        `[..., 3]`.
    """
    outer = directions[..., :, None] * directions[..., None, :]
    across = jnp.broadcast_to(jnp.eye(3), outer.shape) - outer
    across = across * weights[..., None, None]
    right = jnp.einsum("...vij,vj->...i", across, origins, precision="highest")
    total = across.sum(axis=-3)
    system = total + 1e-4 * jnp.broadcast_to(jnp.eye(3), total.shape)
    return jnp.linalg.solve(system, right[..., None])[..., 0]


def triangulate(
    logits: jax.Array, cameras: Cameras, present: jax.Array, corners: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """3-D keypoints from one heat map for each view and keypoint.

    Args:
        logits: `[frames, views, height, width, keypoints]`.
        cameras: `[views]`; the maps cover their images.
        present: `[frames, views]`.
        corners: as in `unprojection.locate`.

    Returns:
        (points `[frames, keypoints, 3]`, covariances `[frames, keypoints, 3, 3]`: isotropic, the
        mean variance of the heat maps carried to the point's depth over the number of views,
        confidence `[frames, keypoints]`: mean over views).
    """
    frames, views, height, width, count = logits.shape
    pixels, variance, confidence = heatmap_moments(logits.reshape(-1, height, width, count))
    full = jnp.asarray(cameras.size, jnp.float32)
    scale = full / jnp.array([width, height], jnp.float32)[None]
    pixels = pixels.reshape(frames, views, count, 2)
    shift = 0.0 if corners else 0.5
    pixels = (pixels + shift) * scale[None, :, None] - shift
    by_view = pixels.transpose(1, 0, 2, 3).reshape(views, -1, 2)
    origins, directions = cameras_lib.rays(cameras, by_view)
    directions = directions.reshape(views, frames, count, 3).transpose(1, 2, 0, 3)
    confidence = confidence.reshape(frames, views, count).transpose(0, 2, 1)
    weights = confidence * present[:, None]
    total = weights.sum(axis=-1)
    weights = weights / jnp.where(total > 0, total, 1.0)[..., None]
    points = meet(origins, directions, weights)
    distance = jnp.linalg.norm(points[:, :, None] - origins[None, None], axis=-1)
    focal = jnp.asarray(cameras.matrix, jnp.float32)[:, 0, 0] / scale[:, 0]
    variance = variance.reshape(frames, views, count).transpose(0, 2, 1)
    spread = jnp.sum(weights * variance * jnp.square(distance / focal[None, None]), axis=-1)
    number = jnp.maximum(present.sum(axis=-1), 1.0)[:, None]
    covariance = (spread / number)[..., None, None] * jnp.eye(3)[None, None]
    return points, covariance, total / number
