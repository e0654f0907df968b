"""The cube in which keypoints are sought: where it lies in the world, chosen by hand or found.

Found from the cameras alone (where their optical axes meet, and how much all of them see there),
then from motion: the visual hull of what moves. Both follow when the world is moved, turned or
measured in other units.
"""

import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from keypoints import cameras as cameras_lib
from keypoints.cameras import Cameras
from keypoints.v2v import coordinates

_LOG = logging.getLogger(__name__)

Array = Any


class Volume(NamedTuple):
    """A cube in the world.

    Attributes:
        centre: `[3]`, world units.
        side: length of its sides, world units.
        rotation: rows are its axes in the world, `[3, 3]`.
    """

    centre: np.ndarray
    side: float
    rotation: np.ndarray

    def cameras(self, cameras: Cameras) -> Cameras:
        """The cameras in the world in which this volume is [-1, 1]^3, float32."""
        scale = 2.0 / self.side
        turned = np.einsum("...ij,kj->...ik", cameras.rotation, self.rotation)
        centre = np.einsum("...ij,j->...i", cameras.rotation, self.centre)
        moved = cameras.replace(
            rotation=turned, translation=scale * (np.asarray(cameras.translation) + centre)
        )
        return jax.tree.map(
            lambda leaf: leaf.astype(np.float32) if leaf.dtype.kind == "f" else leaf, moved
        )

    def to_world(self, points: Array) -> np.ndarray:
        """Points `[..., 3]` of [-1, 1]^3 in the world."""
        return np.asarray(points, float) @ self.rotation * (self.side / 2) + self.centre

    def from_world(self, points: Array) -> np.ndarray:
        """World points `[..., 3]` in the volume's coordinates."""
        return (np.asarray(points, float) - self.centre) @ self.rotation.T * (2 / self.side)

    def covariance_to_world(self, covariance: Array) -> np.ndarray:
        """Covariances `[..., 3, 3]` in squared world units."""
        turn = self.rotation.T * (self.side / 2)
        return turn @ np.asarray(covariance, float) @ turn.T


def rig_axes(cameras: Cameras) -> np.ndarray:
    """Axes that turn with the rig: z up in the images, x towards the first camera, `[3, 3]`.

    Where the images' up directions cancel, or the first camera lies straight above, the world's
    axes are taken instead, which is logged.
    """
    up = np.asarray(cameras.ups).mean(axis=0)
    towards = np.asarray(cameras.centres)[0] - meeting_point(cameras)
    if np.linalg.norm(up) > 0.1:
        up = up / np.linalg.norm(up)
        across = towards - up * (towards @ up)
        if np.linalg.norm(across) > 0.05 * np.linalg.norm(towards):
            across = across / np.linalg.norm(across)
            return np.stack([across, np.cross(up, across), up])
    _LOG.warning("the rig has no common up direction: the volume takes the world's axes")
    return np.eye(3)


def meeting_point(cameras: Cameras) -> np.ndarray:
    """Least-squares point of the optical axes, `[3]`, world units.

    Raises:
        ValueError: fewer than two cameras, or axes that are parallel.
    """
    centres, axes = np.asarray(cameras.centres, float), np.asarray(cameras.axes, float)
    if len(centres) < 2:
        raise ValueError(f"a volume cannot be found from {len(centres)} camera: set it by hand")
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    system = across.sum(axis=0)
    if np.linalg.eigvalsh(system)[0] < 1e-3 * len(axes):
        raise ValueError("the cameras look in parallel directions: set the volume by hand")
    return np.linalg.solve(system, np.einsum("vij,vj->i", across, centres))


