"""Alarms of a classifier that has learned nothing but the commonest class."""

from typing import NamedTuple

import numpy as np


class Collapse(NamedTuple):
    """How close predictions are to one class.

    Attributes:
      collapsed: whether one class takes more than `limit` of the predictions.
      share: of the commonest predicted class.
      predicted: that class.
      majority_accuracy: accuracy of always answering the commonest true class.
      accuracy: of the predictions.
    """

    collapsed: bool
    share: float
    predicted: int
    majority_accuracy: float
    accuracy: float


def collapse(labels: np.ndarray, predictions: np.ndarray, limit: float = 0.95) -> Collapse:
    """Whether a model answers the same for nearly everyone.

    The clinical-only model published with DeepCOVID-Fuse is such a case: its accuracy equals the
    share of the commonest class of the test set, 193 of 439.

    Args:
      labels: ``[n]`` classes.
      predictions: ``[n]`` predicted classes.
      limit: share of one class above which the alarm is raised.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or not len(labels):
        raise ValueError(f"{labels.shape} labels and {predictions.shape} predictions")
    values, counts = np.unique(predictions, return_counts=True)
    share = float(counts.max() / len(predictions))
    majority = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    return Collapse(share > limit, share, int(values[counts.argmax()]), majority,
                    float(np.mean(labels == predictions)))
