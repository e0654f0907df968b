"""Regression and pose errors against closed forms and scikit-learn."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from keypoints import regression

RNG = np.random.default_rng(0)


def test_p_mpjpe_ignores_similarities_and_not_reflections():
    truth = RNG.normal(size=(5, 7, 3))
    turns = Rotation.random(5, random_state=1).as_matrix()
    moved = 2.5 * truth @ turns + RNG.normal(size=(5, 1, 3))
    found = regression.errors(moved, truth)
    assert found["p_mpjpe"] < 1e-12 and found["mpjpe"] > 1.0
    mirrored = regression.errors(moved * [1, 1, -1], truth)
    assert mirrored["p_mpjpe"] > 0.1


def test_centred_error_ignores_translation_only():
    truth = RNG.normal(size=(4, 6, 3))
    found = regression.errors(truth + [3.0, 0, 4.0], truth)
    np.testing.assert_allclose(found["mpjpe"], 5.0)
    assert found["centred"] < 1e-12


def test_ridge_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="extra test")
    x, y = RNG.normal(size=(50, 6)) * [1, 10, 100, 1, 1, 1] + 5, RNG.normal(size=(50, 4))
    z = (x - x.mean(0)) / x.std(0)
    expected = linear_model.Ridge(alpha=2.0).fit(z, y).predict(z)
    np.testing.assert_allclose(regression.ridge(x, y, 2.0)(x), expected, atol=1e-10)


def test_units_and_linear_maps_of_the_keypoints_do_not_matter_much():
    joints = RNG.normal(size=(200, 5, 3))
    x = joints.reshape(200, -1) @ RNG.normal(size=(15, 12)) + 0.1 * RNG.normal(size=(200, 12))
    frames = {"later": np.arange(150, 200)}
    one = regression.regress(x, joints, np.arange(150), frames)
    two = regression.regress(1000 * x + 7, joints, np.arange(150), frames)
    np.testing.assert_allclose(one["later"]["mpjpe"], two["later"]["mpjpe"], rtol=1e-9)
    assert regression.regress(x, joints, np.arange(150), {"none": np.arange(0)}) == {}


def test_constant_features_are_harmless():
    model = regression.ridge(np.ones((10, 2)), np.arange(10.0)[:, None])
    np.testing.assert_allclose(model(np.ones((1, 2))), 4.5)


def test_body_size():
    joints = np.zeros((3, 2, 3))
    joints[:, 1, 0] = [1.0, 2.0, 9.0]
    assert regression.body_size(joints) == 2.0


def test_swapped_sides_are_counted():
    names = ("nose", "paw left", "paw right", "ear left", "tail left")
    assert regression.sides(names) == [(1, 2)]
    short = ("paw_L", "paw_R", "LHip", "RHip", "l.ear", "r.ear", "Left eye", "Right eye", "lip",
             "KneeL", "KneeR", "SpineL")
    assert regression.sides(short) == [(0, 1), (2, 3), (4, 5), (6, 7), (9, 10)]
    truth = RNG.normal(size=(4, 5, 3))
    found = truth + 0.01
    found[1] = found[1, [0, 2, 1, 3, 4]]
    assert regression.errors(found, truth, regression.sides(names))["swapped"] == 0.25
    assert "swapped" not in regression.errors(found, truth)
