"""Linear regression from keypoints to ground truth, and the errors of poses (MPJPE, P-MPJPE)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ridge(NamedTuple):
    """A linear map with intercept: y = (x - mean) / scale @ weights + intercept."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`[frames, features]` -> `[frames, outputs]`."""
        return ((x - self.mean) / self.scale) @ self.weights + self.intercept


def ridge(x: np.ndarray, y: np.ndarray, alpha: float = 1.0) -> Ridge:
    """Least squares with penalty alpha |weights|^2 on standardised features, intercept free.

    Args:
        x: `[frames, features]`.
        y: `[frames, outputs]`.
        alpha: the penalty; with standardised features it does not depend on units.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    z = (x - mean) / scale
    intercept = y.mean(axis=0)
    gram = z.T @ z + alpha * np.eye(z.shape[1])
    return Ridge(mean, scale, np.linalg.solve(gram, z.T @ (y - intercept)), intercept)


def procrustes(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`found` after the best similarity (rotation, not reflection) onto `truth`, frame by frame.

    Umeyama, PAMI 1991.

    Args:
        found, truth: `[frames, joints, 3]`.
    """
    mean_x, mean_y = found.mean(axis=1, keepdims=True), truth.mean(axis=1, keepdims=True)
    x, y = found - mean_x, truth - mean_y
    u, s, vt = np.linalg.svd(np.swapaxes(y, 1, 2) @ x)
    sign = np.sign(np.linalg.det(u @ vt))
    flip = np.ones_like(s)
    flip[:, 2] = np.where(sign == 0, 1.0, sign)
    rotation = (u * flip[:, None]) @ vt
    scale = (s * flip).sum(axis=1) / np.maximum(np.square(x).sum(axis=(1, 2)), 1e-12)
    return scale[:, None, None] * x @ np.swapaxes(rotation, 1, 2) + mean_y


# what stands for the left side in a name, and for the right
_SIDES = (
    (r"left", "right"), (r"Left", "Right"), (r"LEFT", "RIGHT"),
    (r"(?<![A-Za-z])l(?![A-Za-z])", "r"), (r"(?<![A-Z])L(?![a-z])", "R"),
)  # fmt: skip


def sides(names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (left joint, right joint) by their names.

    Understood are "left" and "right" anywhere, and L and R as a part of their own: "paw_L",
    "l.hip", "HipL" or "LHip".
    """
    where = {name: index for index, name in enumerate(names)}
    found = []
    for name, index in where.items():
        others = (re.sub(left, right, name, count=1) for left, right in _SIDES)
        partner = next((o for o in others if o != name and o in where), None)
        if partner is not None:
            found.append((index, where[partner]))
    return found


def swapped(found: np.ndarray, truth: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    """Share of left and right joints that are closer to each other's place than to their own.

    Args:
        found, truth: `[frames, joints, 3]`.
        pairs: see `sides`, at least one.

    Returns:
        A share of frames and pairs; 0.5 where the sides are not told apart.
    """
    left, right = np.asarray(pairs).T

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(found[:, a] - truth[:, b], axis=-1)

    own = distance(left, left) + distance(right, right)
    other = distance(left, right) + distance(right, left)
    return float((other < own).mean())


def errors(
    found: np.ndarray, truth: np.ndarray, pairs: Sequence[tuple[int, int]] = ()
) -> dict[str, float]:
    """Mean per-joint position errors in world units.

    Args:
        found, truth: `[frames, joints, 3]`.
        pairs: of left and right joints, see `sides`.

    Returns:
        `mpjpe` (absolute), `centred` (after removing each frame's mean), `p_mpjpe` (after the best
        similarity without reflection) and, with pairs, `swapped`.
    """

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b, axis=-1).mean())

    centred = found - found.mean(axis=1, keepdims=True) + truth.mean(axis=1, keepdims=True)
    result = {
        "mpjpe": mean(found, truth),
        "centred": mean(centred, truth),
        "p_mpjpe": mean(procrustes(found, truth), truth),
    }
    if len(pairs):
        result["swapped"] = swapped(found, truth, pairs)
    return result


def regress(
    x: np.ndarray, joints: np.ndarray, train: np.ndarray, tests: dict[str, np.ndarray],
    alpha: float = 1.0, pairs: Sequence[tuple[int, int]] = (),
) -> dict[str, dict[str, float]]:
    """Errors of the linear map from features to joints, fitted on `train` only.

    Args:
        x: features of all frames, `[frames, ...]`.
        joints: `[frames, joints, 3]`.
        train: frames to fit on.
        tests: name to frames.
        alpha: see `ridge`.
        pairs: see `errors`.
    """  # fmt: skip
    flat = x.reshape(len(x), -1)
    model = ridge(flat[train], joints[train].reshape(len(train), -1), alpha)
    return {
        name: errors(model(flat[frames]).reshape(-1, *joints.shape[1:]), joints[frames], pairs)
        for name, frames in tests.items()
        if len(frames)
    }


def body_size(joints: np.ndarray) -> float:
    """Median over frames of the largest distance between two joints, world units."""
    offset = joints[:, :, None] - joints[:, None]
    return float(np.median(np.linalg.norm(offset, axis=-1).max(axis=(1, 2))))
