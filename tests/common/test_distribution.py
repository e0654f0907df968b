"""Tests of the distances between feature sets against closed forms and brute force."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from common.metrics.distribution import (
    Moments,
    density_coverage,
    frechet_distance,
    frechet_from_features,
    kid,
    moments,
    precision_recall,
)


def normal(count, features=6, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, features)) + shift


def random_moments(seed, features=5):
    root = normal(features, features, seed)
    return Moments(normal(1, features, seed + 9)[0], root @ root.T, 100)


def test_moments_equal_numpy():
    x = normal(50).astype(np.float32) + 1000
    result = moments(x)
    np.testing.assert_allclose(result.mean, x.astype(np.float64).mean(0))
    np.testing.assert_allclose(result.covariance, np.cov(x.astype(np.float64).T), atol=1e-9)
    assert result.samples == 50


def test_frechet_of_gaussians_with_diagonal_covariance():
    a, b = np.asarray([1.0, 4.0, 9.0]), np.asarray([4.0, 1.0, 0.0])
    first = Moments(np.zeros(3), np.diag(a), 10)
    second = Moments(np.asarray([1.0, 2.0, 2.0]), np.diag(b), 10)
    expected = 9 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    np.testing.assert_allclose(frechet_distance(first, second), expected)


def test_frechet_equals_matrix_square_root_and_is_symmetric():
    first, second = random_moments(0), random_moments(1)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    difference = first.mean - second.mean
    expected = difference @ difference + np.trace(
        first.covariance + second.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(first, second), expected, rtol=1e-8)
    np.testing.assert_allclose(frechet_distance(second, first), expected, rtol=1e-8)


def test_frechet_of_equal_and_of_singular_sets():
    x = normal(4, 20)  # fewer vectors than features
    assert frechet_from_features(x, x) < 1e-6
    np.testing.assert_allclose(frechet_from_features(x, x + 2), 20 * 4, rtol=1e-6)
    with pytest.raises(ValueError, match="have 20 and 6 features"):
        frechet_from_features(x, normal(4))


def test_kid_equals_the_sum_over_pairs():
    x, y = normal(7), normal(5, seed=1, shift=0.3)

    def kernel(a, b):
        return (a @ b / 6 + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(kid(x, y).value, within_x + within_y - 2 * between)


def test_kid_is_unbiased_and_sees_a_shift():
    values = np.asarray([kid(normal(40, seed=2 * i), normal(60, seed=2 * i + 1)).value
                         for i in range(300)])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert (values < 0).any()  # a biased estimate would never be negative
    shifted = kid(normal(400), normal(400, seed=1, shift=0.5), subsets=20, subset_size=100)
    assert shifted.value > 3 * shifted.deviation > 0
    assert kid(normal(400), normal(400, seed=1), 20, 100, seed=3) == kid(
        normal(400), normal(400, seed=1), 20, 100, seed=3)


def brute_force(real, fake, k):
    """Precision, recall, density and coverage from full distance matrices."""
    def radius(x):
        return np.sort(cdist(x, x), axis=1)[:, k]

    between = cdist(real, fake)
    inside_real = between <= radius(real)[:, None]
    inside_fake = between <= radius(fake)[None]
    return (inside_real.any(0).mean(), inside_fake.any(1).mean(),
            inside_real.sum() / (k * len(fake)), inside_real.any(1).mean())


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_statistics_equal_brute_force(k):
    # More rows than one block of the distance matrix; far from the origin.
    real, fake = normal(1100, 3) + 1e7, normal(1050, 3, 1, 0.4) * 0.9 + 1e7
    precision, recall, density, coverage = brute_force(real, fake, k)
    np.testing.assert_allclose(precision_recall(real, fake, k), (precision, recall))
    np.testing.assert_allclose(density_coverage(real, fake, k), (density, coverage))
    assert 0.1 < recall < 1 and 0.1 < coverage < 1


def test_neighbour_statistics_at_the_extremes():
    x = normal(100)
    assert precision_recall(x, x) == (1, 1)
    assert density_coverage(x, x)[1] == 1
    assert precision_recall(x, x + 100) == (0, 0)
    assert density_coverage(x, x + 100) == (0, 0)
    # Half of the fakes far away: precision one half, all of the real set still covered.
    mixed = np.concatenate([x, x + 100])
    assert precision_recall(x, mixed)[0] == 0.5
    assert density_coverage(x, mixed)[1] == 1
    # All fakes in one real spot: precise, no diversity.
    collapsed = np.repeat(x[:1], 100, axis=0) + 1e-6 * normal(100, seed=2)
    precision, recall = precision_recall(x, collapsed)
    assert precision == 1 and recall <= 0.01
    assert density_coverage(x, collapsed)[1] < 0.2


def test_density_and_coverage_of_one_distribution():
    density, coverage = density_coverage(normal(800), normal(800, seed=1), k=5)
    assert abs(density - 1) < 0.1
    # Expected coverage of equal sets: 1 - prod_{i=1..k} (n - i) / (2n - i), about 1 - 2^-k.
    assert abs(coverage - (1 - 2**-5)) < 0.02


def test_bad_sets_are_refused():
    x = normal(10)
    with pytest.raises(ValueError, match="real: expected at least 4 vectors"):
        precision_recall(x[:3], x)
    bad = x.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="first: 1 of 10 vectors are not finite"):
        kid(bad, x)
    with pytest.raises(ValueError, match="subsets of 11"):
        kid(x, x, subset_size=11)
    with pytest.raises(ValueError, match="6 and 3 features"):
        density_coverage(x, normal(10, 3))
