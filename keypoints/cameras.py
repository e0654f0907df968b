"""Calibrated cameras as one pytree: projection, lenses, rays, triangulation, crops and resizing.

Conventions are OpenCV's: x_cam = R x_world + t, camera x right, y down, z forward, and a pixel's
centre has integer coordinates. Lenses are OpenCV's model with (k1, k2, p1, p2, k3) or its fisheye
model with (k1, k2, k3, k4, 0). World units are the calibration's own; nothing here assumes metres.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = Any
_HIGHEST = jax.lax.Precision.HIGHEST
_NEWTON_STEPS = 12


class Cameras(struct.PyTreeNode):
    """One or many cameras; every field has the same leading axes `[...]`, usually `[views]`.

    Attributes:
        matrix: intrinsics `[..., 3, 3]`, pixels.
        distortion: lens coefficients `[..., 5]`, see the module.
        rotation: world to camera, `[..., 3, 3]`.
        translation: world to camera, `[..., 3]`, world units.
        size: (width, height) of the images, `[..., 2]`, pixels.
        fisheye: bool `[...]`, which lens model.
    """

    matrix: Array
    distortion: Array
    rotation: Array
    translation: Array
    size: Array
    fisheye: Array

    @classmethod
    def create(
        cls,
        matrix: Array,
        rotation: Array,
        translation: Array,
        size: Array,
        distortion: Array | None = None,
        fisheye: Array = False,
    ) -> "Cameras":
        """Checks and fills up the fields (as NumPy float64 arrays).

        Args:
            matrix, rotation, translation, size: as the attributes.
            distortion: `[..., n]` with n <= 5, filled up with zeros; None is no distortion.
            fisheye: bool, for all cameras or `[...]`.

        Raises:
            ValueError: shapes do not fit, a value is not finite, a size or a focal length is not
                positive, or a rotation is not orthonormal with determinant 1 (tolerance 1e-3).
        """
        matrix = np.asarray(matrix, float)
        lead = matrix.shape[:-2]
        rotation = np.asarray(rotation, float)
        translation = np.asarray(translation, float)
        size = np.broadcast_to(np.asarray(size, float), (*lead, 2))
        given = np.zeros((*lead, 0)) if distortion is None else np.asarray(distortion, float)
        found = (matrix.shape, rotation.shape, translation.shape, given.shape[:-1])
        if found != ((*lead, 3, 3), (*lead, 3, 3), (*lead, 3), lead) or given.shape[-1] > 5:
            raise ValueError(
                "cameras need a matrix [..., 3, 3], rotation [..., 3, 3], translation [..., 3] and"
                f" at most 5 lens coefficients, got {found[:3]} and {given.shape}"
            )
        coefficients = np.concatenate([given, np.zeros((*lead, 5 - given.shape[-1]))], axis=-1)
        for name, value in (
            ("matrix", matrix), ("rotation", rotation), ("translation", translation),
            ("distortion", coefficients), ("size", size),
        ):  # fmt: skip
            if not np.isfinite(value).all():
                raise ValueError(f"camera {name} is not finite: {value}")
        if (size < 1).any():
            raise ValueError(f"an image has no pixels: size {size.tolist()}")
        if (matrix[..., [0, 1], [0, 1]] <= 0).any():
            raise ValueError(f"a focal length is not positive: {matrix[..., [0, 1], [0, 1]]}")
        square = rotation @ np.swapaxes(rotation, -1, -2)
        if np.abs(square - np.eye(3)).max() > 1e-3 or (np.linalg.det(rotation) < 0).any():
            raise ValueError("a camera's rotation is not a rotation matrix (orthonormal, det 1)")
        eyes = np.broadcast_to(np.asarray(fisheye, bool), lead)
        return cls(matrix, coefficients, rotation, translation, size.copy(), eyes.copy())

    def __getitem__(self, index: Any) -> "Cameras":
        """Some of the cameras, by an index into the leading axes."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    @property
    def centres(self) -> Array:
        """Positions of the cameras, `[..., 3]`, world units: -R^T t."""
        return -jnp.einsum("...ji,...j->...i", self.rotation, self.translation, precision=_HIGHEST)

    @property
    def axes(self) -> Array:
        """Viewing directions (camera z) in the world, unit vectors `[..., 3]`."""
        return self.rotation[..., 2, :]

    @property
    def ups(self) -> Array:
        """Directions that are up in the images (camera -y) in the world, `[..., 3]`."""
        return -self.rotation[..., 1, :]


