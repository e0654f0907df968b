"""Scores against scikit-learn and closed forms; scores of maps."""

import numpy as np
import pytest
from sklearn import metrics

from meshgcn import evaluate


def test_scores_against_scikit_learn():
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 200)
    score = np.round(label + random.normal(size=200), 1)  # with ties
    found = evaluate.scores(score, label, 0.5)
    guess = score > 0.5
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(label, guess))
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(label, guess)
    )
    assert found["sensitivity"] == pytest.approx(metrics.recall_score(label, guess))
    assert found["specificity"] == pytest.approx(metrics.recall_score(1 - label, ~guess))
    assert tuple(found) == evaluate.METRICS


def test_auc_needs_both_classes_and_numbers():
    with pytest.raises(ValueError, match="0 positives of 3"):
        evaluate.auc(np.arange(3.0), np.zeros(3, bool))
    with pytest.raises(ValueError, match="1 scores are not finite"):
        evaluate.auc(np.array([0, np.nan]), np.array([True, False]))


def test_corrected_interval():
    values = np.array([0.8, 0.9, 0.7, 0.8, 0.8])
    mean, half = evaluate.interval(values, 0.25 / 0.6)
    assert mean == pytest.approx(0.8)
    # s^2 = 0.005, (1/5 + 5/12) * 0.005, and t(0.975, 4) = 2.776445
    assert half == pytest.approx(2.776445 * np.sqrt((0.2 + 5 / 12) * 0.005), rel=1e-6)
    assert half > 2.776445 * values.std(ddof=1) / np.sqrt(5)  # wider than the naive one
    assert evaluate.interval(np.array([0.6]), 0.4) == (0.6, None)


def test_corrected_interval_covers_where_the_naive_one_does_not():
    """Means of random halves of one sample, as resampled trials are; 300 repetitions."""
    random, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(300):
        sample = random.normal(size=40)
        trials = np.array([random.permutation(sample)[:10].mean() for _ in range(25)])
        mean, half = evaluate.interval(trials, 10 / 30)
        hits += abs(mean) < half
        naive += abs(mean) < 2.06 * trials.std(ddof=1) / 5
    assert hits / 300 > 0.85
    assert naive / 300 < 0.7


def test_maps():
    truth = np.array([1, 1, 0, 0, 0, 0], bool)
    assert evaluate.dice(np.array([5.0, 4, 3, 0, 0, 0]), truth) == 1
    assert evaluate.dice(np.array([5.0, 1, 3, 0, 0, 0]), truth) == 0.5
    assert evaluate.dice(np.zeros(6), truth) == 0  # nothing is chosen of an empty map
    assert evaluate.dice(np.ones(6), np.zeros(6, bool)) == 0
    assert evaluate.peak_inside(np.array([5.0, 4, 3, 0, 0, 0]), truth)
    assert not evaluate.peak_inside(np.array([0, 0, 3.0, 0, 0, 0]), truth)
    assert not evaluate.peak_inside(np.zeros(6), truth)
    assert evaluate.overlap_by_chance(truth) == pytest.approx(1 / 3)
