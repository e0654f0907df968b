"""Area under the ROC curve with DeLong's variance, its test and interval, for paired scores.

DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver
Operating Characteristic Curves", Biometrics 1988; computed from midranks in O(n log n) as in Sun
and Xu, "Fast Implementation of DeLong's Algorithm", IEEE Signal Processing Letters 2014.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from medical.statistics.adjust import holm
from medical.statistics.checks import binary_labels, class_labels, finite, same_length


class Areas(NamedTuple):
    """Areas under ROC curves.

    Attributes:
      auc: ``[models]``.
      covariance: DeLong's covariance of them, ``[models, models]``.
    """

    auc: np.ndarray
    covariance: np.ndarray


class Comparison(NamedTuple):
    """Test of equal areas.

    Attributes:
      difference: first area minus second.
      z: difference over its standard error; 0 where degenerate.
      p: two-sided.
      degenerate: the difference has no variance (for example equal scores): then p is 1 if the
        areas are equal and 0 if not, and neither is evidence of the usual kind.
    """

    difference: float
    z: float
    p: float
    degenerate: bool


def areas(labels: np.ndarray, scores: np.ndarray) -> Areas:
    """Areas and their covariance.

    Args:
      labels: 0 or 1, ``[n]``.
      scores: larger for class 1, ``[models, n]`` (or ``[n]`` for one model), on the same cases.

    Raises:
      SingleClassError: only one class.
      ValueError: NaN, other labels, or lengths that differ.
    """
    positive = binary_labels(labels)
    table = np.atleast_2d(finite(scores, "scores"))
    same_length(positive, table)
    m, n = int(positive.sum()), int((~positive).sum())
    among_all = stats.rankdata(table, axis=1)
    among_positive = stats.rankdata(table[:, positive], axis=1)
    among_negative = stats.rankdata(table[:, ~positive], axis=1)
    # Placement values: share of the other class below each case, ties counted as a half.
    v10 = (among_all[:, positive] - among_positive) / n
    v01 = 1.0 - (among_all[:, ~positive] - among_negative) / m
    auc = v10.mean(axis=1)
    covariance = _covariance(v10) / m + _covariance(v01) / n
    return Areas(auc, covariance)


def compare(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Comparison:
    """Two-sided test that two scores of the same cases, each ``[n]``, have the same area."""
    found = areas(labels, np.stack([finite(first, "first"), finite(second, "second")]))
    difference = float(found.auc[0] - found.auc[1])
    (a, ab), (_, b) = found.covariance
    variance = float(a + b - 2 * ab)
    # Rounding leaves about 1e-17 where the two columns of placement values are equal.
    if variance <= 1e-14 * max(float(a + b), 1e-14):
        return Comparison(difference, 0.0, 1.0 if abs(difference) < 1e-12 else 0.0, True)
    z = difference / variance**0.5
    return Comparison(difference, z, float(2 * stats.norm.sf(abs(z))), False)


def interval(auc: float, variance: float, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of an area by the normal law of its logit.

    The logit keeps the interval inside [0, 1] (Pepe, "The Statistical Evaluation of Medical Tests",
    2003, section 5.2). An area of 0 or 1 has no estimate of variance: the interval is [0, 1].
    """
    if not 0 < auc < 1:
        return 0.0, 1.0
    logit = np.log(auc / (1 - auc))
    half = stats.norm.ppf(0.5 + level / 2) * variance**0.5 / (auc * (1 - auc))
    low, high = 1 / (1 + np.exp(-(logit - half))), 1 / (1 + np.exp(-(logit + half)))
    return float(low), float(high)


def per_class(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[list[Comparison], np.ndarray]:
    """One-against-rest tests of each class, and their p values after Holm's correction.

    Of two classes whose probabilities sum to one the two tests are the same, and nothing is
    corrected.

    Args:
      labels: ``[n]`` in ``0 .. classes - 1``; every class must occur.
      first: probabilities ``[n, classes]`` of one model; `second` likewise.
    """
    first, second = finite(first, "first"), finite(second, "second")
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"need two tables [n, classes], got {first.shape} and {second.shape}")
    labels = class_labels(labels, first.shape[1])
    tests = [compare(labels == c, first[:, c], second[:, c]) for c in range(first.shape[1])]
    p = np.array([t.p for t in tests])
    if len(tests) == 2 and all(np.allclose(t.sum(axis=1), 1, atol=1e-5) for t in (first, second)):
        return tests, p
    return tests, holm(p)


def _covariance(values: np.ndarray) -> np.ndarray:
    """Covariance ``[models, models]`` over the last axis; 0 for a single case."""
    count = values.shape[1]
    if count == 1:
        return np.zeros((len(values), len(values)))
    centred = values - values.mean(axis=1, keepdims=True)
    return centred @ centred.T / (count - 1)
