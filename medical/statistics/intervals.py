"""Confidence intervals of accuracy, precision, recall and F1 from the counts of a confusion matrix.

Each is a proportion of independent cases given its denominator, so Wilson's score interval applies
(Wilson, JASA 1927; recommended by Brown, Cai and DasGupta, Statistical Science 2001). F1 is not a
proportion, but ``F1 = 2 J / (1 + J)`` with the Jaccard index ``J = TP / (TP + FP + FN)``, which is
one given the cases that are positive in truth or in prediction (Hand, Christen and Kirielle,
"F*: an interpretable transformation of the F-measure", Machine Learning 2021); its interval is
transformed.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A value with its confidence interval; all three NaN where the denominator is 0."""

    value: float
    low: float
    high: float


class Scores(NamedTuple):
    """Scores of a binary classifier at one threshold."""

    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    specificity: Estimate
    f1: Estimate


def proportion(count: int, total: int, level: float = 0.95, method: str = "wilson") -> Estimate:
    """Interval of a proportion.

    Args:
      count: successes.
      total: trials.
      level: of the interval.
      method: "wilson" or "clopper-pearson" (exact, conservative).
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} of {total} is no proportion")
    if total == 0:
        return Estimate(np.nan, np.nan, np.nan)
    p = count / total
    if method == "wilson":
        z = float(stats.norm.ppf(0.5 + level / 2))
        centre = (p + z * z / (2 * total)) / (1 + z * z / total)
        half = z / (1 + z * z / total) * (p * (1 - p) / total + z * z / (4 * total**2)) ** 0.5
        # At the ends the formula gives 0 and 1 up to rounding.
        low = 0.0 if count == 0 else centre - half
        high = 1.0 if count == total else centre + half
    elif method == "clopper-pearson":
        tail = (1 - level) / 2
        low = 0.0 if count == 0 else float(stats.beta.ppf(tail, count, total - count + 1))
        high = 1.0 if count == total else float(stats.beta.isf(tail, count + 1, total - count))
    else:
        raise ValueError(f"unknown method {method!r}; known: wilson, clopper-pearson")
    return Estimate(p, float(low), float(high))


def scores(
    labels: np.ndarray, predictions: np.ndarray, level: float = 0.95, method: str = "wilson"
) -> Scores:
    """All scores with their intervals.

    Args:
      labels: 0 or 1, ``[n]``.
      predictions: 0 or 1, ``[n]``.
      level: of the intervals.
      method: see `proportion`.
    """
    truth, said = np.asarray(labels), np.asarray(predictions)
    if truth.shape != said.shape or truth.ndim != 1:
        raise ValueError(f"need two arrays [n], got {truth.shape} and {said.shape}")
    for name, array in (("labels", truth), ("predictions", said)):
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"{name} are 0 and 1, found other values")
    truth, said = truth == 1, said == 1
    tp, fp = int((truth & said).sum()), int((~truth & said).sum())
    fn, tn = int((truth & ~said).sum()), int((~truth & ~said).sum())
    jaccard = proportion(tp, tp + fp + fn, level, method)
    return Scores(
        accuracy=proportion(tp + tn, len(truth), level, method),
        precision=proportion(tp, tp + fp, level, method),
        recall=proportion(tp, tp + fn, level, method),
        specificity=proportion(tn, tn + fp, level, method),
        f1=Estimate(*(2 * j / (1 + j) for j in jaccard)),
    )
