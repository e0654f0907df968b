"""McNemar's test that two classifiers are right equally often on the same cases."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from medical.statistics.checks import same_length


class McNemar(NamedTuple):
    """Result of McNemar's test.

    Attributes:
      only_first: cases that only the first classifier got right.
      only_second: cases that only the second got right.
      statistic: smaller of the two counts (exact) or chi-squared with one degree of freedom.
      p: two-sided; 1 where the classifiers never differ.
    """

    only_first: int
    only_second: int
    statistic: float
    p: float


def from_counts(only_first: int, only_second: int, method: str = "exact") -> McNemar:
    """The test from the two discordant counts.

    Args:
      only_first: cases that only the first classifier got right.
      only_second: cases that only the second got right.
      method: "exact" (binomial), "corrected" (chi-squared with Edwards' continuity correction) or
        "asymptotic" (chi-squared without it).
    """
    b, c = int(only_first), int(only_second)
    if min(b, c) < 0:
        raise ValueError(f"counts must not be negative, got {b} and {c}")
    if method not in ("exact", "corrected", "asymptotic"):
        raise ValueError(f"unknown method {method!r}; known: exact, corrected, asymptotic")
    if b + c == 0:
        return McNemar(b, c, 0.0, 1.0)
    if method == "exact":
        p = min(1.0, 2 * float(stats.binom.cdf(min(b, c), b + c, 0.5)))
        return McNemar(b, c, float(min(b, c)), p)
    shift = 1.0 if method == "corrected" else 0.0
    statistic = (abs(b - c) - shift) ** 2 / (b + c)
    return McNemar(b, c, statistic, float(stats.chi2.sf(statistic, 1)))


def compare(right_first: np.ndarray, right_second: np.ndarray, method: str = "exact") -> McNemar:
    """The test from two boolean arrays ``[n]`` that say which cases each classifier got right.

    For accuracy give all cases; for sensitivity only the positive ones, for specificity only the
    negative ones.
    """
    first, second = np.asarray(right_first), np.asarray(right_second)
    if first.dtype != bool or second.dtype != bool:
        raise ValueError(f"need boolean arrays, got {first.dtype} and {second.dtype}")
    same_length(first, second)
    return from_counts(int((first & ~second).sum()), int((~first & second).sum()), method)
