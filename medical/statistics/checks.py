"""Checks that every function of labels and scores makes before it computes anything."""

import numpy as np


class SingleClassError(ValueError):
    """A statistic that contrasts classes was asked of a sample with one class only."""


def binary_values(labels: np.ndarray) -> np.ndarray:
    """Labels as booleans ``[n]``; one class may be absent.

    Raises:
      ValueError: not one-dimensional, NaN, or values other than 0 and 1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels need shape [n], got {labels.shape}")
    if labels.dtype == bool:
        return labels
    values = finite(labels, "labels")
    others = np.setdiff1d(values, (0, 1))
    if others.size:
        raise ValueError(f"binary labels are 0 and 1, found {others[0]:g}")
    return values == 1


def binary_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as booleans ``[n]``, for statistics that contrast the two classes.

    Raises:
      ValueError: not one-dimensional, NaN, or values other than 0 and 1.
      SingleClassError: only one of the two classes occurs.
    """
    positive = binary_values(labels)
    count = int(positive.sum())
    if count in (0, len(positive)):
        raise SingleClassError(
            f"undefined with one class (an area under the ROC curve, a recalibration): {count} "
            f"positives among {len(positive)}"
        )
    return positive


def class_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as int64 ``[n]`` in ``0 .. classes - 1``.

    Raises:
      ValueError: NaN, fractions, or values outside the range.
      SingleClassError: fewer than two classes occur.
    """
    values = finite(labels, "labels")
    whole = values.astype(np.int64)
    if values.ndim != 1 or not np.array_equal(whole, values):
        raise ValueError(f"class labels are whole numbers of shape [n], got shape {values.shape}")
    if whole.size and (whole.min() < 0 or whole.max() >= classes):
        raise ValueError(
            f"class labels lie in 0 .. {classes - 1}, found {whole.min()} .. {whole.max()}"
        )
    if len(np.unique(whole)) < 2:
        raise SingleClassError(f"all {len(whole)} labels are equal")
    return whole


def finite(values: np.ndarray, name: str) -> np.ndarray:
    """Values as float64.

    Raises:
      ValueError: a NaN or infinity, with its place.
    """
    array = np.asarray(values, np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = ", ".join(str(i) for i in bad[0])
        raise ValueError(f"{name}[{place}] is {array[tuple(bad[0])]} ({len(bad)} not finite)")
    return array


def same_length(*arrays: np.ndarray) -> int:
    """The common length of the last axes.

    Raises:
      ValueError: lengths differ.
    """
    lengths = {array.shape[-1] for array in arrays}
    if len(lengths) != 1:
        raise ValueError(f"samples of different lengths: {sorted(lengths)}")
    return lengths.pop()
