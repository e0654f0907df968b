"""Area under the ROC curve for several classes, and averages of scores over the classes.

One-against-one: Hand and Till, "A Simple Generalisation of the Area under the ROC Curve for
Multiple Class Classification Problems", Machine Learning 2001. DeLong's variance does not exist for
these averages, so models are compared by resampling cases, see `bootstrap`.
"""

from typing import NamedTuple

import numpy as np

from medical.statistics.checks import (
    SingleClassError,
    binary_values,
    class_labels,
    finite,
    same_length,
)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area for one pair of classes: P(score of a positive > score of a negative), ties a half.

    Args:
      labels: boolean or 0/1 ``[n]``.
      scores: ``[n]``.

    Raises:
      SingleClassError: only one class.
      ValueError: NaN, other labels, or lengths that differ.
    """
    positive, scores = binary_values(labels), finite(scores, "scores")
    same_length(positive, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        raise SingleClassError(f"{m} positives and {n} negatives: the area is undefined")
    # Mann and Whitney's count; sorted on both sides, which a bootstrap calls for often enough.
    high, low = np.sort(scores[positive]), np.sort(scores[~positive])
    below = np.searchsorted(low, high, "left").sum() + np.searchsorted(low, high, "right").sum()
    return float(below / (2 * m * n))


def multiclass_auc(
    labels: np.ndarray, scores: np.ndarray, scheme: str = "ovo", weighted: bool = True
) -> float:
    """Average area over classes or pairs of classes.

    Args:
      labels: ``[n]`` in ``0 .. classes - 1``; every class must occur.
      scores: probabilities ``[n, classes]``.
      scheme: "ovr" (each class against the rest) or "ovo" (pairs; of each the mean of both
        directions).
      weighted: by prevalence (of the class, or of the pair), else plain means.
    """
    scores = finite(scores, "scores")
    if scores.ndim != 2:
        raise ValueError(f"scores need shape [n, classes], got {scores.shape}")
    labels = class_labels(labels, scores.shape[1])
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels for {len(scores)} rows of scores")
    classes = scores.shape[1]
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise SingleClassError(f"class {int(np.argmin(counts))} does not occur in the sample")
    if scheme == "ovr":
        values = [auc(labels == c, scores[:, c]) for c in range(classes)]
        weights = counts.astype(float)
    elif scheme == "ovo":
        values, pairs = [], []
        for a in range(classes):
            for b in range(a + 1, classes):
                keep = (labels == a) | (labels == b)
                one = auc(labels[keep] == a, scores[keep, a])
                other = auc(labels[keep] == b, scores[keep, b])
                values.append((one + other) / 2)
                pairs.append(float(keep.sum()))
        weights = np.array(pairs)
    else:
        raise ValueError(f"unknown scheme {scheme!r}; known: ovo, ovr")
    return float(np.average(values, weights=weights if weighted else None))


class Averages(NamedTuple):
    """Averages over the classes, weighted by prevalence (as the paper of DeepCOVID-Fuse has them).

    The weighted recall equals the accuracy.
    """

    precision: float
    recall: float
    f1: float


def weighted_averages(labels: np.ndarray, predictions: np.ndarray, classes: int) -> Averages:
    """Precision, recall and F1 of each class, averaged with the classes' prevalence.

    A class that is never predicted has precision 0, and F1 0.

    Args:
      labels: ``[n]`` in ``0 .. classes - 1``.
      predictions: ``[n]`` likewise.
      classes: their number.
    """
    labels, predictions = class_labels(labels, classes), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"{labels.shape} labels and {predictions.shape} predictions")
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, predictions), 1)
    hits, truth, said = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    precision = hits / np.maximum(said, 1)
    recall = hits / np.maximum(truth, 1)
    f1 = 2 * hits / np.maximum(truth + said, 1)
    weights = truth / truth.sum()
    return Averages(*(float(np.sum(weights * each)) for each in (precision, recall, f1)))
