"""Linear classifiers against scikit-learn in the full space of features."""

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from meshgcn import baselines, evaluate


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(0)
    label = random.permutation(np.repeat([0, 1], 45))
    x = random.normal(size=(90, 200)) * random.uniform(0.5, 2, 200)
    x[:, :5] += 0.9 * label[:, None]
    x[:, 7] = 3.0  # constant
    role = np.tile([0, 0, 0, 0, 1, 2], 15)
    train = role == 0
    scale = np.where(x[train].std(axis=0) > 1e-5, x[train].std(axis=0), np.inf)
    return x, label, role, (x - x[train].mean(axis=0)) / scale


@pytest.mark.parametrize("kind", ["ridge", "logistic", "svm"])
def test_against_scikit_learn(kind, problem):
    x, label, role, z = problem
    train = role == 0
    found = baselines.fit_all(x, label, role, (0.1,))[kind]
    rank = min(train.sum() - 1, 199)
    penalty = 0.1 * (z[train] ** 2).sum() / rank
    if kind == "ridge":
        model = Ridge(alpha=penalty).fit(z[train], 2.0 * label[train] - 1)
        expected = model.predict(z)
    elif kind == "logistic":
        model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(
            z[train], label[train]
        )
        expected = model.decision_function(z)
    else:
        # scikit-learn penalises the offset; a large constant feature makes that negligible.
        model = LinearSVC(C=1 / penalty, intercept_scaling=100, tol=1e-8, max_iter=200000).fit(
            z[train], label[train]
        )
        expected = model.decision_function(z)
    np.testing.assert_allclose(found.score, expected, atol=2e-3 * np.abs(expected).max())
    weights = np.ravel(model.coef_)
    np.testing.assert_allclose(found.weights, weights, atol=5e-3 * np.abs(weights).max())
    assert found.weights[7] == 0


def test_penalty_is_chosen_on_validation_and_test_is_never_read(problem):
    x, label, role, _ = problem
    found = baselines.fit_all(x, label, role)
    other = x.copy()
    other[role == 2] = 1e6
    again = baselines.fit_all(other, np.where(role == 2, 1 - label, label), role)
    for kind in baselines.LINEAR:
        np.testing.assert_array_equal(found[kind].weights, again[kind].weights)
        areas = [
            evaluate.auc(one.score[role == 1], label[role == 1] == 1)
            for p in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
            for one in [baselines.fit_all(x, label, role, (p,))[kind]]
        ]
        chosen = evaluate.auc(found[kind].score[role == 1], label[role == 1] == 1)
        assert chosen == max(areas)


def test_t_map(problem):
    x, label, _, _ = problem
    found = baselines.t_map(x, label)
    keep = np.arange(200) != 7  # the constant one
    rows = x[:, keep]
    expected = scipy.stats.ttest_ind(rows[label == 0], rows[label == 1], equal_var=False)
    np.testing.assert_allclose(found[keep], expected.statistic, rtol=1e-9)
    assert found[7] == 0
