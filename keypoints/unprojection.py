"""Feature maps of several views into one volume: lens-aware bilinear sampling and aggregation.

The volume is the cube [-1, 1]^3 of the world in which the cameras are given (see
`keypoints.volume`), so nothing here has units. A view counts at a voxel if it is present, the voxel
lies in front of its camera and its pixel lies in the image.

Memory: the sampled features, views x voxels x channels float32 for each frame (four times that
while the taps are gathered). For 4 views and 16 channels that is 3.5 MB a frame at 24^3 voxels and
67 MB at 64^3.
"""

import jax
import jax.numpy as jnp

from keypoints import cameras as cameras_lib
from keypoints.cameras import Cameras
from keypoints.v2v import coordinates

MODES = ("softmax", "sum", "mean", "confidence")


def bilinear(maps: jax.Array, pixels: jax.Array) -> jax.Array:
    """Samples maps at pixel positions; positions outside sample zeros, as torch's grid_sample.

    The four taps of a pixel lie beside each other in memory, so one gather of long rows (all frames
    and channels) serves each point, forwards and backwards.

    Args:
        maps: `[frames, height, width, channels]`.
        pixels: (x, y) with integer pixel centres, `[points, 2]`.

    Returns:
        `[frames, points, channels]`.
    """
    frames, height, width, channels = maps.shape
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = jnp.stack(
        [padded[:, y : y + height + 1, x : x + width + 1] for y in (0, 1) for x in (0, 1)], axis=1
    )  # [frames, 4, h + 1, w + 1, channels]
    table = taps.transpose(2, 3, 1, 0, 4).reshape((height + 1) * (width + 1), 4, -1)
    limits = jnp.array([width - 1, height - 1], pixels.dtype)[None]
    inside = jnp.all((pixels > -1) & (pixels < limits + 1), axis=-1)
    bounded = jnp.where(inside[:, None], pixels, 0.0)
    floor = jnp.clip(jnp.floor(bounded), -1.0, limits)
    part = bounded - floor
    index = (floor[:, 1] + 1) * (width + 1) + floor[:, 0] + 1
    right, down = part[:, 0], part[:, 1]
    weights = jnp.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1
    )
    weights = weights * inside[:, None].astype(weights.dtype)
    rows = jnp.take(table, index.astype(jnp.int32), axis=0)
    sampled = jnp.einsum("pt,ptc->pc", weights, rows)
    return sampled.reshape(-1, frames, channels).transpose(1, 0, 2)


def locate(
    cameras: Cameras, n: int, size: tuple[int, int], corners: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Where the voxels of [-1, 1]^3 lie in maps of another size than the images.

    Args:
        cameras: `[views]`, world = volume.
        n: voxels a side.
        size: (height, width) of the maps.
        corners: whether the maps' first pixels lie on the images' first, else maps cover images.

    Returns:
        (pixels of the map `[views, n^3, 2]`, visible bool `[views, n^3]`).
    """
    pixels, depth = cameras_lib.project(cameras, coordinates(n).reshape(-1, 3))
    full = jnp.asarray(cameras.size, jnp.float32)[:, None]
    scale = jnp.array([size[1], size[0]], jnp.float32)[None, None] / full
    visible = (depth > 0) & jnp.all((pixels >= -0.5) & (pixels <= full - 0.5), axis=-1)
    shift = 0.0 if corners else 0.5
    return (pixels + shift) * scale - shift, visible


def unproject(
    maps: jax.Array,
    cameras: Cameras,
    n: int,
    present: jax.Array,
    mode: str = "softmax",
    confidence: jax.Array | None = None,
    corners: bool = False,
) -> jax.Array:
    """Aggregates maps of all views in a volume.

    Args:
        maps: `[frames, views, height, width, channels]`.
        cameras: `[views]`, shared by the frames.
        n: voxels a side.
        present: 1 where the view was recorded, `[frames, views]`.
        mode: "softmax" (weights are the softmax of the values over views, for each channel),
            "sum", "mean" of the views that count, or "confidence" (softmax of `confidence`).
        confidence: `[frames, views, height, width, 1]` for that mode.
        corners: as in `locate`.

    Returns:
        `[frames, n, n, n, channels]`; 0 where no view counts.
    """
    if mode not in MODES:
        raise ValueError(f"unknown aggregation {mode!r}, expected one of {', '.join(MODES)}")
    if (mode == "confidence") != (confidence is not None):
        raise ValueError("maps of confidence are given for the aggregation 'confidence' only")
    frames, _, height, width, channels = maps.shape
    pixels, visible = locate(cameras, n, (height, width), corners)
    if confidence is not None:
        maps = jnp.concatenate([maps, confidence], axis=-1)
    values = jax.vmap(bilinear, (1, 0), 1)(maps, pixels)  # [frames, views, voxels, channels]
    counts = (visible[None] & (present > 0)[..., None])[..., None]
    if confidence is not None:
        values, logits = values[..., :channels], values[..., channels:]
    elif mode == "softmax":
        logits = values
    else:
        logits = jnp.zeros_like(values[..., :1])
    if mode == "sum":
        total = jnp.sum(jnp.where(counts, values, 0.0), axis=1)
    else:
        # the shift by the maximum keeps exp finite; it is taken over views that count
        highest = jax.lax.stop_gradient(
            jnp.max(jnp.where(counts, logits, -jnp.inf), axis=1, keepdims=True)
        )
        highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
        weights = jnp.where(counts, jnp.exp(jnp.where(counts, logits - highest, 0.0)), 0.0)
        mass = jnp.sum(weights, axis=1)
        total = jnp.sum(weights * values, axis=1) / jnp.where(mass > 0, mass, 1.0)
    return total.reshape(frames, n, n, n, channels)
