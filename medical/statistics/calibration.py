"""Whether predicted probabilities come true: Brier score, reliability, recalibration."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from medical.statistics.checks import binary_labels, binary_values, finite, same_length


class Reliability(NamedTuple):
    """Bins of equal width over [0, 1] that hold at least one case.

    Attributes:
      predicted: mean probability of each bin.
      observed: share of positives of each bin.
      cases: number of cases in each bin.
      error: expected calibration error, the mean of ``abs(observed - predicted)`` over cases.
    """

    predicted: np.ndarray
    observed: np.ndarray
    cases: np.ndarray
    error: float


class Recalibration(NamedTuple):
    """Logistic recalibration ``logit P(y) = intercept + slope * logit p``.

    A calibrated model has intercept 0 and slope 1; a slope below 1 means over-confidence (Cox,
    "Two further applications of a model for binary regression", Biometrika 1958).

    Attributes:
      intercept: estimate; `intercept_interval` (low, high).
      slope: estimate; `slope_interval` (low, high). Wald's intervals, of independent cases.
    """

    intercept: float
    slope: float
    intercept_interval: tuple[float, float]
    slope_interval: tuple[float, float]


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared difference of probability and label, both ``[n]`` (Brier 1950).

    Labels of one class only are allowed, here and in `reliability`.
    """
    positive, p = _checked(labels, probabilities)
    return float(np.mean((p - positive) ** 2))


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> Reliability:
    """Reliability diagram of labels and probabilities, both ``[n]``."""
    positive, p = _checked(labels, probabilities)
    index = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    used = count > 0
    predicted = np.bincount(index, p, bins)[used] / count[used]
    observed = np.bincount(index, positive, bins)[used] / count[used]
    error = float(np.sum(count[used] * np.abs(observed - predicted)) / len(p))
    return Reliability(predicted, observed, count[used], error)


def recalibration(
    labels: np.ndarray, probabilities: np.ndarray, iterations: int = 100, level: float = 0.95
) -> Recalibration:
    """Maximum likelihood fit by Newton's method, with intervals of the given level.

    Raises:
      SingleClassError: only one class occurs.
      ValueError: the classes are separated by the probabilities, so no finite fit exists.
    """
    positive, p = _checked(labels, probabilities)
    binary_labels(positive)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    logit = np.log(p / (1 - p))
    design = np.stack([np.ones_like(logit), logit], axis=1)
    if logit[positive].min() >= logit[~positive].max():
        raise ValueError("the probabilities separate the classes: recalibration has no finite fit")
    beta = np.zeros(2)
    for _ in range(iterations):
        fitted = 1 / (1 + np.exp(-design @ beta))
        weight = fitted * (1 - fitted)
        information = design.T @ (design * weight[:, None])
        step = np.linalg.solve(information, design.T @ (positive - fitted))
        beta += step
        if np.abs(step).max() < 1e-12:
            spread = np.sqrt(np.diag(np.linalg.inv(information)))
            half = stats.norm.ppf(0.5 + level / 2) * spread
            ends = [(float(b - h), float(b + h)) for b, h in zip(beta, half, strict=True)]
            return Recalibration(float(beta[0]), float(beta[1]), *ends)
    raise ValueError(f"recalibration did not converge in {iterations} iterations")


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive, p = binary_values(labels), finite(probabilities, "probabilities")
    if not same_length(positive, p):
        raise ValueError("no labels")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probabilities lie in [0, 1], found {p.min():g} to {p.max():g}")
    return positive, p
