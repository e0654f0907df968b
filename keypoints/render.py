"""Capsules on a chequered floor as images: a ray caster in JAX for calibrated pinhole cameras.

Every pixel is a bundle of rays against all capsules in closed form; shading is Lambertian with a
light above and a soft light from the camera. Enough for tests of geometry and learning: silhouettes
and occlusions are exact, textures and shadows are not there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from keypoints import cameras as cameras_lib
from keypoints.cameras import Cameras

_FAR = 1e9
_LIGHT = np.array([0.3, 0.2, 0.93], np.float32)


def _sphere(origin: jax.Array, rays: jax.Array, centre: jax.Array, radius: jax.Array) -> jax.Array:
    """Distance along unit rays `[rays, 3]` to a sphere; `_FAR` where it is missed."""
    offset = (origin - centre)[None]
    half = jnp.sum(rays * offset, axis=1)
    under = jnp.square(half) - jnp.sum(jnp.square(offset)) + jnp.square(radius)
    distance = -half - jnp.sqrt(jnp.maximum(under, 0.0))
    return jnp.where((under > 0) & (distance > 0), distance, _FAR)


def capsule(
    origin: jax.Array, rays: jax.Array, start: jax.Array, end: jax.Array, radius: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """First hit of rays with a capsule (all points within `radius` of a segment).

    Args:
        origin: `[3]`.
        rays: unit directions, `[rays, 3]`.
        start, end: of the segment, `[3]`.
        radius: `[]`.

    Returns:
        (distance `[rays]`, `1e9` for a miss; outward normal `[rays, 3]`).
    """
    axis = end - start
    length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(axis)), 1e-12))
    axis = axis / length
    offset = origin - start
    # cylinder: the components across the axis must have length `radius`
    slope = jnp.sum(rays * axis[None], axis=1)
    height = jnp.sum(offset * axis)
    ray_across = rays - slope[:, None] * axis[None]
    offset_across = offset - height * axis
    a = jnp.maximum(jnp.sum(jnp.square(ray_across), axis=1), 1e-9)
    b = jnp.sum(ray_across * offset_across[None], axis=1)
    under = jnp.square(b) - a * (jnp.sum(jnp.square(offset_across)) - jnp.square(radius))
    distance = (-b - jnp.sqrt(jnp.maximum(under, 0.0))) / a
    along = height + distance * slope
    on_side = (under > 0) & (distance > 0) & (along > 0) & (along < length)
    side = jnp.where(on_side, distance, _FAR)
    caps = jnp.minimum(_sphere(origin, rays, start, radius), _sphere(origin, rays, end, radius))
    nearest = jnp.minimum(side, caps)
    hit = origin[None] + nearest[:, None] * rays
    place = jnp.clip(jnp.sum((hit - start[None]) * axis[None], axis=1), 0.0, length)
    normal = (hit - start[None] - place[:, None] * axis[None]) / jnp.maximum(radius, 1e-6)
    return nearest, jnp.where((nearest < _FAR)[:, None], normal, 0.0)


def _floor(origin: jax.Array, rays: jax.Array, tile: float) -> tuple[jax.Array, jax.Array]:
    """Distance to z = 0 and grey value of the tiles; above the horizon a plain wall."""
    down = rays[:, 2] < -1e-4
    distance = jnp.where(down, -origin[2] / jnp.where(down, rays[:, 2], -1.0), _FAR)
    hit = origin[None] + jnp.where(down, distance, 0.0)[:, None] * rays
    tiles = jnp.floor(hit[:, 0] / tile) + jnp.floor(hit[:, 1] / tile)
    grey = jnp.where(jnp.mod(tiles, 2.0) > 0.5, 0.62, 0.54)
    return distance, jnp.where(down, grey, 0.75)


def _view(
    camera: Cameras,
    starts: jax.Array,
    ends: jax.Array,
    radii: jax.Array,
    colours: jax.Array,
    size: tuple[int, int],
    tile: float,
) -> jax.Array:
    """Linear image `[height, width, 3]` of one camera."""
    width, height = size
    x, y = jnp.meshgrid(jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32))
    pixels = jnp.stack([x, y], axis=-1).reshape(-1, 2)
    origin, rays = cameras_lib.rays(camera, pixels)
    distance, normal = jax.vmap(capsule, (None, None, 0, 0, 0))(origin, rays, starts, ends, radii)
    ground, grey = _floor(origin, rays, tile)
    first = jnp.argmin(distance, axis=0)
    nearest = jnp.take_along_axis(distance, first[None], axis=0)[0]
    chosen = jnp.take_along_axis(normal, first[None, :, None], axis=0)[0]
    light = jnp.maximum(jnp.sum(chosen * jnp.asarray(_LIGHT)[None], axis=1), 0.0)
    facing = jnp.maximum(-jnp.sum(chosen * rays, axis=1), 0.0)
    shade = 0.25 + 0.5 * light + 0.35 * facing
    body = colours[first] * shade[:, None]
    seen = (nearest < ground)[:, None]
    image = jnp.where(seen, body, jnp.broadcast_to(grey[:, None], body.shape))
    return image.reshape(height, width, 3)


@functools.partial(jax.jit, static_argnames=("size", "oversample", "tile"))
def _frames(
    cameras: Cameras,
    starts: jax.Array,
    ends: jax.Array,
    radii: jax.Array,
    colours: jax.Array,
    size: tuple[int, int],
    oversample: int,
    tile: float,
) -> jax.Array:
    width, height = size

    def frame(capsules: tuple[jax.Array, jax.Array]) -> jax.Array:
        def view(camera: Cameras) -> jax.Array:
            large = (width * oversample, height * oversample)
            image = _view(camera, *capsules, radii, colours, large, tile)
            blocks = image.reshape(height, oversample, width, oversample, 3)
            grey = jnp.clip(blocks.mean(axis=(1, 3)), 0.0, 1.0)
            return jnp.round(255.0 * grey).astype(jnp.uint8)

        return jax.lax.map(view, cameras)

    return jax.lax.map(frame, (starts, ends))


def render(
    cameras: Cameras,
    starts: np.ndarray,
    ends: np.ndarray,
    radii: np.ndarray,
    colours: np.ndarray,
    oversample: int = 2,
    tile: float = 100.0,
) -> np.ndarray:
    """Images of moving capsules.

    Args:
        cameras: `[views]`, all of one size.
        starts, ends: `[frames, capsules, 3]`, world units.
        radii: `[capsules]`, world units.
        colours: `[capsules, 3]` in [0, 1].
        oversample: rays a pixel along each axis.
        tile: side of a floor tile, world units.

    Returns:
        uint8 `[frames, views, height, width, 3]`.
    """
    size = tuple(int(n) for n in np.asarray(cameras.size)[0])
    large = cameras_lib.resize(cameras, (size[0] * oversample, size[1] * oversample))
    arrays = (np.asarray(a, np.float32) for a in (starts, ends, radii, colours))
    single = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float32) if leaf.dtype.kind == "f" else leaf, large
    )
    return np.asarray(_frames(single, *arrays, (size[0], size[1]), oversample, tile))