def _distort_pinhole(x: Array, k: Array) -> Array:
    """Normalised coordinates `[2]` through the five-parameter lens `k` `[5]`."""
    r2 = x[0] * x[0] + x[1] * x[1]
    radial = 1.0 + r2 * (k[0] + r2 * (k[1] + r2 * k[4]))
    cross = x[0] * x[1]
    return jnp.stack(
        [
            x[0] * radial + 2.0 * k[2] * cross + k[3] * (r2 + 2.0 * x[0] * x[0]),
            x[1] * radial + k[2] * (r2 + 2.0 * x[1] * x[1]) + 2.0 * k[3] * cross,
        ]
    )


def _fisheye_angle(theta: Array, k: Array) -> Array:
    """Distorted angle theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)."""
    square = theta * theta
    return theta * (1.0 + square * (k[0] + square * (k[1] + square * (k[2] + square * k[3]))))


def _distort_fisheye(x: Array, k: Array) -> Array:
    """Normalised coordinates `[2]` through OpenCV's fisheye lens `k` `[5]` (the last is unused)."""
    squared = x[0] * x[0] + x[1] * x[1]
    small = squared < 1e-12
    radius = jnp.sqrt(jnp.where(small, 1.0, squared))
    scale = jnp.where(small, 1.0, _fisheye_angle(jnp.arctan(radius), k) / radius)
    return x * scale


def _distort(x: Array, k: Array, fisheye: Array) -> Array:
    return jnp.where(fisheye, _distort_fisheye(x, k), _distort_pinhole(x, k))


def _is_unique(x: Array, k: Array, fisheye: Array) -> Array:
    """Whether the lens still moves points outwards between the axis and normalised `x` `[2]`.

    Beyond the angle at which r (1 + k1 r^2 + ...) turns back, the polynomial images what the real
    lens cannot see, in the middle of the picture. Its slope is sampled at eight places.
    """
    squared = x[0] * x[0] + x[1] * x[1]
    angle = jnp.square(jnp.arctan(jnp.sqrt(jnp.where(squared > 0, squared, 1.0))))
    s = jnp.where(fisheye, jnp.where(squared > 0, angle, 0.0), squared)
    s = s * jnp.arange(1, 9, dtype=x.dtype) / 8.0
    third, fourth = jnp.where(fisheye, k[2], k[4]), jnp.where(fisheye, k[3], 0.0)
    slope = 1.0 + s * (3.0 * k[0] + s * (5.0 * k[1] + s * (7.0 * third + s * 9.0 * fourth)))
    return jnp.all(slope > 0)


def _undistort_pinhole(target: Array, k: Array) -> Array:
    """Newton's method from the distorted point; quadratic where the lens is monotonic."""

    def step(x: Array, _: None) -> tuple[Array, None]:
        jacobian = jax.jacfwd(_distort_pinhole)(x, k)
        a, b, c, d = jacobian[0, 0], jacobian[0, 1], jacobian[1, 0], jacobian[1, 1]
        determinant = a * d - b * c
        safe = jnp.where(jnp.abs(determinant) < 1e-6, 1.0, determinant)
        error = _distort_pinhole(x, k) - target
        change = jnp.stack([d * error[0] - b * error[1], a * error[1] - c * error[0]]) / safe
        return x - change, None

    return jax.lax.scan(step, target, None, length=_NEWTON_STEPS)[0]


def _undistort_fisheye(target: Array, k: Array) -> Array:
    squared = target[0] * target[0] + target[1] * target[1]
    small = squared < 1e-12
    radius = jnp.sqrt(jnp.where(small, 1.0, squared))

    def step(theta: Array, _: None) -> tuple[Array, None]:
        value, slope = jax.jvp(lambda t: _fisheye_angle(t, k), (theta,), (jnp.ones_like(theta),))
        slope = jnp.where(jnp.abs(slope) < 1e-6, 1.0, slope)
        return jnp.clip(theta - (value - radius) / slope, 0.0, jnp.pi / 2 - 1e-4), None

    start = jnp.minimum(radius, jnp.pi / 2 - 1e-4)
    theta = jax.lax.scan(step, start, None, length=_NEWTON_STEPS)[0]
    return target * jnp.where(small, 1.0, jnp.tan(theta) / radius)


def _one_view(function: Any, cameras: Cameras, *rest: Array) -> Any:
    """Maps `function(camera, row...)` over all leading axes of `cameras` and of `rest`."""
    for _ in range(jnp.ndim(cameras.fisheye)):
        function = jax.vmap(function)
    return function(jax.tree.map(jnp.asarray, cameras), *rest)


