"""Attribute directions: least squares, planted attributes, debiasing, calibrated edits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w import directions


def population(n, k=40, seed=0):
    """Coefficients ``[n, k]`` with a falling spectrum."""
    return np.random.default_rng(seed).normal(size=(n, k)) * np.linspace(3, 0.3, k)


def test_least_squares_equals_numpy():
    p = population(500)
    y = np.sign(p @ np.random.default_rng(1).normal(size=(40, 3)))
    got = directions.least_squares(p, y)
    assert got.shape == (3, 40)
    np.testing.assert_allclose(got, np.linalg.lstsq(p, y, rcond=None)[0].T, atol=1e-12)
    np.testing.assert_allclose(got[1], np.linalg.pinv(p) @ y[:, 1], atol=1e-10)
    np.testing.assert_array_equal(directions.least_squares(p, y[:, 2]), got[2])
    single = directions.least_squares(p.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(single, got, atol=1e-5)
    # Fewer models than components: the solution of least norm.
    few = directions.least_squares(p[:20], y[:20, 0])
    np.testing.assert_allclose(few, np.linalg.pinv(p[:20]) @ y[:20, 0], atol=1e-10)


def test_ridge_and_intercept_in_closed_form():
    p = population(300)
    y = np.where(p[:, 0] > 4, 1.0, -1.0)
    ridge = directions.least_squares(p, y, ridge=50.0)
    wanted = np.linalg.solve(p.T @ p + 50 * np.eye(40), p.T @ y)
    np.testing.assert_allclose(ridge, wanted, atol=1e-12)
    design = np.concatenate([p + 2, np.ones((300, 1))], axis=1)
    wanted = np.linalg.lstsq(design, y, rcond=None)[0][:-1]
    got = directions.least_squares(p + 2, y, intercept=True)
    np.testing.assert_allclose(got, wanted, atol=1e-10)
    assert np.abs(directions.least_squares(p + 2, y) - wanted).max() > 1e-3
    centred = np.concatenate([p, np.sqrt(50) * np.eye(40)])
    centred[:300] -= p.mean(0)
    wanted = np.linalg.lstsq(centred, np.concatenate([y - y.mean(), np.zeros(40)]), rcond=None)[0]
    got = directions.least_squares(p, y, ridge=50.0, intercept=True)
    np.testing.assert_allclose(got, wanted, atol=1e-10)


def test_planted_attribute_is_found():
    """Cosine to the direction that made noisy binary labels grows with the number of models."""
    k = 50
    truth = np.random.default_rng(2).normal(size=k)
    truth /= np.linalg.norm(truth)
    rng = np.random.default_rng(3)
    # Latent attribute + noise, thresholded: the least-squares direction of a Gaussian population
    # is proportional to the true one (Brillinger, 1982).
    p = rng.normal(size=(20_000, k))
    y = np.sign(p @ truth + rng.normal(size=20_000))
    cosines = []
    for n in (200, 2_000, 20_000):
        d = directions.least_squares(p[:n], y[:n])
        cosines.append(d @ truth / np.linalg.norm(d))
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] >= 0.95 and cosines[0] < 0.95


def test_entanglement_falls_with_the_number_of_models():
    """Directions of independent attributes: mean |cosine| falls like ``1/sqrt(N)``.

    Labels are independent of each other and of orthogonal latent axes; what remains is estimation
    error.
    """
    k, attributes, rng = 60, 6, np.random.default_rng(4)
    p = rng.normal(size=(25_600, k))
    y = np.sign(p[:, :attributes] + rng.normal(size=(25_600, attributes)))
    values = []
    for n in (400, 6_400, 25_600):
        parts = [slice(i * n, (i + 1) * n) for i in range(min(8, 25_600 // n))]
        fits = [directions.least_squares(p[part], y[part]) for part in parts]
        values.append(np.mean([directions.entanglement(d) for d in fits]))
    assert values[0] > values[1] > values[2]
    assert 3 < values[0] / values[1] < 5.3  # expected: 4 for 16 times as many models
    exact = directions.cosine_matrix(np.diag([2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(exact, np.eye(3))
    assert directions.entanglement([[1, 0], [1, 1], [0, -1]]) == pytest.approx(2**0.5 / 3)


def test_debiasing():
    """The joint form is orthogonal to all; the sequential one to the last, and order matters."""
    rng = np.random.default_rng(5)
    shared = rng.normal(size=30)
    others = rng.normal(size=(5, 30)) + 0.7 * shared
    d = rng.normal(size=30) + shared
    unit = others / np.linalg.norm(others, axis=1, keepdims=True)
    scale = np.linalg.norm(d)

    joint = directions.debias_joint(d, others)
    assert np.abs(unit @ joint).max() <= 1e-12 * scale
    wanted = d - others.T @ np.linalg.lstsq(others.T, d, rcond=None)[0]
    np.testing.assert_allclose(joint, wanted, atol=1e-12)
    np.testing.assert_allclose(joint, directions.debias_joint(d, others[::-1]), atol=1e-12)
    doubled = np.concatenate([others, 3 * others])
    np.testing.assert_allclose(joint, directions.debias_joint(d, doubled), atol=1e-12)
    stored = directions.calibrate(joint, rng.normal(size=(100, 30)))
    assert np.abs(unit @ np.asarray(stored.unit)).max() <= 1e-6

    sequential = directions.debias_sequential(d, others)
    backwards = directions.debias_sequential(d, others[::-1])
    assert np.abs(unit[-1] @ sequential) <= 1e-12 * scale
    assert np.abs(unit[0] @ sequential) > 0.01 * scale
    assert np.abs(sequential - backwards).max() > 0.01 * scale
    # With a single attribute, or orthogonal ones, the two forms are the same.
    for e in (others[0], np.linalg.qr(others.T)[0].T):
        np.testing.assert_allclose(
            directions.debias_sequential(d, e), directions.debias_joint(d, e), atol=1e-12
        )
    with pytest.raises(ValueError, match="in the span of the 5"):
        directions.debias_joint(others.sum(axis=0), others)


@pytest.fixture(scope="module")
def calibrated():
    p = population(400)
    y = np.sign(p @ np.random.default_rng(1).normal(size=(40, 3)))
    raw = directions.least_squares(p, y)
    return p, raw, [directions.calibrate(vector, p) for vector in raw]


def test_strength_is_the_largest_training_projection(calibrated):
    p, raw, each = calibrated
    for vector, direction in zip(raw, each, strict=True):
        np.testing.assert_allclose(np.linalg.norm(direction.unit), 1, rtol=1e-6)
        largest = (p @ vector).max() / np.linalg.norm(vector)
        np.testing.assert_allclose(direction.strength, largest, rtol=1e-5)
        moved = directions.edit(jnp.zeros(40), direction, 1.0)
        np.testing.assert_allclose(moved @ direction.unit, largest, rtol=1e-5)
    stacked = directions.calibrate(raw, p)
    np.testing.assert_allclose(stacked.strength, [d.strength for d in each], rtol=1e-6)
    np.testing.assert_allclose(stacked.unit[1], each[1].unit, atol=1e-7)


def test_edits_invert_commute_and_batch(calibrated):
    p, _, (first, second, _) = calibrated
    beta = jnp.asarray(p[:5], jnp.float32)
    there = jax.jit(directions.edit)(beta, first, 0.7)
    np.testing.assert_allclose(directions.edit(there, first, -0.7), beta, atol=1e-5)
    assert float(jnp.abs(there - beta).max()) > 0.1
    one_way = directions.compose(beta, (first, second), (0.5, -1.5))
    other_way = directions.compose(beta, (second, first), (-1.5, 0.5))
    np.testing.assert_allclose(one_way, other_way, atol=1e-5)
    total = 0.5 * first.strength * first.unit - 1.5 * second.strength * second.unit
    np.testing.assert_allclose(one_way - beta, jnp.stack([total] * 5), atol=1e-5)

    alphas = jnp.asarray([-1, -0.5, -0.1, 0, 0.1, 0.5, 1])
    strip = directions.edit(beta[:, None], first, alphas)
    assert strip.shape == (5, 7, 40)
    np.testing.assert_allclose(strip[2, 6], directions.edit(beta[2], first, 1.0), atol=1e-6)
    np.testing.assert_array_equal(strip[:, 3], beta)
    assert directions.edit(beta[0], first, alphas).shape == (7, 40)


def test_padding_to_more_components(calibrated):
    _, raw, _ = calibrated
    padded = directions.pad(raw, 100)
    assert padded.shape == (3, 100) and not padded[:, 40:].any()
    np.testing.assert_array_equal(padded[:, :40], raw)
    with pytest.raises(ValueError, match="40 components does not fit into 39"):
        directions.pad(raw, 39)


def test_bad_input():
    p = population(20)
    with pytest.raises(ValueError, match=r"\(20, 40\) and labels \(19,\)"):
        directions.least_squares(p, np.ones(19))
    labels = np.sign(p[:, :2])
    labels[:, 1] = -1
    with pytest.raises(ValueError, match="attribute 1 are -1 for all 20"):
        directions.least_squares(p, labels)
    labels[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        directions.least_squares(p, labels)
    with pytest.raises(ValueError, match="direction is zero"):
        directions.calibrate(np.zeros(40), p)
    with pytest.raises(ValueError, match="no model on its positive side"):
        directions.calibrate(np.eye(40)[0], -np.abs(p))
    with pytest.raises(ValueError, match="at least two directions"):
        directions.entanglement(np.ones((1, 3)))
