"""What can be said of a pose without keypoints: mean pose, visual hull, ground-truth sites."""

import jax
import jax.numpy as jnp
import numpy as np

from keypoints import regression, volume
from keypoints.cameras import Cameras
from keypoints.v2v import coordinates


def hull_features(masks: np.ndarray, cameras: Cameras, n: int = 32, batch: int = 32) -> np.ndarray:
    """Centroid, second moments and height percentiles of the hull of each frame.

    Args:
        masks: bool `[frames, views, height, width]`.
        cameras: `[views]`, world = volume.
        n: voxels a side.
        batch: frames at once.

    Returns:
        `[frames, 14]`: centroid (3), covariance (6), five percentiles of the height. An empty hull
        has the mean over frames.
    """
    points = np.asarray(coordinates(n), float).reshape(-1, 3)
    rows = np.full((len(masks), 14), np.nan)
    upper = np.triu_indices(3)
    for start in range(0, len(masks), batch):
        part = masks[start : start + batch]
        padded = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), bool)])
        found = np.asarray(volume.hull(jnp.asarray(padded), cameras, n)).reshape(batch, -1)
        for index in range(len(part)):
            own = points[found[index]]
            if len(own) < 4:
                continue
            centroid = own.mean(axis=0)
            spread = np.cov(own.T)[upper]
            heights = np.percentile(own[:, 2], (5, 25, 50, 75, 95))
            rows[start + index] = np.concatenate([centroid, spread, heights])
    if np.isnan(rows).all():
        return np.zeros_like(rows)
    return np.where(np.isnan(rows), np.nanmean(rows, axis=0), rows)


def oracle_sites(joints: np.ndarray, count: int, train: np.ndarray) -> np.ndarray:
    """Indices of `count` joints spread over the body: farthest-point choice on the mean pose."""
    mean = joints[train].mean(axis=0)
    chosen = [int(np.argmax(np.linalg.norm(mean - mean.mean(axis=0), axis=1)))]
    while len(chosen) < min(count, len(mean)):
        distance = np.linalg.norm(mean[:, None] - mean[chosen], axis=-1).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    return np.asarray(chosen)


def table(
    joints: np.ndarray,
    masks: np.ndarray,
    cameras: Cameras,
    train: np.ndarray,
    tests: dict[str, np.ndarray],
    noise: float,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Errors of all baselines.

    Args:
        joints: `[frames, joints, 3]`.
        masks: bool `[frames, views, height, width]`.
        cameras: `[views]`, world = volume.
        train, tests: frames, see `regression.regress`.
        noise: standard deviation for the noisy oracle, world units.
        seed: of that noise.
    """
    hull = hull_features(masks, cameras)
    mean = joints[train].mean(axis=0)
    centre = joints.mean(axis=1, keepdims=True)
    eight = joints[:, oracle_sites(joints, 8, train)]
    noisy = eight + np.random.default_rng(seed).normal(scale=noise, size=eight.shape)
    shape = (joints[train] - centre[train]).mean(axis=0)

    def fixed(poses: np.ndarray) -> dict[str, dict[str, float]]:
        return {
            name: regression.errors(poses[frames], joints[frames])
            for name, frames in tests.items()
            if len(frames)
        }

    def linear(features: np.ndarray) -> dict[str, dict[str, float]]:
        return regression.regress(features, joints, train, tests)

    return {
        "mean pose": fixed(np.broadcast_to(mean, joints.shape)),
        "true centroid + mean shape": fixed(centre + shape),
        "hull centroid": linear(hull[:, :3]),
        "hull centroid, moments, heights": linear(hull),
        "4 true sites": linear(joints[:, oracle_sites(joints, 4, train)]),
        "8 true sites": linear(eight),
        f"8 true sites + {noise:.3g} noise": linear(noisy),
    }


def inside_share(
    pixels: np.ndarray, masks: np.ndarray, radius: int = 1
) -> tuple[float, float]:
    """Share of projected keypoints inside the motion masks widened by `radius` pixels.

    Args:
        pixels: `[frames, views, keypoints, 2]`.
        masks: bool `[frames, views, height, width]`.
        radius: pixels.

    Returns:
        (share, chance: the share of the widened masks' area).
    """
    frames, views, height, width = masks.shape
    flat = jnp.asarray(masks.reshape(-1, height, width), jnp.float32)
    window = 2 * radius + 1
    wide = jax.lax.reduce_window(flat, 0.0, jax.lax.max, (1, window, window), (1, 1, 1), "SAME")
    wide = np.asarray(wide).reshape(masks.shape) > 0
    nearest = np.round(np.nan_to_num(pixels, nan=-1.0)).astype(int)
    x, y = nearest[..., 0], nearest[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    f, v = np.ogrid[:frames, :views]
    hit = wide[f[..., None], v[..., None], np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return float((hit & inside).mean()), float(wide.mean())
