"""Scores of binary classifiers, their corrected intervals over trials, and scores of maps."""

import math

import numpy as np
import scipy.stats

__all__ = ["METRICS", "auc", "dice", "interval", "overlap_by_chance", "peak_inside", "scores"]

METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc")


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: probability that a positive scores higher, ties count half.

    Args:
      score: `[n]`.
      positive: bool `[n]`.

    Raises:
      ValueError: one class is missing, or a score is NaN.
    """
    score, positive = np.asarray(score, np.float64), np.asarray(positive, bool)
    if not np.isfinite(score).all():
        raise ValueError(f"{(~np.isfinite(score)).sum()} scores are not finite")
    count = int(positive.sum())
    if count in (0, len(positive)):
        raise ValueError(f"AUC needs both classes, got {count} positives of {len(positive)}")
    ranks = scipy.stats.rankdata(score)
    above = ranks[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def scores(score: np.ndarray, label: np.ndarray, threshold: float = 0.0) -> dict[str, float]:
    """All of `METRICS` of scores `[n]` against labels `[n]`; above the threshold is class 1."""
    label, found = np.asarray(label) == 1, np.asarray(score) > threshold
    area = auc(score, label)
    sensitivity = float(found[label].mean())
    specificity = float((~found[~label]).mean())
    return {
        "accuracy": float((found == label).mean()),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auc": area,
    }


def interval(
    values: np.ndarray, test_share: float, level: float = 0.95
) -> tuple[float, float | None]:
    """Mean over overlapping trials and half-width of its corrected interval.

    Nadeau and Bengio (2003): the variance of the mean of J resampled trials is
    (1 / J + n_test / n_train) s^2, because their training sets overlap.

    Args:
      values: `[trials]`.
      test_share: n_test / n_train.
      level: of confidence.

    Returns:
      (mean, half-width); the half-width is None for one trial, which says nothing about spread.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), None
    spread = math.sqrt((1 / len(values) + test_share) * values.var(ddof=1))
    return float(values.mean()), float(scipy.stats.t.ppf((1 + level) / 2, len(values) - 1) * spread)


def dice(score: np.ndarray, truth: np.ndarray) -> float:
    """Dice overlap of the truth with as many of the highest-scored vertices, `[vertices]` each.

    Vertices without any score (0 or less) are never chosen.
    """
    truth = np.asarray(truth, bool)
    count = int(truth.sum())
    order = np.argsort(-np.asarray(score), kind="stable")[:count]
    chosen = order[np.asarray(score)[order] > 0]
    return float(2 * truth[chosen].sum() / (len(chosen) + count)) if count else 0.0


def overlap_by_chance(truth: np.ndarray) -> float:
    """Expected Dice of a random map: the share of vertices in the truth."""
    return float(np.mean(truth))


def peak_inside(score: np.ndarray, truth: np.ndarray) -> bool:
    """The pointing game: whether the highest score is inside."""
    return bool(np.asarray(truth)[int(np.argmax(score))] and np.max(score) > 0)
