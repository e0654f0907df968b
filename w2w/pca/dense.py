"""Principal components of a standardised matrix that need not fit in memory in float64.

Three methods with one signature: an eigendecomposition of the smaller Gram matrix, a dense singular
value decomposition, and subspace iteration from a random start (Halko, Martinsson and Tropp,
"Finding structure with randomness", SIAM Review 2011, algorithm 4.4).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np


def moments(
    weights: np.ndarray, std_floor: float = 0.0, chunk: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased standard deviation ``[D]`` in float64.

    The deviation is 0 for constant entries: those up to ``std_floor``, or within the rounding
    error of their mean.

    Raises:
      ValueError: a row of ``weights [N, D]`` is not finite.
    """
    n, d = weights.shape
    mean, std = np.empty(d), np.empty(d)
    for start in range(0, d, chunk):
        block = np.asarray(weights[:, start : start + chunk], np.float64)
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise ValueError(f"weights of model {int(np.flatnonzero(bad)[0])} are not finite")
        mean[start : start + chunk] = block.mean(axis=0)
        std[start : start + chunk] = block.std(axis=0, ddof=1)
    std[std <= constant_below(mean, weights.dtype, std_floor)] = 0
    return mean, std


def constant_below(mean: np.ndarray, dtype: Any, std_floor: float = 0.0) -> np.ndarray:
    """Standard deviation ``[D]`` up to which an entry counts as constant.

    ``std_floor``, or the rounding error of the entry's ``mean`` in ``dtype``.
    """
    return np.maximum(std_floor, 4 * float(ml_dtypes.finfo(dtype).eps) * np.abs(mean))


class Standardised:
    """The standardised matrix ``X [N, D]`` in float64, a block at a time."""

    def __init__(self, weights: np.ndarray, mean: np.ndarray, std: np.ndarray, chunk: int):
        self._weights, self._mean, self._chunk = weights, mean, chunk
        self._inverse = np.divide(1, std, out=np.zeros_like(std), where=std != 0)
        self.shape = weights.shape

    def _block(self, rows: slice, columns: slice) -> np.ndarray:
        block = np.asarray(self._weights[rows, columns], np.float64)
        return (block - self._mean[columns]) * self._inverse[columns]

    def columns(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of columns, each with its place."""
        for start in range(0, self.shape[1], self._chunk):
            where = slice(start, start + self._chunk)
            yield where, self._block(slice(None), where)

    def rows(self) -> Iterator[np.ndarray]:
        """Blocks of rows."""
        for start in range(0, self.shape[0], self._chunk):
            yield self._block(slice(start, start + self._chunk), slice(None))

    def times(self, right: np.ndarray) -> np.ndarray:
        """``X right``, ``[N, l]``."""
        return _total(block @ right[where] for where, block in self.columns())

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """``X^T right``, ``[D, l]``."""
        return np.concatenate([block.T @ right for _, block in self.columns()])

    def dense(self) -> np.ndarray:
        """All of it."""
        return self._block(slice(None), slice(None))


def _total(terms: Iterable[np.ndarray]) -> np.ndarray:
    """Sum of arrays, in place: one accumulator however many terms."""
    terms = iter(terms)
    result = next(terms)
    for term in terms:
        result += term
    return result


def gram(data: Standardised, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values ``[k]`` and right singular vectors ``[k, D]`` by ``X X^T``."""
    del seed
    n, d = data.shape
    if d < n:
        values, vectors = np.linalg.eigh(_total(block.T @ block for block in data.rows()))
        return values[::-1][:k].clip(0), vectors[:, ::-1][:, :k].T.copy()
    values, vectors = np.linalg.eigh(_total(block @ block.T for _, block in data.columns()))
    values, vectors = values[::-1][:k].clip(0), vectors[:, ::-1][:, :k]
    right = data.transposed_times(vectors)
    return values, (right / np.linalg.norm(right, axis=0).clip(1e-300)).T


def svd(data: Standardised, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`gram`, by a dense singular value decomposition."""
    del seed
    _, s, vt = np.linalg.svd(data.dense(), full_matrices=False)
    return s[:k] ** 2, vt[:k]


def randomized(
    data: Standardised, k: int, seed: int, oversampling: int = 16, iterations: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`gram`, by subspace iteration from a random start."""
    n, d = data.shape
    width = min(k + oversampling, n, d)
    basis = data.times(np.random.default_rng(seed).standard_normal((d, width)))
    for _ in range(iterations):
        basis = np.linalg.qr(basis)[0]
        basis = data.times(np.linalg.qr(data.transposed_times(basis))[0])
    right, s, _ = np.linalg.svd(data.transposed_times(np.linalg.qr(basis)[0]), full_matrices=False)
    return s[:k] ** 2, right[:, :k].T.copy()


METHODS = {"gram": gram, "svd": svd, "randomized": randomized}