def from_frustums(cameras: Cameras, axes: str = "rig") -> Volume:
    """The cube around the axes' meeting point that the narrowest view holds.

    Args:
        cameras: `[views]`.
        axes: "rig" (see `rig_axes`) or "world".

    Raises:
        ValueError: degenerate rigs, see `meeting_point`; the point lies behind a camera.
    """
    centre = meeting_point(cameras)
    local = np.einsum("vij,j->vi", cameras.rotation, centre) + np.asarray(cameras.translation)
    if (local[:, 2] <= 0).any():
        behind = np.flatnonzero(local[:, 2] <= 0).tolist()
        raise ValueError(f"the optical axes meet behind cameras {behind}: set the volume by hand")
    focal = np.asarray(cameras.matrix)[:, [0, 1], [0, 1]]
    reach = (local[:, 2:] * np.asarray(cameras.size) / 2 / focal).min()
    turned = rig_axes(cameras) if axes == "rig" else np.eye(3)
    return Volume(centre, float(2 * reach), turned)


@functools.partial(jax.jit, static_argnames="n")
def hull(masks: jax.Array, cameras: Cameras, n: int, tolerate: jax.Array | int = 0) -> jax.Array:
    """Visual hull of silhouettes in [-1, 1]^3 at voxel centres.

    Args:
        masks: bool `[frames, views, height, width]`.
        cameras: `[views]`, world = volume, intrinsics of the masks.
        n: voxels a side.
        tolerate: views that may miss a voxel.

    Returns:
        bool `[frames, n, n, n]`. A voxel that a view cannot see is not held against it, but a voxel
        needs two views that see it.
    """
    _, _, height, width = masks.shape
    pixels, depth = cameras_lib.project(cameras, coordinates(n).reshape(-1, 3))
    nearest = jnp.round(pixels).astype(jnp.int32)
    x, y = nearest[..., 0], nearest[..., 1]
    visible = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
    flat = masks.reshape(*masks.shape[:2], -1)
    hit = jax.vmap(lambda mask, own: jnp.take(mask, own, axis=1), (1, 0), 1)(flat, index)
    missed = (visible[None] & ~hit).sum(axis=1)
    agreed = (visible[None] & hit).sum(axis=1)
    return ((missed <= tolerate) & (agreed >= 2)).reshape(-1, n, n, n)


def motion_masks(images: np.ndarray, threshold: float = 0.08) -> np.ndarray:
    """Where a frame differs from the median of all frames, bool `[frames, views, height, width]`.

    Args:
        images: uint8 `[frames, views, height, width, 3]`.
        threshold: of the largest difference of a channel, in [0, 1].
    """
    sample = images[:: max(1, len(images) // 64)]
    background = np.median(sample, axis=0).astype(np.int16)
    masks = np.empty(images.shape[:-1], bool)
    for index, frame in enumerate(images):
        masks[index] = np.abs(frame - background).max(axis=-1) > 255 * threshold
    return masks


def from_motion(
    cameras: Cameras, masks: np.ndarray, axes: str = "rig", margin: float = 0.2, n: int = 32
) -> Volume:
    """The cube around everything that moves.

    Args:
        cameras: `[views]`, intrinsics of the masks.
        masks: bool `[frames, views, height, width]`, some frames are enough.
        axes: as in `from_frustums`.
        margin: widening, as a share of the hull's extent.
        n: voxels a side of the search.

    Returns:
        The volume; that of `from_frustums` where no hull of motion is found, which is logged.
    """
    volume = from_frustums(cameras, axes)
    for _ in range(2):  # the second pass looks at finer voxels
        own = volume.cameras(cameras)
        occupied = np.asarray(hull(jnp.asarray(masks), own, n))
        points = np.asarray(coordinates(n)).reshape(-1, 3)
        frames = occupied.reshape(len(occupied), -1)
        if frames.sum() == 0:
            _LOG.warning("no motion that all views agree on: the volume follows the frustums alone")
            return volume
        moving = frames[frames.any(axis=1)]
        lows = np.stack([points[f].min(axis=0) for f in moving])
        highs = np.stack([points[f].max(axis=0) for f in moving])
        # two per cent of the frames may be noise
        low, high = np.quantile(lows, 0.02, axis=0), np.quantile(highs, 0.98, axis=0)
        side = float((high - low).max() + 2.0 / n) * (1 + margin) * volume.side / 2
        volume = Volume(
            volume.to_world((low + high) / 2), min(side, volume.side), volume.rotation
        )
    return volume
