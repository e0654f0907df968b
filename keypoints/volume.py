"""The cube in which keypoints are sought: where it lies in the world, chosen by hand or found.

Found from the cameras alone (where the middles of their images meet, and how much all see there),
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


def rig_axes(cameras: Cameras, centre: Array) -> np.ndarray:
    """Axes that turn with the rig: z up in the images, x towards the first camera, `[3, 3]`.

    Where the images' up directions cancel, or the first camera lies straight above, the world's
    axes are taken instead, which is logged.

    Args:
        cameras: `[views]`.
        centre: of the volume, `[3]`.
    """
    up = np.asarray(cameras.ups).mean(axis=0)
    towards = np.asarray(cameras.centres)[0] - np.asarray(centre, float)
    if np.linalg.norm(up) > 0.1:
        up = up / np.linalg.norm(up)
        across = towards - up * (towards @ up)
        if np.linalg.norm(across) > 0.05 * np.linalg.norm(towards):
            across = across / np.linalg.norm(across)
            return np.stack([across, np.cross(up, across), up])
    _LOG.warning("the rig has no common up direction: the volume takes the world's axes")
    return np.eye(3)


def meeting_point(cameras: Cameras) -> np.ndarray:
    """Least-squares point of the rays through the images' centres, `[3]`, world units.

    Of whole images these are the optical axes; of crops they lead to what was cropped.

    Raises:
        ValueError: one camera, or rays that are parallel.
    """
    if len(cameras.size) < 2:
        raise ValueError("a volume cannot be found from 1 camera: set it by hand")
    middle = (np.asarray(cameras.size, float) - 1) / 2
    found = cameras_lib.rays(cameras, middle[:, None])
    centres, axes = np.asarray(cameras.centres, float), np.asarray(found[1], float)[:, 0]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    system = across.sum(axis=0)
    if np.linalg.eigvalsh(system)[0] < 1e-3 * len(axes):
        raise ValueError("the cameras look in parallel directions: set the volume by hand")
    return np.linalg.solve(system, np.einsum("vij,vj->i", across, centres))


def from_frustums(cameras: Cameras, axes: str = "rig", widest: bool = False) -> Volume:
    """The cube around `meeting_point` that the narrowest view holds.

    Args:
        cameras: `[views]`.
        axes: "rig" (see `rig_axes`) or "world".
        widest: as large as the widest view instead.

    Raises:
        ValueError: degenerate rigs, see `meeting_point`; the point lies behind a camera.
    """
    centre = meeting_point(cameras)
    local = np.einsum("vij,j->vi", cameras.rotation, centre) + np.asarray(cameras.translation)
    if (local[:, 2] <= 0).any():
        behind = np.flatnonzero(local[:, 2] <= 0).tolist()
        raise ValueError(f"the optical axes meet behind cameras {behind}: set the volume by hand")
    focal = np.asarray(cameras.matrix)[:, [0, 1], [0, 1]]
    reach = local[:, 2:] * np.asarray(cameras.size) / 2 / focal
    side = 2 * (reach.max() if widest else reach.min())
    turned = rig_axes(cameras, centre) if axes == "rig" else np.eye(3)
    return Volume(centre, float(side), turned)


def by_hand(cameras: Cameras, centre: Array, side: float, axes: str = "rig") -> Volume:
    """A volume whose place is known.

    Args:
        cameras: `[views]`.
        centre: `[3]`, world units.
        side: world units.
        axes: as in `from_frustums`.

    Raises:
        ValueError: no part of it is seen by two cameras. One that sees nothing of it is logged.
    """
    turned = rig_axes(cameras, centre) if axes == "rig" else np.eye(3)
    found = Volume(np.asarray(centre, float), float(side), turned)
    places = found.to_world(np.asarray(coordinates(8)).reshape(-1, 3))
    pixels, depth = (np.asarray(x) for x in cameras_lib.project(cameras, places))
    size = np.asarray(cameras.size)[:, None]
    seen = (depth > 0) & ((pixels > -0.5) & (pixels < size - 0.5)).all(axis=-1)
    if not (seen.sum(axis=0) >= 2).any():
        raise ValueError(
            f"no part of the volume of side {side:.4g} around {found.centre.tolist()} lies in front"
            " of two cameras and in their images: check its centre, its side and their units"
        )
    blind = np.flatnonzero(~seen.any(axis=1)).tolist()
    if blind:
        _LOG.warning("cameras %s see no part of the volume", blind)
    return found


@functools.partial(jax.jit, static_argnames="n")
def hull(
    masks: jax.Array, cameras: Cameras, n: int, tolerate: jax.Array | int = 0,
    least: jax.Array | int = 2,
) -> jax.Array:
    """Visual hull of silhouettes in [-1, 1]^3 at voxel centres.

    Args:
        masks: bool `[frames, views, height, width]`.
        cameras: `[views]`, world = volume, intrinsics of the masks.
        n: voxels a side.
        tolerate: views that may miss a voxel.
        least: number of views in whose silhouettes a voxel must lie.

    Returns:
        bool `[frames, n, n, n]`. A voxel that a view cannot see is not held against it.
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
    return ((missed <= tolerate) & (agreed >= least)).reshape(-1, n, n, n)


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


def _extents(
    masks: np.ndarray, cameras: Cameras, n: int, least: int, batch: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of the hull of each frame that has one, `[frames, 3]` each."""
    points = np.asarray(coordinates(n)).reshape(-1, 3)
    lows, highs = [], []
    for start in range(0, len(masks), batch):
        index = np.minimum(np.arange(start, start + batch), len(masks) - 1)
        found = np.asarray(hull(jnp.asarray(masks[index]), cameras, n, 0, least))
        for own in found.reshape(batch, -1)[: len(masks) - start]:
            if own.any():
                lows.append(points[own].min(axis=0))
                highs.append(points[own].max(axis=0))
    return np.asarray(lows).reshape(-1, 3), np.asarray(highs).reshape(-1, 3)


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
    narrow, found = (from_frustums(cameras, axes, widest) for widest in (False, True))
    # a subject that walks towards one camera moves far in others: the widest view sets the search
    finer = int(np.ceil(n * min(found.side / narrow.side, 2.0) - 0.01))
    moving = ((masks.any(axis=(2, 3)).sum(axis=1)) >= 2).sum()
    for count in (finer, n):  # the second pass looks at finer voxels
        # all views but one must see a voxel, or cones that meet where the others do not look count;
        # two are enough where in most frames no more see the subject
        for least, share in ((max(2, len(cameras.size) - 1), 0.5), (2, 0.0)):
            lows, highs = _extents(masks, found.cameras(cameras), count, least)
            if len(lows) > share * moving:
                break
        else:
            _LOG.warning("no motion that all views agree on: the volume follows the frustums alone")
            return narrow
        # two per cent of the frames may be noise
        low, high = np.quantile(lows, 0.02, axis=0), np.quantile(highs, 0.98, axis=0)
        side = float((high - low).max() + 2.0 / count) * (1 + margin) * found.side / 2
        found = Volume(found.to_world((low + high) / 2), min(side, found.side), found.rotation)
    return found
