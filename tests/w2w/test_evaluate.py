"""Scores on planted descriptors, and the matched-effect comparison."""

import numpy as np
import pytest

from w2w import evaluate, judge


def test_identity_of_copies_and_strangers():
    rng = np.random.default_rng(0)
    people = rng.normal(size=(4, 1, 6))
    references = evaluate.unit(people + 0.1 * rng.normal(size=(4, 5, 6)), np.zeros(6))
    gallery = evaluate.Gallery(references, np.zeros(6))
    copies = evaluate.unit(np.repeat(people, 3, axis=1), gallery.centre)
    assert gallery.id_scores(copies).min() > 0.95
    assert gallery.rank1(copies) == 1.0
    swapped = copies[::-1]
    assert gallery.id_scores(swapped).mean() < 0.7
    assert gallery.rank1(swapped) == 0.0


def test_descriptors_are_centred_and_of_length_one(monkeypatch):
    monkeypatch.setattr(evaluate, "describe", lambda images: images.reshape(*images.shape[:-3], -1))
    images = np.array([[3.0, 4.0], [1.0, 3.0]]).reshape(2, 1, 2, 1)  # their own descriptors
    found = evaluate.Gallery(np.zeros((1, 1, 2)), np.array([0.0, 3.0])).describe(images)
    np.testing.assert_allclose(found, [[0.9486833, 0.3162278], [1.0, 0.0]], rtol=1e-6)


def test_diversity():
    same = np.tile(np.array([0.6, 0.8, 0.0]), (4, 1))
    assert evaluate.diversity(same) == pytest.approx(0.0, abs=1e-6)
    assert evaluate.diversity(np.eye(3)) == pytest.approx(1.0)


def test_monotone_share():
    assert evaluate.monotone_share(np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])) == 0.75


def test_matched_identity_interpolates_where_the_effect_is_equal():
    curve, identity = np.array([0.1, 0.3, 0.5, 0.7, 0.9]), [0.5, 0.8, 1.0, 0.9, 0.6]
    assert judge._matched(curve, identity, 0.6, 2) == pytest.approx(0.95)
    assert judge._matched(curve, identity, 0.2, 2) == pytest.approx(0.65)
    assert judge._matched(curve, identity, 0.95, 2) is None


def test_summary_is_over_people():
    scores = np.array([[0.0, 0.2], [0.4, 0.6]])
    found = evaluate.summary(scores)
    assert found["mean"] == pytest.approx(0.3)
    assert found["standard_error"] == pytest.approx(np.std([0.1, 0.5], ddof=1) / np.sqrt(2))


def test_distances_tell_equal_distributions_from_shifted_ones():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 6))
    same, shifted = rng.normal(size=(80, 6)), 4.0 + rng.normal(size=(80, 6))
    near, far = evaluate.distances(real, same), evaluate.distances(real, shifted)
    assert abs(near["kid"]) < 0.2 < 5.0 < far["kid"]
    assert near["frechet"] < 2 * near["frechet_floor"] < far["frechet"]
    assert near["precision"] > 0.8 > 0.2 > far["precision"]
    assert near["coverage"] > far["coverage"] == 0.0
