"""Losses of the heat maps: their mass lies on what moves, and no two lie in the same place.

S. Suwajanakorn, N. Snavely, J. Tompson, M. Norouzi, "Discovery of Latent 3D Keypoints via
End-to-end Geometric Reasoning", NeurIPS 2018, section 4 (silhouette consistency): -log of the heat
map's mass inside the object. Here the object is the visual hull of the motion masks. A point that
is far away gets a gradient, too, as every voxel of its heat map does; a comparison at the projected
point alone would give none.
"""

import jax
import jax.numpy as jnp

from keypoints import losses, unprojection
from keypoints.cameras import Cameras

_NOTHING = -1e9  # logarithm of no weight, finite so that maps without an object give no NaN
_TINY = 1e-7  # least probability of a position


def soft_hull(
    masks: jax.Array, cameras: Cameras, n: int, present: jax.Array, blur: float = 1.5
) -> jax.Array:
    """Least of the blurred masks of all views that see a voxel.

    Args:
        masks: bool or [0, 1] `[frames, views, height, width]`.
        cameras: `[views]`, world = volume, intrinsics of the masks.
        n: voxels a side.
        present: 1 where the view was recorded, `[frames, views]`.
        blur: sigma in pixels.

    Returns:
        `[frames, n^3]` in [0, 1]; 0 where fewer than two views see the voxel.
    """
    _, _, height, width = masks.shape
    soft = _blurred(masks, blur)
    pixels, visible = unprojection.locate(cameras, n, (height, width))
    values = jax.vmap(unprojection.bilinear, (1, 0), 1)(soft[..., None], pixels)[..., 0]
    counts = visible[None] & (present > 0)[..., None]
    least = jnp.min(jnp.where(counts, values, 1.0), axis=1)
    return jnp.where(counts.sum(axis=1) >= 2, least, 0.0)


def soft_masks(masks: jax.Array, size: tuple[int, int], blur: float = 1.5) -> jax.Array:
    """Blurred masks at the size of heat maps.

    Args:
        masks: bool or [0, 1] `[frames, views, height, width]`.
        size: (height, width), divisors of those of the masks.
        blur: sigma in pixels of the masks.

    Returns:
        `[frames, views, height * width]` of `size`, in [0, 1].
    """
    frames, views, height, width = masks.shape
    rows, columns = height // size[0], width // size[1]
    soft = _blurred(masks, blur).reshape(frames, views, size[0], rows, size[1], columns)
    return soft.mean(axis=(3, 5)).reshape(frames, views, -1)


def _blurred(masks: jax.Array, blur: float) -> jax.Array:
    flat = masks.reshape(-1, *masks.shape[2:], 1).astype(jnp.float32)
    return losses.gaussian_blur(flat, blur, max(1, round(3 * blur))).reshape(masks.shape)


def silhouette(heat: jax.Array, inside: jax.Array) -> jax.Array:
    """Mean of -log(mass inside) over keypoints and all maps in which something is inside.

    Computed from logarithms, without a least mass: a map that is sure of a far place has next to no
    mass inside, and with a floor under it would get no gradient and stay there for good.

    Args:
        heat: logits `[..., positions, keypoints]`.
        inside: weight of each position in [0, 1], `[..., positions]`.

    Returns:
        A scalar, 0 where all mass is inside or no map has an object.
    """
    some = inside > 0
    weights = jnp.where(some, jnp.log(jnp.where(some, inside, 1.0)), _NOTHING)[..., None]
    total = jax.nn.logsumexp(heat, axis=-2)
    error = jnp.mean(total - jax.nn.logsumexp(heat + weights, axis=-2), axis=-1)
    shown = (inside.max(axis=-1) > 0.5).astype(heat.dtype)
    return jnp.sum(shown * error) / jnp.maximum(shown.sum(), 1.0)


def coverage(heat: jax.Array, inside: jax.Array) -> jax.Array:
    """Divergence of the mean heat map from the object: no part of it is left without keypoints.

    Kullback and Leibler's divergence of the mean over keypoints from `inside` as a distribution.

    Args:
        heat: logits `[..., positions, keypoints]`.
        inside: weight of each position in [0, 1], `[..., positions]`.

    Returns:
        A scalar, the mean over maps that have an object; 0 where the heat maps cover it evenly.
    """
    total = inside.sum(axis=-1, keepdims=True)
    goal = inside / jnp.where(total > 0, total, 1.0)
    mean = jnp.mean(jax.nn.softmax(heat, axis=-2), axis=-1)
    found = jnp.sum(goal * (jnp.log(goal + _TINY) - jnp.log(mean + _TINY)), axis=-1)
    shown = (inside.max(axis=-1) > 0.5).astype(heat.dtype)
    return jnp.sum(shown * found) / jnp.maximum(shown.sum(), 1.0)


def overlap(heat: jax.Array) -> jax.Array:
    """Mean cosine similarity of the heat maps of two keypoints.

    Points that start in one place, the centre of the animal, have no direction in which to
    separate; maps have, by any feature that tells voxels apart.

    Args:
        heat: logits `[..., positions, keypoints]`.

    Returns:
        A scalar: 1 where all maps are equal, 0 where none share a position.
    """
    count = heat.shape[-1]
    maps = jax.nn.softmax(heat, axis=-2)
    maps = maps / jnp.sqrt(jnp.sum(jnp.square(maps), axis=-2, keepdims=True))
    similarity = jnp.einsum("...pk,...pl->...kl", maps, maps)
    return (jnp.mean(jnp.sum(similarity, axis=(-2, -1))) - count) / (count * (count - 1))