def project(cameras: Cameras, points: Array) -> tuple[Array, Array]:
    """World points to pixels through the whole camera model.

    Args:
        cameras: with leading axes `[...]`.
        points: `[n, 3]`, world units, the same for all cameras.

    Returns:
        (pixels `[..., n, 2]`, depths `[..., n]` along the viewing direction). A point whose depth
        is not positive cannot be seen, its pixel is finite and means nothing: it lies behind the
        camera, or (depth -inf) beyond the angle at which the lens's polynomial turns back.
    """
    points = jnp.asarray(points)

    def view(camera: Cameras) -> tuple[Array, Array]:
        local = jnp.einsum("ij,nj->ni", camera.rotation, points, precision=_HIGHEST)
        local = local + camera.translation[None]
        depth = local[:, 2]
        safe = jnp.where(depth > 0, depth, 1.0)
        flat = local[:, :2] / safe[:, None]
        bent = jax.vmap(lambda x: _distort(x, camera.distortion, camera.fisheye))(flat)
        unique = jax.vmap(lambda x: _is_unique(x, camera.distortion, camera.fisheye))(flat)
        depth = jnp.where((depth > 0) & ~unique, -jnp.inf, depth)
        pixels = jnp.einsum("ij,nj->ni", camera.matrix[:2, :2], bent, precision=_HIGHEST)
        return pixels + camera.matrix[:2, 2][None], depth

    return _one_view(view, cameras)


def undistort(cameras: Cameras, pixels: Array) -> tuple[Array, Array]:
    """Pixels to normalised image coordinates (x/z, y/z) without the lens.

    Args:
        cameras: with leading axes `[...]`.
        pixels: `[..., n, 2]`.

    Returns:
        (coordinates `[..., n, 2]`, residual `[..., n]`): the residual is the distance in pixels
        between the given point and the coordinates seen through the lens again. It is not near 0
        where Newton's method did not converge: outside the range in which the lens is monotonic.
    """

    def view(camera: Cameras, own: Array) -> tuple[Array, Array]:
        k, upper = camera.distortion, camera.matrix[:2, :2]
        shifted = own - camera.matrix[:2, 2][None]
        y = shifted[:, 1] / upper[1, 1]
        x = (shifted[:, 0] - upper[0, 1] * y) / upper[0, 0]
        bent = jnp.stack([x, y], axis=1)
        flat = jax.vmap(
            lambda p: jnp.where(camera.fisheye, _undistort_fisheye(p, k), _undistort_pinhole(p, k))
        )(bent)
        again = jax.vmap(lambda p: _distort(p, k, camera.fisheye))(flat)
        focal = jnp.stack([upper[0, 0], upper[1, 1]])
        return flat, jnp.linalg.norm((again - bent) * focal[None], axis=1)

    return _one_view(view, cameras, jnp.asarray(pixels))


def rays(cameras: Cameras, pixels: Array) -> tuple[Array, Array]:
    """Viewing rays of pixels.

    Args:
        cameras: with leading axes `[...]`.
        pixels: `[..., n, 2]`.

    Returns:
        (origins `[..., 3]`, unit directions `[..., n, 3]`), in the world.
    """
    flat, _ = undistort(cameras, pixels)
    local = jnp.concatenate([flat, jnp.ones_like(flat[..., :1])], axis=-1)
    directions = jnp.einsum("...ji,...nj->...ni", cameras.rotation, local, precision=_HIGHEST)
    return cameras.centres, directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)


def unproject(cameras: Cameras, pixels: Array, depths: Array) -> Array:
    """World points `[..., n, 3]` of pixels `[..., n, 2]` at depths `[..., n]` (camera z)."""
    flat, _ = undistort(cameras, pixels)
    local = jnp.concatenate([flat, jnp.ones_like(flat[..., :1])], axis=-1) * depths[..., None]
    shifted = local - jnp.asarray(cameras.translation)[..., None, :]
    return jnp.einsum("...ji,...nj->...ni", cameras.rotation, shifted, precision=_HIGHEST)


def triangulate(cameras: Cameras, pixels: Array, weights: Array | None = None) -> Array:
    """Weighted direct linear transform (Hartley and Zisserman, 12.2) on undistorted points.

    The world is first moved and scaled so that the cameras' centres have mean 0 and mean distance
    1: the algebraic error, and so the result, does not depend on the world's origin and units.

    Args:
        cameras: `[views]`.
        pixels: `[views, n, 2]`; a view in which a coordinate is NaN has weight 0, and so has one
            whose lens images nothing within a pixel of it (see `undistort`).
        weights: `[views, n]`, not negative; None gives every view weight 1.

    Returns:
        `[n, 3]` world points; NaN where fewer than two views have a positive weight.
    """
    pixels = jnp.asarray(pixels)
    seen = jnp.isfinite(pixels).all(axis=-1)
    given = jnp.ones(seen.shape, pixels.dtype) if weights is None else jnp.asarray(weights)
    flat, residual = undistort(cameras, jnp.where(seen[..., None], pixels, 0.0))
    inverted = residual <= 1.0
    given = jnp.where(seen & inverted, given, 0.0)
    flat = jnp.where(inverted[..., None], flat, 0.0)
    centres = cameras.centres
    origin = centres.mean(axis=0)
    spread = jnp.linalg.norm(centres - origin[None], axis=1).mean()
    unit = jnp.where(spread > 0, spread, 1.0)
    moved = transform(cameras, jnp.eye(3), -origin / unit, 1.0 / unit)
    extrinsic = jnp.concatenate([moved.rotation, moved.translation[..., None]], axis=-1)
    rows = flat[..., None] * extrinsic[:, None, 2:3, :] - extrinsic[:, None, :2, :]
    rows = rows * given[..., None, None]  # [views, n, 2, 4]
    system = jnp.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1, 4)
    null = jnp.linalg.svd(system, full_matrices=False)[2][:, -1]
    found = null[:, :3] / null[:, 3:] * unit + origin[None]
    return jnp.where(((given > 0).sum(axis=0) >= 2)[:, None], found, jnp.nan)


