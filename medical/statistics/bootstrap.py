"""Percentile bootstrap of any statistic of labels and scores, of one model or of two.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3. Cases are drawn, or
whole groups of them (all images of a patient); two models see the same draws.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from medical.statistics.checks import SingleClassError

Statistic = Callable[[np.ndarray, np.ndarray], float]


class Interval(NamedTuple):
    """A statistic with its interval.

    Attributes:
      estimate: on all cases.
      low: lower end of the interval.
      high: upper end.
      dropped: resamples in which the statistic was undefined (a class was missing).
    """

    estimate: float
    low: float
    high: float
    dropped: int


class Difference(NamedTuple):
    """Paired difference of a statistic between two models.

    Attributes:
      estimate: first minus second on all cases.
      low: lower end of the interval.
      high: upper end.
      p: two-sided, from the share of resamples on the other side of 0 (at least 1 / resamples).
      dropped: resamples in which the statistic was undefined (a class was missing).
    """

    estimate: float
    low: float
    high: float
    p: float
    dropped: int


def interval(
    statistic: Statistic,
    labels: np.ndarray,
    scores: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> Interval:
    """Percentile interval of ``statistic(labels, scores)``.

    Args:
      statistic: of labels ``[n]`` and scores ``[n, ...]``; may raise SingleClassError.
      labels: ``[n]``.
      scores: ``[n, ...]``.
      rng: source of the resamples.
      resamples: number of them.
      level: of the interval.
      groups: ``[n]``, for example patients; whole groups are resampled. None: single cases.

    Raises:
      SingleClassError: the statistic is undefined on all cases, or on more than a tenth of the
        resamples.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels, {len(scores)} scores")
    estimate = statistic(labels, scores)
    values, dropped = _values(lambda rows: statistic(labels[rows], scores[rows]), len(labels), rng,
                              resamples, groups)
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(estimate), float(low), float(high), dropped)


def paired(
    statistic: Statistic,
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> Difference:
    """Percentile interval of ``statistic(labels, first) - statistic(labels, second)``.

    Both models see the same resample of cases, so their correlation is kept.

    Args:
      first: scores of one model, ``[n, ...]``; `second` likewise. The rest is as for `interval`,
        which says what is raised.
    """
    labels, first, second = np.asarray(labels), np.asarray(first), np.asarray(second)
    if not len(labels) == len(first) == len(second):
        raise ValueError(f"{len(labels)} labels, {len(first)} and {len(second)} scores")
    estimate = statistic(labels, first) - statistic(labels, second)
    values, dropped = _values(
        lambda rows: statistic(labels[rows], first[rows]) - statistic(labels[rows], second[rows]),
        len(labels), rng, resamples, groups)
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    beyond = min(np.mean(np.less_equal(values, 0)), np.mean(np.greater_equal(values, 0)))
    p = min(1.0, max(2 * float(beyond), 1 / resamples))
    return Difference(float(estimate), float(low), float(high), p, dropped)


def _values(
    of_rows: Callable[[np.ndarray], float], count: int, rng: np.random.Generator, resamples: int,
    groups: np.ndarray | None,
) -> tuple[list[float], int]:
    """Values on the resamples where they are defined, and how many others there are."""
    names = np.arange(count) if groups is None else np.asarray(groups)
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    values, dropped = [], 0
    for _ in range(resamples):
        chosen = rng.integers(len(members), size=len(members))
        rows = chosen if groups is None else np.concatenate([members[i] for i in chosen])
        try:
            values.append(of_rows(rows))
        except SingleClassError:
            dropped += 1
    if dropped > resamples / 10:
        raise SingleClassError(f"a class is missing in {dropped} of {resamples} resamples")
    return values, dropped
