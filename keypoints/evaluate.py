"""What a trained network is worth: errors after regression, controls, label-free measures."""

import logging
from typing import Any

import jax
import numpy as np

from keypoints import cameras as cameras_lib
from keypoints import data, edges, regression
from keypoints.cameras import Cameras
from keypoints.models import KeypointNet, Keypoints
from keypoints.predict import predict

_LOG = logging.getLogger(__name__)


def project(points: np.ndarray, cameras: Cameras) -> np.ndarray:
    """Keypoints `[frames, keypoints, 3]` as pixels `[frames, views, keypoints, 2]`.

    NaN where a camera cannot see the point: behind it, or beyond its lens.
    """
    frames, count, _ = points.shape
    flat = points.reshape(-1, 3).astype(np.float32)
    pixels, depth = (np.asarray(x) for x in jax.jit(cameras_lib.project)(cameras, flat))
    pixels = np.where(depth[..., None] > 0, pixels, np.nan)
    return pixels.reshape(-1, frames, count, 2).transpose(1, 0, 2, 3)


def hidden_share(pixels: np.ndarray) -> float:
    """Share of projections from `project` that no camera could see, logged where there are any.

    Args:
        pixels: `[frames, views, keypoints, 2]`.
    """
    share = float(np.isnan(pixels).any(axis=-1).mean())
    if share:
        _LOG.warning(
            "%.1f %% of the projections lie behind a camera or beyond its lens: they are not drawn"
            " and count as outside of what moves", 100 * share
        )
    return share


def _mean(values: np.ndarray) -> float | None:
    """Mean of the finite values; None where there are none."""
    finite = np.asarray(values)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def errors(
    points: np.ndarray, recording: data.Recording, split: data.Split
) -> dict[str, dict[str, float]]:
    """Errors after a linear map fitted on the training frames, in the recording's unit.

    Args:
        points: keypoints of all frames in any affine frame, `[frames, keypoints, 3]`.
    """
    assert recording.joints is not None
    tests = {"later": split.later, "unseen": split.unseen}
    pairs = regression.sides(recording.joint_names)
    return regression.regress(points, recording.joints, split.train, tests, pairs=pairs)


def leave_one_view_out(
    model: KeypointNet,
    params: dict,
    images: np.ndarray,
    cameras: Cameras,
    found: Keypoints,
) -> dict[str, float | None]:
    """Label-free consistency: keypoints found without a view against those found with all.

    Args:
        images: uint8 `[frames, views, h, w, 3]`.
        cameras: `[views]`, world = volume.
        found: keypoints from all views.

    Returns:
        `pixels`: mean distance in the left-out view, of points that it can see; `sides`: mean
        distance in space, in sides of the volume; `spread_pixels`: standard deviation over frames
        of a keypoint in a view, the size of what the first number has to be compared with. None
        where no point is seen.
    """
    views = images.shape[1]
    everything = project(found.points, cameras)
    pixels, sides = [], []
    for view in range(views):
        present = np.ones(images.shape[:2], np.float32)
        present[:, view] = 0.0
        without = predict(model, params, images, cameras, present)
        own = project(without.points, cameras)[:, view]
        pixels.append(np.linalg.norm(own - everything[:, view], axis=-1).ravel())
        sides.append(np.linalg.norm(without.points - found.points, axis=-1).mean() / 2)
    spread = np.sqrt(everything.var(axis=0).sum(axis=-1))  # NaN where a point once left the view
    return {
        "pixels": _mean(np.concatenate(pixels)),
        "sides": float(np.mean(sides)),
        "spread_pixels": _mean(spread),
    }


def by_views(
    model: KeypointNet,
    params: dict,
    recording: data.Recording,
    split: data.Split,
    cameras: Cameras,
) -> dict[str, dict[str, dict[str, float]]]:
    """Errors with the first 2, 3, ... views only; the network and its training are the same."""
    views = recording.images.shape[1]
    results = {}
    for count in range(2, views):
        present = np.zeros(recording.images.shape[:2], np.float32)
        present[:, :count] = 1.0
        found = predict(model, params, recording.images, cameras, present)
        results[str(count)] = errors(found.points, recording, split)
    return results


def shuffled(
    model: KeypointNet,
    params: dict,
    recording: data.Recording,
    split: data.Split,
    cameras: Cameras,
) -> dict[str, dict[str, float]]:
    """Errors when the first two views have each other's calibration: geometry must matter.

    Not all views by one place: in a ring of cameras that is nearly a turn of the world, and the
    linear map to the joints would undo it.
    """
    order = np.arange(recording.images.shape[1])
    order[:2] = 1, 0
    found = predict(model, params, recording.images, cameras[order])
    return errors(found.points, recording, split)


def skeleton(params: dict, points: np.ndarray, strongest: int = 20) -> list[dict[str, Any]]:
    """The strongest edges: ends, softplus weight, mean length and its coefficient of variation.

    Args:
        params: of the network.
        points: `[frames, keypoints, 3]`; lengths are in their unit.
        strongest: how many.
    """
    weights = np.logaddexp(0.0, np.asarray(params["skeleton"], float))
    ends = edges.pairs(points.shape[1])
    chosen = np.argsort(-weights)[:strongest]
    rows = []
    for index in chosen:
        i, j = (int(k) for k in ends[index])
        lengths = np.linalg.norm(points[:, i] - points[:, j], axis=-1)
        rows.append(
            {
                "ends": [i, j],
                "weight": float(weights[index]),
                "length": float(lengths.mean()),
                "variation": float(lengths.std() / max(lengths.mean(), 1e-9)),
            }
        )
    return rows


def temporal(points: np.ndarray, sequence: np.ndarray) -> dict[str, float]:
    """Smoothness: mean step and mean second difference of a keypoint, and their ratio.

    A ratio near sqrt(3) is white noise, near 0 a smooth path.

    Args:
        points: `[frames, keypoints, 3]`, world units.
        sequence: `[frames]`.
    """
    inside = sequence[2:] == sequence[:-2]
    steps = np.linalg.norm(points[1:-1] - points[:-2], axis=-1)[inside]
    second = np.linalg.norm(points[2:] - 2 * points[1:-1] + points[:-2], axis=-1)[inside]
    return {
        "step": float(steps.mean()),
        "second_difference": float(second.mean()),
        "ratio": float(second.mean() / max(steps.mean(), 1e-12)),
    }
