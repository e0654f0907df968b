"""Correction of p values for the number of tests."""

import numpy as np


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p values ``[tests]``, in the given order.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statistics 1979.

    Raises:
      ValueError: a p value outside [0, 1] or NaN.
    """
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values lie in [0, 1] and have shape [tests], got {p}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out
