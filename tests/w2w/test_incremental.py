"""Adding models to a space: exact at full rank, close otherwise."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2w import subspace
from w2w.pca import incremental


def population(n, d, rank, noise, seed=0):
    """Models with ``rank`` factors, unequal offsets and scales, the same for every seed."""
    structure = np.random.default_rng(99)
    factors = structure.normal(size=(rank, d)) * np.geomspace(6, 2, rank)[:, None]
    offset, scale = 3 * structure.normal(size=d), np.exp(structure.normal(size=d))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ factors + noise * rng.normal(size=(n, d))
    return (offset + scale * x).astype(np.float32)


def largest_angle(first, second):
    """Largest principal angle (rad) between two row spaces, by its sine."""
    first, second = (np.linalg.qr(np.asarray(x, np.float64).T)[0] for x in (first, second))
    return np.arcsin(np.linalg.norm(second - first @ (first.T @ second), 2).clip(0, 1))


def assert_moments(space, weights):
    """Mean and deviation of all models are exact however much of the space was kept."""
    std = weights.std(axis=0, ddof=1, dtype=np.float64)
    assert space.n == len(weights)
    assert (np.abs(space.mean - weights.mean(axis=0, dtype=np.float64)) <= 1e-6 * std + 1e-6).all()
    np.testing.assert_allclose(space.std, std, rtol=2e-6)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 30), m=st.integers(1, 30), d=st.sampled_from([10, 25, 60]),
       batch=st.integers(1, 40), seed=st.integers(0, 99))  # fmt: skip
@example(n=5, m=20, d=25, batch=20, seed=1)  # its last direction has a millionth of the first's
def test_equals_the_batch_fit_at_full_rank(n, m, d, batch, seed):
    """Mean, deviation, variances and subspaces, though new models shift mean and units."""
    old = population(n, d, 4, 2.0, seed)
    new = population(m, d, 4, 2.0, seed + 100) * 1.5 + 2
    both = np.concatenate([old, new])
    limit = min(n + m - 1, d)
    reference = subspace.fit(both, limit)
    updated = incremental.update(subspace.fit(old), new, limit, batch=batch)
    assert_moments(updated, both)
    np.testing.assert_allclose(updated.variances, reference.variances, rtol=2e-4, atol=1e-4)
    v = np.asarray(updated.components, np.float64)
    np.testing.assert_allclose(v @ v.T, np.eye(limit), atol=1e-5)
    assert (v[np.arange(limit), np.abs(v).argmax(1)] > 0).all()
    standard = (both - np.asarray(updated.mean)) / np.asarray(updated.std)
    assert np.abs(standard @ v.T @ v - standard).max() < 2e-4


def test_components_equal_those_of_the_batch_fit():
    both = population(80, 300, 5, 0.3)
    reference = subspace.fit(both, 5)
    updated = incremental.update(subspace.fit(both[:50]), both[50:], 5, batch=7)
    np.testing.assert_allclose(updated.components, reference.components, atol=1e-5)
    np.testing.assert_allclose(updated.variances, reference.variances, rtol=1e-5)
    assert_moments(updated, both)


def test_a_truncated_space_stays_close():
    """The angle is small, much smaller than without the update; what is lost shows in variances."""
    both = population(400, 500, 5, 0.5)
    reference = subspace.fit(both, 5)
    start = subspace.fit(both[:60], 5)
    updated = start
    for i in range(60, 400, 34):
        updated = incremental.update(updated, both[i : i + 34], batch=34)
    assert_moments(updated, both)
    before = largest_angle(start.components, reference.components)
    after = largest_angle(updated.components, reference.components)
    assert after < 0.015 and after < before / 4, (before, after)
    variances, exact = np.asarray(updated.variances), np.asarray(reference.variances)
    assert (variances <= exact * (1 + 1e-5)).all() and (variances >= 0.99 * exact).all()
    # Components beyond k, kept for the price of memory, make it closer.
    wider = subspace.fit(both[:60], 40)
    for i in range(60, 400, 34):
        wider = incremental.update(wider, both[i : i + 34], batch=34)
    assert largest_angle(wider.components[:5], reference.components) < after / 2


def test_entries_that_start_or_do_not_vary():
    both = population(60, 100, 4, 1.0)
    both[:, 10] = 0.1
    both[:40, 20] = 3.0
    updated = incremental.update(subspace.fit(both[:40]), both[40:], 59)
    reference = subspace.fit(both)
    assert float(updated.std[10]) == 0 and not np.asarray(updated.components)[:, 10].any()
    np.testing.assert_allclose(updated.std, reference.std, rtol=2e-6)
    np.testing.assert_allclose(updated.variances, reference.variances, rtol=1e-4, atol=1e-4)
    one = incremental.update(updated, both[:1])  # a single model
    assert one.n == 61 and one.k == 59


@pytest.mark.parametrize(("d", "limit"), [(60, 39), (25, 22)])
def test_all_components(d, limit):
    """Zero stands for all that there are, limited by models or by entries that vary."""
    both = population(40, d, 4, 2.0)
    both[:, :3] = 0.1
    old = subspace.fit(both[:30])
    updated = incremental.update(old, both[30:], 0, batch=4)
    known = incremental.update(old, both[30:], limit, batch=4)
    np.testing.assert_array_equal(updated.variances, known.variances)
    np.testing.assert_array_equal(updated.components, known.components)
    assert updated.k == limit
    few = incremental.update(subspace.truncate(old, 5), both[30:], 0, batch=4)
    assert few.k == 15


def test_bad_input():
    weights = population(20, 30, 4, 1.0)
    space = subspace.fit(weights[:10], 4)
    with pytest.raises(ValueError, match="models have 29 entries, the space has 30"):
        incremental.update(space, weights[:, :29])
    with pytest.raises(ValueError, match="negative deviations"):
        incremental.update(space.replace(std=-space.std), weights)
    with pytest.raises(ValueError, match="k = 20 .* span only"):
        incremental.update(space, weights[10:], 20)
    weights[17, 2] = np.nan
    with pytest.raises(ValueError, match="weights of model 17 are not finite"):
        incremental.update(space, weights, batch=5)
