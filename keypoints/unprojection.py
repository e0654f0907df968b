"""Feature maps of several views into one volume: lens-aware bilinear sampling and aggregation.

The volume is the cube [-1, 1]^3 of the world in which the cameras are given (see
`keypoints.volume`), so nothing here has units. A view counts at a voxel if it is present, the voxel
lies in front of its camera and its pixel lies in the image.

Memory: the sampled features, views x voxels x channels float32 for each frame, and as much for
their gradient. For 4 views and 16 channels that is 3.5 MB a frame at 24^3 voxels and 67 MB at 64^3.
"""

import functools

import jax
import jax.numpy as jnp

from common.nets.fusion import once
from keypoints import cameras as cameras_lib
from keypoints.cameras import Cameras
from keypoints.v2v import coordinates

MODES = ("softmax", "sum", "mean", "confidence")

Kept = tuple[jax.Array, jax.Array, jax.Array]  # what a gradient by hand needs


def bilinear(maps: jax.Array, pixels: jax.Array) -> jax.Array:
    """Samples maps at pixel positions; positions outside sample zeros, as torch's grid_sample.

    Args:
        maps: `[frames, height, width, channels]`.
        pixels: (x, y) with integer pixel centres, `[points, 2]`.

    Returns:
        `[frames, points, channels]`.
    """
    return sample(maps[:, None], pixels[None])[0].transpose(1, 0, 2)


def sample(maps: jax.Array, pixels: jax.Array) -> jax.Array:
    """`bilinear` for several views, whose points differ, in the order in which it is computed.

    A pixel's values of all frames and channels lie beside each other in memory, so each of a
    point's four taps is one long row. The rows are added up as they are read.

    Args:
        maps: `[frames, views, height, width, channels]`.
        pixels: (x, y) with integer pixel centres, `[views, points, 2]`.

    Returns:
        `[views, points, frames, channels]`.
    """
    frames, views, height, width, channels = maps.shape
    padded = jnp.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    table = padded.transpose(1, 2, 3, 0, 4).reshape(-1, frames, channels)
    limits = jnp.array([width - 1, height - 1], pixels.dtype)[None, None]
    inside = jnp.all((pixels > -1) & (pixels < limits + 1), axis=-1)
    bounded = jnp.where(inside[..., None], pixels, 0.0)
    floor = jnp.clip(jnp.floor(bounded), -1.0, limits)
    part = bounded - floor
    row = width + 2
    corner = ((floor[..., 1] + 1) * row + floor[..., 0] + 1).astype(jnp.int32)
    corner = corner + jnp.arange(views, dtype=jnp.int32)[:, None] * (row * (height + 2))
    right, down = part[..., 0], part[..., 1]
    weights = jnp.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=-1
    )
    weights = weights * inside[..., None].astype(weights.dtype)
    taps = corner.reshape(-1, 1) + jnp.array([0, 1, row, row + 1], jnp.int32)[None]
    rows = _weighted_rows(table, taps, weights.reshape(-1, 4))
    return rows.reshape(views, -1, frames, channels)


@jax.custom_vjp
def _weighted_rows(table: jax.Array, taps: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums of rows of `table` `[rows, n, m]`: `taps` (not checked), `weights` are `[points, t]`."""
    total = jnp.zeros((len(taps), *table.shape[1:]), table.dtype)
    for tap in range(taps.shape[1]):
        total = total + weights[:, tap, None, None] * _row(table, taps[:, tap])
    return total


def _row(table: jax.Array, index: jax.Array) -> jax.Array:
    return table.at[index].get(mode="promise_in_bounds")


def _weighted_rows_forward(
    table: jax.Array, taps: jax.Array, weights: jax.Array
) -> tuple[jax.Array, Kept]:
    return _weighted_rows(table, taps, weights), (table, taps, weights)


def _weighted_rows_backward(kept: Kept, change: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    table, taps, weights = kept

    def add(found: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, weight = tap
        return found.at[index].add(weight[:, None, None] * change, mode="promise_in_bounds"), None

    # A loop, because XLA would else compute what `change` comes from anew for each tap.
    found, _ = jax.lax.scan(add, jnp.zeros_like(table), (taps.T, weights.T))
    of_weights = [jnp.sum(_row(table, index) * change, axis=(1, 2)) for index in taps.T]
    return found, None, jnp.stack(of_weights, axis=1)


_weighted_rows.defvjp(_weighted_rows_forward, _weighted_rows_backward)


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
    values = once(sample(maps, pixels))  # [views, voxels, frames, channels]
    counts = (visible[..., None] & (present.T > 0)[:, None])[..., None]
    values, logits = values[..., :channels], values[..., channels:]  # the latter of confidence
    if mode == "sum":
        total = jnp.sum(jnp.where(counts, values, 0.0), axis=0)
    elif mode == "softmax":
        total = _softmax_mean(values, counts)
    else:
        logits = jnp.zeros_like(values[..., :1]) if mode == "mean" else logits
        total = jnp.sum(_softmax(logits, counts) * values, axis=0)
    return total.transpose(1, 0, 2).reshape(frames, n, n, n, channels)


def _softmax(logits: jax.Array, counts: jax.Array) -> jax.Array:
    """Softmax over the first axis among the entries that count; 0 where none does."""
    # the shift by the maximum keeps exp finite
    highest = jax.lax.stop_gradient(jnp.max(jnp.where(counts, logits, -jnp.inf), axis=0))
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)[None]
    weights = jnp.where(counts, jnp.exp(jnp.where(counts, logits - highest, 0.0)), 0.0)
    mass = jnp.sum(weights, axis=0)
    return weights / jnp.where(mass > 0, mass, 1.0)[None]


@jax.custom_vjp
def _softmax_mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean of `values` over the first axis, weighted by their own softmax; 0 where none counts."""
    return _softmax_mean_forward(values, counts)[0]


def _softmax_mean_forward(values: jax.Array, counts: jax.Array) -> tuple[jax.Array, tuple]:
    # View by view: a CPU adds up a few arrays several times faster than along their first axis, and
    # a number that is added faster than a selection.
    minus = jnp.where(counts, 0.0, -1e30).astype(values.dtype)
    masked = [value + shift for value, shift in zip(values, minus, strict=True)]
    highest = once(functools.reduce(jnp.maximum, masked))
    weights = [jnp.exp(value - highest) for value in masked]
    mass = sum(weights[1:], weights[0])
    share = once(jnp.any(counts, axis=0).astype(values.dtype) / mass)
    weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
    total = once(sum(weighted[1:], weighted[0]) * share)
    return total, (values, minus, highest, share, total)


def _softmax_mean_backward(kept: tuple, change: jax.Array) -> tuple[jax.Array, None]:
    values, minus, highest, share, total = kept
    change = once(change * share)
    return once(jnp.stack([
        change * jnp.exp(value + shift - highest) * (1.0 + value - total)
        for value, shift in zip(values, minus, strict=True)])), None


_softmax_mean.defvjp(_softmax_mean_forward, _softmax_mean_backward)
