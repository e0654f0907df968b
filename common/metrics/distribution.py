"""Distances between two sets of feature vectors: Frechet, kernel, and nearest-neighbour statistics.

All are computed on the host in float64 from features of any encoder; name the encoder with the
number. Sets are `[count, features]`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = [
    "Estimate", "Moments", "density_coverage", "frechet_distance", "frechet_from_features", "kid",
    "moments", "precision_recall",
]

_ROWS = 1024  # rows of a distance matrix that are in memory at once


class Moments(NamedTuple):
    """Mean `[features]`, covariance `[features, features]` (divisor samples - 1) of a set."""

    mean: np.ndarray
    covariance: np.ndarray
    samples: int


class Estimate(NamedTuple):
    """An estimate and the standard deviation of its replicates (0 for a single one)."""

    value: float
    deviation: float


def moments(features: np.ndarray) -> Moments:
    """Returns mean and covariance of `[count, features]`.

    Raises:
        ValueError: not two axes, fewer than 2 rows or values that are not finite.
    """
    x = _check("features", features, 2)
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians.

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2))`: D. Dowson and B. Landau, J.
    Multivariate Analysis 1982; on Inception features it is the FID of M. Heusel et al., NeurIPS
    2017. Symmetric eigendecompositions are used, so singular covariances (fewer vectors than
    features) are fine.

    Raises:
        ValueError: the numbers of features differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"the sets have {first.mean.size} and {second.mean.size} features")
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second.covariance @ root)
    overlap = np.sqrt(np.clip(product, 0, None)).sum()
    difference = first.mean - second.mean
    trace = np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    # The exact value is not negative; rounding may make it so for equal sets.
    return float(max(difference @ difference + trace, 0.0))


def frechet_from_features(first: np.ndarray, second: np.ndarray) -> float:
    """Returns `frechet_distance` of the moments of two sets. Biased upwards for small sets."""
    return frechet_distance(moments(first), moments(second))


def kid(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, subset_size: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Kernel distance: unbiased estimate of the squared maximum mean discrepancy.

    M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018: kernel `(x.y / d + 1)^3`, estimated on
    random subsets without replacement and averaged. May be negative, its expectation is 0 for equal
    distributions.

    Args:
        first: `[count, features]`.
        second: `[count, features]`.
        subsets: number of subsets; ignored without `subset_size`.
        subset_size: vectors from each set in one subset (the paper: 1000). None: one estimate from
            all vectors.
        seed: of the choice of subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: wrong shapes, or a subset larger than a set or smaller than 2.
    """
    x, y = _check("first", first, 2), _check("second", second, 2)
    _same_features(x, y)
    if subset_size is None:
        return Estimate(_squared_mmd(x, y), 0.0)
    if not 2 <= subset_size <= min(len(x), len(y)) or subsets < 1:
        raise ValueError(f"cannot draw {subsets} subsets of {subset_size} from sets of {len(x)} "
                         f"and {len(y)} vectors")
    random = np.random.default_rng(seed)
    values = [
        _squared_mmd(x[random.choice(len(x), subset_size, replace=False)],
                     y[random.choice(len(y), subset_size, replace=False)])
        for _ in range(subsets)
    ]
    return Estimate(float(np.mean(values)), float(np.std(values)))


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall.

    T. Kynkaanniemi et al., NeurIPS 2019: precision is the fraction of `fake` that lies within the
    distance of some real vector to its k-th nearest real neighbour, recall the same with the sets
    exchanged.

    Raises:
        ValueError: wrong shapes or a set with fewer than k + 1 vectors.
    """
    x, y = _check("real", real, k + 1), _check("fake", fake, k + 1)
    _same_features(x, y)
    return _covered(y, x, _radii(x, k)), _covered(x, y, _radii(y, k))


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage.

    M. Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020:
    density is the mean number of real k-neighbourhoods that a fake vector lies in, divided by k
    (about 1 for equal distributions, can exceed it); coverage the fraction of real k-neighbourhoods
    with a fake vector.

    Raises:
        ValueError: wrong shapes, fewer than k + 1 real vectors or no fake one.
    """
    x, y = _check("real", real, k + 1), _check("fake", fake, 1)
    _same_features(x, y)
    radii = _radii(x, k)
    inside, nearest = 0, np.full(len(x), np.inf)
    for _, distances in _distances(y, x):
        inside += int(np.count_nonzero(distances <= radii))
        nearest = np.minimum(nearest, distances.min(axis=0))
    return inside / (k * len(y)), float(np.mean(nearest <= radii))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    n, m = len(x), len(y)
    within_x, within_y = kernel(x, x), kernel(y, y)
    first = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    second = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(first + second - 2 * kernel(x, y).mean())


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Returns the squared distance of each vector to its k-th nearest other vector."""
    radii = np.empty(len(x))
    for rows, distances in _distances(x, x):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf  # itself
        radii[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _covered(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
    """Returns the fraction of `points` within `radii` (squared) of at least one centre."""
    count = sum(int(np.count_nonzero((distances <= radii).any(axis=1)))
                for _, distances in _distances(points, centres))
    return count / len(points)


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of rows of the matrix of squared distances `[len(x), len(y)]`.

    Both sets are centred first, which keeps `|a|^2 - 2 a.b + |b|^2` from cancelling.
    """
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    norms = np.einsum("if,if->i", y, y)
    for start in range(0, len(x), _ROWS):
        block = x[start:start + _ROWS]
        squares = np.einsum("if,if->i", block, block)[:, None] + norms - 2 * block @ y.T
        yield slice(start, start + len(block)), np.maximum(squares, 0)


def _check(name: str, features: np.ndarray, least: int) -> np.ndarray:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < least:
        raise ValueError(
            f"{name}: expected at least {least} vectors [count, features], found shape {x.shape}")
    bad = int((~np.isfinite(x)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(x)} vectors are not finite")
    return x


def _same_features(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the sets have {x.shape[1]} and {y.shape[1]} features")
