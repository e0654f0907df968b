"""Statistics against statsmodels, scikit-learn and MLstatkit."""

import numpy as np
import pytest
from MLstatkit import Delong_test
from sklearn import metrics
from statsmodels.discrete import discrete_model
from statsmodels.stats import contingency_tables, multitest, proportion

from medical.statistics import adjust, calibration, delong, intervals, mcnemar, multiclass

pytestmark = pytest.mark.parity


def test_delong_like_mlstatkit():
    rng = np.random.default_rng(0)
    for n in (20, 50, 300):
        for ties in (False, True):
            labels = np.concatenate([[0, 1], rng.integers(0, 2, n - 2)])
            scores = rng.normal(size=(2, n)) + labels
            if ties:
                scores = scores.round(0)
            ours = delong.compare(labels, *scores)
            z, p = Delong_test(labels, *scores)[:2]
            # MLstatkit subtracts the first area from the second.
            assert ours.z == pytest.approx(-z, abs=1e-10)
            assert ours.p == pytest.approx(p, abs=1e-10)


def test_area_like_scikit_learn():
    rng = np.random.default_rng(1)
    for seed in range(20):
        labels = np.concatenate([[0, 1, 2, 3], rng.integers(0, 4, 60)])
        scores = rng.random((64, 4)).round(1 if seed % 2 else 6) + 1e-3
        scores /= scores.sum(axis=1, keepdims=True)
        for scheme in ("ovo", "ovr"):
            for weighted in (True, False):
                ours = multiclass.multiclass_auc(labels, scores, scheme, weighted)
                average = "weighted" if weighted else "macro"
                theirs = metrics.roc_auc_score(
                    labels, scores, multi_class=scheme, average=average)
                assert ours == pytest.approx(theirs, abs=1e-12)


def test_mcnemar_like_statsmodels():
    rng = np.random.default_rng(2)
    for _ in range(50):
        table = rng.integers(1, 40, (2, 2))
        b, c = int(table[0, 1]), int(table[1, 0])
        for method, options in (
            ("exact", {"exact": True}),
            ("corrected", {"exact": False, "correction": True}),
            ("asymptotic", {"exact": False, "correction": False}),
        ):
            theirs = contingency_tables.mcnemar(table, **options)
            ours = mcnemar.from_counts(b, c, method)
            assert ours.p == pytest.approx(theirs.pvalue, abs=1e-12)
            assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-12)


def test_holm_like_statsmodels():
    rng = np.random.default_rng(3)
    for count in (1, 7, 50):  # few: each of their calls collects garbage, for seconds
        p = rng.random(count) ** 3
        theirs = multitest.multipletests(p, method="holm")[1]
        np.testing.assert_allclose(adjust.holm(p), theirs, rtol=0, atol=1e-14)


def test_proportions_like_statsmodels():
    for count, total in ((0, 9), (3, 9), (9, 9), (250, 400)):
        for ours, theirs in (("wilson", "wilson"), ("clopper-pearson", "beta")):
            found = intervals.proportion(count, total, method=ours)
            low, high = proportion.proportion_confint(count, total, method=theirs)
            assert found.low == pytest.approx(low, abs=1e-12)
            assert found.high == pytest.approx(high, abs=1e-12)


def test_scores_like_scikit_learn():
    rng = np.random.default_rng(4)
    labels, said = rng.integers(0, 2, 90), rng.integers(0, 2, 90)
    found = intervals.scores(labels, said)
    assert found.f1.value == pytest.approx(metrics.f1_score(labels, said), abs=1e-12)
    assert found.precision.value == pytest.approx(metrics.precision_score(labels, said))
    assert found.recall.value == pytest.approx(metrics.recall_score(labels, said))
    p = rng.random(90)
    brier = metrics.brier_score_loss(labels, p)
    assert calibration.brier(labels, p) == pytest.approx(brier, abs=1e-12)


def test_recalibration_like_statsmodels():
    rng = np.random.default_rng(5)
    p = rng.uniform(0.05, 0.95, 300)
    labels = (rng.random(300) < p**2).astype(int)
    logit = np.log(p / (1 - p))
    model = discrete_model.Logit(labels, np.stack([np.ones(300), logit], 1)).fit(disp=False)
    found = calibration.recalibration(labels, p)
    np.testing.assert_allclose([found.intercept, found.slope], model.params, rtol=1e-6)
    expected = model.conf_int()
    np.testing.assert_allclose(found.intercept_interval, expected[0], rtol=1e-5)
    np.testing.assert_allclose(found.slope_interval, expected[1], rtol=1e-5)
    wide = calibration.recalibration(labels, p, level=0.99)
    assert wide.slope_interval[0] < found.slope_interval[0]
