"""Statistics against their definitions, closed forms and bad input."""

import numpy as np
import pytest

from medical.statistics import (
    adjust,
    bootstrap,
    calibration,
    delong,
    intervals,
    mcnemar,
    multiclass,
)
from medical.statistics.checks import SingleClassError


def cases(seed: int, n: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``[n]`` and two correlated scores ``[2, n]``, with many ties if asked."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 0, 1, 1], rng.integers(0, 2, n - 4)])
    scores = rng.normal(size=(2, n)) + rng.normal(size=n) + 0.7 * labels
    return labels, scores.round(0) if ties else scores


def by_definition(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and covariance from all pairs of a positive and a negative (DeLong 1988, eq. 3-7)."""
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    above = positive[:, :, None] > negative[:, None, :]
    equal = positive[:, :, None] == negative[:, None, :]
    kernel = above + 0.5 * equal
    v10, v01 = kernel.mean(axis=2), kernel.mean(axis=1)
    covariance = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    return kernel.mean(axis=(1, 2)), covariance


@pytest.mark.parametrize("ties", [False, True])
def test_delong_equals_its_definition(ties):
    for seed in range(100):
        labels, scores = cases(seed, 20 if seed % 2 else 57, ties)
        found = delong.areas(labels, scores)
        auc, covariance = by_definition(labels, scores)
        np.testing.assert_allclose(found.auc, auc, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.covariance, covariance, rtol=0, atol=1e-12)
        plain = multiclass.auc(labels, scores[0])
        assert plain == pytest.approx(float(auc[0]), abs=1e-12)


def test_delong_keeps_its_level():
    # Two equally good, correlated scores: 5 % of the tests reject, give or take 3 deviations.
    rng = np.random.default_rng(3)
    labels = (np.arange(200) < 70).astype(int)
    rejected = 0
    for _ in range(2000):
        scores = rng.normal(size=(2, 200)) + rng.normal(size=200) + labels
        rejected += delong.compare(labels, *scores).p < 0.05
    assert 0.035 <= rejected / 2000 <= 0.065


def test_equal_scores_are_degenerate_and_not_different():
    labels, scores = cases(0, 30, False)
    found = delong.compare(labels, scores[0], np.exp(scores[0]))
    assert found.degenerate and found.p == 1.0 and found.difference == 0.0
    opposed = delong.compare([0, 0, 1, 1], [0, 1, 2, 3], [3, 2, 1, 0])
    assert opposed.degenerate and opposed.difference == 1.0 and opposed.p == 0.0


def test_interval_of_an_area_covers_it():
    rng = np.random.default_rng(4)
    truth = 0.7602499  # Phi(1 / sqrt 2)
    covered = 0
    for _ in range(400):
        labels = (np.arange(150) < 60).astype(int)
        found = delong.areas(labels, rng.normal(size=150) + labels)
        low, high = delong.interval(found.auc[0], found.covariance[0, 0])
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98
    assert delong.interval(1.0, 0.0) == (0.0, 1.0)


def test_per_class_tests_are_corrected_together():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 300)
    good = np.eye(3)[labels] + rng.normal(size=(300, 3))
    poor = rng.normal(size=(300, 3))
    tests, adjusted = delong.per_class(labels, good, poor)
    assert all(t.difference > 0 for t in tests)
    np.testing.assert_allclose(adjusted, adjust.holm(np.array([t.p for t in tests])))
    assert (adjusted >= [t.p for t in tests]).all() and (adjusted < 0.05).all()


def test_of_two_classes_nothing_is_corrected():
    rng = np.random.default_rng(12)
    labels = rng.integers(0, 2, 200)
    first, second = (1 / (1 + np.exp(-k * (labels - 0.5) - rng.normal(size=200))) for k in (2, 1))
    tables = [np.stack([1 - p, p], axis=1) for p in (first, second)]
    tests, p = delong.per_class(labels, *tables)
    alone = delong.compare(labels, first, second)
    np.testing.assert_allclose(p, [alone.p, alone.p], rtol=1e-9)
    np.testing.assert_allclose([t.difference for t in tests], alone.difference, rtol=1e-9)
    # Scores that are not one another's complement are two tests.
    p = delong.per_class(labels, tables[0] * [1, 2], tables[1])[1]
    np.testing.assert_allclose(p, [2 * alone.p, 2 * alone.p], rtol=1e-9)


def test_one_class_has_no_area():
    with pytest.raises(SingleClassError, match="0 positives among 3"):
        delong.areas(np.zeros(3), np.arange(3.0))
    with pytest.raises(SingleClassError, match="class 2 does not occur"):
        multiclass.multiclass_auc(np.array([0, 1, 0, 1]), np.ones((4, 3)))
    with pytest.raises(SingleClassError, match="3 positives and 0"):
        multiclass.auc(np.ones(3), np.arange(3.0))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"labels\[1\] is nan"):
        delong.areas(np.array([0, np.nan, 1]), np.arange(3.0))
    with pytest.raises(ValueError, match="found 2"):
        delong.areas(np.array([0, 2, 1]), np.arange(3.0))
    with pytest.raises(ValueError, match="different lengths"):
        delong.areas(np.array([0, 1, 1]), np.arange(4.0))
    with pytest.raises(ValueError, match=r"scores\[0, 1\] is inf"):
        multiclass.multiclass_auc(np.array([0, 1]), np.array([[0.0, np.inf], [0, 1]]))


def test_mcnemar_of_known_tables():
    # Cases b = 5, c = 15 (the two discordant cells of [[10, 5], [15, 12]]).
    assert mcnemar.from_counts(5, 15).p == pytest.approx(0.0413895, abs=1e-7)
    assert mcnemar.from_counts(5, 15, "corrected").p == pytest.approx(0.0441713, abs=1e-7)
    assert mcnemar.from_counts(5, 15, "asymptotic").p == pytest.approx(0.0253473, abs=1e-7)
    assert mcnemar.from_counts(0, 0).p == 1.0
    assert mcnemar.from_counts(7, 7).p == 1.0
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, False, False])
    found = mcnemar.compare(first, second)
    assert (found.only_first, found.only_second) == (2, 1)
    with pytest.raises(ValueError, match="boolean"):
        mcnemar.compare(first.astype(int), second.astype(int))


def test_bootstrap_finds_a_difference_and_no_difference():
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 250)
    good = np.eye(3)[labels] + rng.normal(size=(250, 3))
    poor = rng.normal(size=(250, 3))
    found = bootstrap.paired(
        multiclass.multiclass_auc, labels, good, poor, np.random.default_rng(0), 200)
    assert 0 < found.low < found.estimate < found.high and found.p <= 0.01
    same = bootstrap.paired(
        multiclass.multiclass_auc, labels, good, good, np.random.default_rng(0), 50)
    assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_bootstrap_by_patient_is_wider():
    # Ten copies of each case are no more evidence than one.
    rng = np.random.default_rng(7)
    labels = np.repeat(rng.integers(0, 2, 40), 10)
    first = labels + np.repeat(rng.normal(size=40), 10)
    second = labels + np.repeat(rng.normal(size=40), 10)
    patients = np.repeat(np.arange(40), 10)
    single = bootstrap.paired(
        multiclass.auc, labels, first, second, np.random.default_rng(1), 300)
    grouped = bootstrap.paired(
        multiclass.auc, labels, first, second, np.random.default_rng(1), 300, groups=patients)
    assert grouped.high - grouped.low > 2 * (single.high - single.low)
    assert grouped.estimate == single.estimate


def test_bootstrap_interval_covers_the_truth():
    # The area of two unit normals a distance 1 apart is Phi(1 / sqrt(2)) = 0.7602.
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(150):
        labels = np.arange(120) % 2
        found = bootstrap.interval(multiclass.auc, labels, labels + rng.normal(size=120), rng, 120)
        covered += found.low <= 0.7602 <= found.high
        assert found.low < found.estimate < found.high and found.dropped == 0
    assert 0.88 <= covered / 150 <= 0.99


def test_bootstrap_without_a_class_is_refused():
    labels = np.array([1] + [0] * 30)  # the positive is in 63 % of the resamples
    with pytest.raises(SingleClassError, match="a class is missing in"):
        bootstrap.interval(multiclass.auc, labels, np.arange(31.0), np.random.default_rng(0), 100)
    with pytest.raises(ValueError, match="31 labels, 30 scores"):
        bootstrap.interval(multiclass.auc, labels, np.arange(30.0), np.random.default_rng(0))


def test_intervals_of_known_counts():
    wilson = intervals.proportion(8, 10)
    assert wilson.low == pytest.approx(0.4901625, abs=1e-6)
    assert wilson.high == pytest.approx(0.9433178, abs=1e-6)
    assert intervals.proportion(0, 10).low == 0.0
    assert intervals.proportion(10, 10).high == 1.0
    # The exact interval of no success in n is 1 - (alpha / 2)^(1 / n).
    exact = intervals.proportion(0, 10, method="clopper-pearson")
    assert exact.high == pytest.approx(1 - 0.025**0.1)
    assert np.isnan(intervals.proportion(0, 0).value)
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    said = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0])
    found = intervals.scores(labels, said)
    assert (found.accuracy.value, found.precision.value) == (0.8, 0.75)
    assert (found.recall.value, found.f1.value) == pytest.approx((0.75, 0.75))
    assert found.specificity.value == pytest.approx(5 / 6)
    assert all(e.low < e.value < e.high for e in found)


def test_interval_of_f1_covers_it():
    rng = np.random.default_rng(8)
    # Prevalence 0.4, sensitivity 0.8, false positive rate 0.2.
    truth = 2 * 0.32 / (2 * 0.32 + 0.12 + 0.08)
    covered = 0
    for _ in range(500):
        labels = (rng.random(120) < 0.4).astype(int)
        said = (rng.random(120) < np.where(labels, 0.8, 0.2)).astype(int)
        f1 = intervals.scores(labels, said).f1
        covered += f1.low <= truth <= f1.high
    assert 0.92 <= covered / 500 <= 0.98


def test_calibration_of_known_models():
    rng = np.random.default_rng(9)
    p = rng.uniform(size=20_000)
    labels = (rng.random(20_000) < p).astype(int)
    found = calibration.recalibration(labels, p)
    assert found.intercept == pytest.approx(0, abs=0.05)
    assert found.slope == pytest.approx(1, abs=0.05)
    assert calibration.reliability(labels, p).error < 0.02
    # Logits twice too large: slope a half.
    sharp = p**2 / (p**2 + (1 - p) ** 2)
    assert calibration.recalibration(labels, sharp).slope == pytest.approx(0.5, abs=0.03)
    assert calibration.reliability(labels, sharp).error > 0.08
    assert calibration.brier(labels, sharp) > calibration.brier(labels, p)
    assert calibration.brier([0, 1], [0.0, 1.0]) == 0.0
    with pytest.raises(ValueError, match="separate"):
        calibration.recalibration([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    with pytest.raises(ValueError, match="lie in"):
        calibration.brier([0, 1], [0.5, 1.5])


def test_calibration_of_one_class():
    """A sample of one class has a Brier score and a calibration error, but no recalibration."""
    sure = np.array([0.9, 0.8, 1.0])
    assert calibration.brier(np.ones(3), sure) == pytest.approx(0.05 / 3)
    found = calibration.reliability(np.ones(3), sure)
    assert found.error == pytest.approx(0.1) and found.cases.sum() == 3
    with pytest.raises(SingleClassError, match="recalibration.*3 positives among 3"):
        calibration.recalibration(np.ones(3), sure)
    with pytest.raises(ValueError, match=r"labels\[1\] is nan"):
        calibration.brier([0, np.nan], [0.5, 0.5])
    with pytest.raises(ValueError, match="no labels"):
        calibration.reliability([], [])


def test_areas_of_bad_scores():
    with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
        multiclass.auc([0, 1, 1], [0.1, np.nan, 0.3])
    with pytest.raises(ValueError, match="labels are 0 and 1, found 2"):
        multiclass.auc([0, 1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="different lengths"):
        multiclass.auc([0, 1], [0.1, 0.2, 0.3])