def transform(cameras: Cameras, rotation: Array, shift: Array, scale: Array = 1.0) -> Cameras:
    """Cameras of the world moved by x' = scale * rotation x + shift.

    Args:
        cameras: `[...]`.
        rotation: `[3, 3]`.
        shift: `[3]`, new world units.
        scale: new units in one old unit.
    """
    turned = jnp.einsum("...ij,kj->...ik", cameras.rotation, rotation, precision=_HIGHEST)
    moved = jnp.einsum("...ij,j->...i", turned, shift, precision=_HIGHEST)
    translation = scale * jnp.asarray(cameras.translation) - moved
    return cameras.replace(rotation=turned, translation=translation)


def resize(cameras: Cameras, size: Sequence[int]) -> Cameras:
    """Cameras of the images resized to (width, height) `size`.

    Pixel centres are integers, so u' + 1/2 = s (u + 1/2): the principal point moves by (s - 1) / 2.
    """
    scale = np.asarray(size, float) / np.asarray(cameras.size, float)
    matrix = np.array(cameras.matrix, float)
    matrix[..., :2, :2] *= scale[..., :, None]
    matrix[..., :2, 2] = (matrix[..., :2, 2] + 0.5) * scale - 0.5
    return cameras.replace(matrix=matrix, size=np.broadcast_to(size, scale.shape).astype(float))


def crop(cameras: Cameras, left: Array, top: Array, size: Sequence[int]) -> Cameras:
    """Cameras of the rectangle of (width, height) `size` whose first pixel is (left, top)."""
    matrix = np.array(cameras.matrix, float)
    matrix[..., 0, 2] -= left
    matrix[..., 1, 2] -= top
    return cameras.replace(
        matrix=matrix, size=np.broadcast_to(size, np.shape(cameras.size)).astype(float)
    )


def from_mujoco(xpos: Array, xmat: Array, fovy: Array, size: Sequence[int]) -> Cameras:
    """Cameras of MuJoCo (camera y up, z backwards, one focal length).

    Args:
        xpos: `data.cam_xpos`, `[..., 3]`.
        xmat: `data.cam_xmat`, `[..., 3, 3]` or `[..., 9]`.
        fovy: `model.cam_fovy`, `[...]`, degrees.
        size: (width, height) of the rendered images, pixels.
    """
    xpos = np.asarray(xpos, float)
    turned = np.asarray(xmat, float).reshape(*xpos.shape[:-1], 3, 3)
    rotation = np.diag([1.0, -1.0, -1.0]) @ np.swapaxes(turned, -1, -2)
    translation = -np.einsum("...ij,...j->...i", rotation, xpos)
    matrix = np.zeros((*xpos.shape[:-1], 3, 3))
    focal = 0.5 * size[1] / np.tan(np.deg2rad(np.asarray(fovy, float)) / 2)
    matrix[..., 0, 0] = matrix[..., 1, 1] = focal
    matrix[..., :2, 2] = (np.asarray(size) - 1) / 2
    matrix[..., 2, 2] = 1.0
    return Cameras.create(matrix, rotation, translation, size)


def look_at(eye: Array, target: Array, up: Array, focal: Array, size: Sequence[int]) -> Cameras:
    """Pinhole cameras at `eye` `[..., 3]` that look at `target` `[3]`.

    Args:
        eye, target: world units.
        up: direction that shall be up in the images, `[3]`.
        focal: focal length, pixels.
        size: (width, height), pixels.
    """
    eye = np.asarray(eye, float)
    forward = np.asarray(target, float) - eye
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, np.asarray(up, float))
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    rotation = np.stack([right, np.cross(forward, right), forward], axis=-2)
    matrix = np.zeros((*eye.shape[:-1], 3, 3))
    matrix[..., 0, 0] = matrix[..., 1, 1] = focal
    matrix[..., :2, 2] = (np.asarray(size) - 1) / 2
    matrix[..., 2, 2] = 1.0
    return Cameras.create(matrix, rotation, -np.einsum("...ij,...j->...i", rotation, eye), size)
