"""Linear classifiers on vertices or parcels: ridge, logistic regression, linear SVM.

With an L2 penalty the solution lies in the span of the training rows, so all are fitted in the
rotated space of at most as many dimensions as there are training scans, which is exact. The
strength of the penalty is chosen by the AUC on the validation scans.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from meshgcn import evaluate

__all__ = ["LINEAR", "LinearFit", "fit_all", "t_map"]


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """A fitted linear classifier.

    Attributes:
      score: `[scans]`, above 0 is class 1.
      weights: `[features]`, for standardised features.
      penalty: the chosen one, in units of the mean variance of the rotated features.
    """

    score: np.ndarray
    weights: np.ndarray
    penalty: float


def fit_all(
    x: np.ndarray,
    label: np.ndarray,
    role: np.ndarray,
    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
) -> dict[str, LinearFit]:
    """Fits each of `LINEAR`.

    Args:
      x: `[scans, features]`; standardised here, with the training scans' mean and SD.
      label: `[scans]`, 0 or 1.
      role: `[scans]`, 0 train, 1 validation, 2 test.
      penalties: tried in turn.
    """
    train, validation = role == 0, role == 1
    x = np.asarray(x, np.float32)
    mean, sd = x[train].mean(axis=0), x[train].std(axis=0)
    x = (x - mean) * np.where(sd > 1e-5, 1 / np.maximum(sd, 1e-5), 0.0).astype(np.float32)
    sign = 2.0 * (label[train] == 1) - 1.0
    # Rotation of the training rows: z = x basis, [scans, rank].
    products = (x @ x[train].T).astype(np.float64)
    values, left = np.linalg.eigh(products[train])
    kept = values > values.max(initial=0.0) * 1e-6  # of products in single precision
    rotation = left[:, kept] / np.sqrt(values[kept])
    z = products @ rotation
    unit = float((z[train] ** 2).mean()) * int(train.sum())
    found = {}
    for kind, solver in LINEAR.items():
        best: tuple[float, np.ndarray, np.ndarray, float] | None = None
        for penalty in penalties:
            solution, offset = solver(z[train], sign, penalty * unit)
            score = z @ solution + offset
            quality = evaluate.auc(score[validation], label[validation] == 1)
            if best is None or quality > best[0]:
                best = (quality, score, solution, penalty)
        assert best is not None
        found[kind] = LinearFit(best[1], x[train].T @ (rotation @ best[2]), best[3])
    return found


def _ridge(z: np.ndarray, sign: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Least squares to -1 and 1; `z` has mean 0."""
    offset = float(sign.mean())
    gram = z.T @ z + penalty * np.eye(z.shape[1])
    return np.linalg.solve(gram, z.T @ (sign - offset)), offset


def _smooth_margin(
    loss: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, float]]:
    """A fit of a differentiable loss of the margin by L-BFGS."""

    def solve(z: np.ndarray, sign: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
        def objective(packed: np.ndarray) -> tuple[float, np.ndarray]:
            weights, offset = packed[:-1], packed[-1]
            value, slope = loss(sign * (z @ weights + offset))
            slope = slope * sign
            total = value.sum() + 0.5 * penalty * weights @ weights
            return float(total), np.append(z.T @ slope + penalty * weights, slope.sum())

        start = np.zeros(z.shape[1] + 1)
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
        return found.x[:-1], float(found.x[-1])

    return solve


def _logistic_loss(margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.logaddexp(0, -margin), -1 / (1 + np.exp(np.clip(margin, -500, 500)))


def _squared_hinge(margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gap = np.maximum(1 - margin, 0)
    return gap**2, -2 * gap


LINEAR: dict[str, Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, float]]] = {
    "ridge": _ridge,
    "logistic": _smooth_margin(_logistic_loss),
    "svm": _smooth_margin(_squared_hinge),
}


def t_map(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Welch's t of class 0 minus class 1 at each vertex: positive where patients are thinner.

    Args:
      x: `[scans, vertices]`.
      label: `[scans]`.

    Returns:
      `[vertices]`; 0 where nothing varies.
    """
    zero, one = np.asarray(x, np.float64)[label == 0], np.asarray(x, np.float64)[label == 1]
    error = np.sqrt(zero.var(axis=0, ddof=1) / len(zero) + one.var(axis=0, ddof=1) / len(one))
    difference = zero.mean(axis=0) - one.mean(axis=0)
    return np.where(error > 1e-9, difference / np.maximum(error, 1e-9), 0.0)
