"""Measures of the low-data comparison on hand-made predictions and samples."""

import numpy as np
import pytest
from scipy import stats

from medical.acgan import evaluate, methods
from medical.acgan.data import Trial
from medical.statistics import adjust, mcnemar

TRIALS = [Trial(5, 0), Trial(5, 1), Trial(20, 0), Trial(20, 1)]
RNG = np.random.default_rng(0)


def hits(*counts: int, total: int = 10) -> np.ndarray:
    return np.arange(total)[None] < np.array(counts)[:, None]


def test_accuracy_over_seeds():
    found = evaluate.accuracy(hits(4, 6, 9, 9), TRIALS)
    assert list(found) == ["5", "20"]
    assert found["5"] == {"mean": 0.5, "each": [0.4, 0.6], "sd": pytest.approx(np.sqrt(0.02))}
    assert found["20"]["sd"] == 0.0
    assert evaluate.accuracy(hits(4), TRIALS[:1])["5"]["sd"] is None


def test_paired_comparison_with_the_baseline():
    first, second = RNG.random((4, 200)) < 0.8, RNG.random((4, 200)) < 0.5
    table = {"a": evaluate.compare(first, second, TRIALS),
             "b": evaluate.compare(first, first, TRIALS)}
    each = first[:2].mean(1) - second[:2].mean(1)
    row = table["a"]["5"]
    test = stats.ttest_rel(first[:2].mean(1), second[:2].mean(1))
    assert row["p"] == pytest.approx(test.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()))
    assert row["each"] == pytest.approx(each.tolist())
    assert row["mcnemar"] == [mcnemar.compare(first[i], second[i]).p for i in (0, 1)]
    assert row["bootstrap"][0] < row["mean"] < row["bootstrap"][1]
    same = table["b"]["20"]
    assert same["p"] is None and same["mcnemar"] == [1.0, 1.0] and same["bootstrap"] == [0.0, 0.0]
    evaluate.adjust_all({"a": table["a"]}, {"b": table["b"]})
    exact = [p for t in table.values() for r in t.values() for p in r["mcnemar"]]
    after = [p for t in table.values() for r in t.values() for p in r["mcnemar_holm"]]
    assert after == adjust.holm(np.array(exact)).tolist() and len(after) == 8
    assert same["holm"] is None
    ps = np.array([table["a"]["5"]["p"], table["a"]["20"]["p"]])
    assert [table["a"][n]["holm"] for n in ("5", "20")] == pytest.approx(adjust.holm(ps))


def test_the_bootstrap_draws_pairs():
    first = RNG.random((3, 400)) < 0.5
    second = first.copy()
    second[:, :40] = ~second[:, :40]  # one in ten differs, otherwise all noise is shared
    low, high = evaluate.bootstrap(first, second)
    mean = float(first.mean() - second.mean())
    assert low < mean < high and high - low < 0.11
    assert evaluate.bootstrap(first, second) == [low, high]


def test_a_collapsed_classifier_raises_alarms():
    fair = np.arange(100) % 10
    assert evaluate.collapse(fair, 10) == []
    stuck = np.where(np.arange(100) < 51, 3, fair)
    assert evaluate.collapse(stuck, 10)[0].startswith("class 3 is 5")
    assert evaluate.collapse(np.arange(100) % 7, 10) == ["7 of 10 classes are predicted"]
    assert evaluate.collapse(np.arange(100) % 8, 10) == []
    # Of two classes more than half is nothing unusual; everything is.
    assert evaluate.collapse(np.arange(10) < 7, 2) == []
    assert len(evaluate.collapse(np.zeros(10, int), 2)) == 2


def test_diversity():
    images = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    assert evaluate.diversity(images) == pytest.approx((5 + 5 + 10) / 3 / np.sqrt(2))
    with pytest.raises(ValueError, match="2 images or more, got 1"):
        evaluate.diversity(images[:1])
    reals = RNG.normal(size=(40, 3, 3, 1))
    labels = np.arange(40) % 2
    samples = np.stack([reals[labels == 0], 0.1 * reals[labels == 1]])
    ratios, alarms = evaluate.sample_diversity(samples, reals, labels)
    np.testing.assert_allclose(ratios, [1.0, 0.1])
    assert alarms == ["samples of class 1 are 10% as diverse as real images"]


def test_calibration_error():
    # Probability 0.8 and right in three of four.
    logits = np.log(np.array([[0.8, 0.2]] * 4))
    assert evaluate.calibration_error(logits, np.array([0, 0, 0, 1])) == pytest.approx(0.05)
    # All right, or all wrong: the error is the doubt, or the confidence.
    sure = evaluate.softmax(logits.astype(float)).max(-1).mean()
    assert evaluate.calibration_error(logits, np.zeros(4, int)) == pytest.approx(1 - sure)
    assert evaluate.calibration_error(logits, np.ones(4, int)) == pytest.approx(sure)


def test_checks_hold_or_not():
    results = {
        "difference": {"acgan": {"5": {"mean": -0.06}, "20": {"mean": -0.04}},
                       "cnn_augmented": {"5": {"mean": -0.5}, "20": {"mean": 0.0}}},
        "samples": {"acgan": {"agreement": {"5": [0.5, 0.6], "20": [0.7, 0.8]},
                              "diversity": {"5": [0.6, 0.7], "20": [0.2, 0.3]}}},
        "accuracy": {"acgan": {"5": {"mean": 0.6}, "20": {"mean": 0.7}}}}
    found = evaluate.checks(results)
    assert [row["holds"] for row in found] == [False, True, False, True, True, False]
    assert {row["method"] for row in found} == {"acgan"}
    assert found[0]["value"] == pytest.approx(-6.0)
    results["accuracy"]["wacgan_gpt"] = {"5": {"mean": 0.596}, "20": {"mean": 0.69}}
    assert [row["holds"] for row in evaluate.checks(results)[6:]] == [True, False]


def test_methods():
    names = ("cnn", "acgan", "cnn_samples")
    assert list(methods.chosen(names)) == list(names)
    recipe = methods.METHODS["wacgan_gpt"].recipe(penalty=5.0)
    assert recipe.wasserstein and recipe.truncation == 1.0 and recipe.penalty == 5.0
    assert recipe.source == recipe.fake_class == 1.0
    chosen = methods.METHODS["acgan"].recipe(source=0.1, fake_class=0.5)
    assert (chosen.source, chosen.fake_class) == (0.1, 0.5)
    plain = methods.METHODS["cnn"].recipe(source=0.1, fake_class=0.5)
    assert plain.source == plain.fake_class == 0.0
    for wrong, message in ((("cnn", "gan"), "'gan' is unknown"), (("acgan",), "lack 'cnn'"),
                           (("cnn", "cnn_samples", "acgan"), "needs 'acgan' before it"),
                           (("cnn", "acgan", "cnn_wacgan_samples"), "needs 'wacgan_gp' before")):
        with pytest.raises(ValueError, match=message):
            methods.chosen(wrong)
