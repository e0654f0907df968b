"""Cameras against OpenCV: projection, undistortion, triangulation."""

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from keypoints import cameras

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is in the extra `test`")
pytestmark = pytest.mark.parity

MATRIX = np.array([[1145.05, 0.0, 512.54], [0.0, 1143.78, 515.45], [0.0, 0.0, 1.0]])
LENSES = {
    "five coefficients": (False, (-0.207, 0.248, -0.0009, -0.0015, -0.003)),
    "none": (False, (0.0,) * 5),
    "fisheye": (True, (-0.03, 0.012, -0.006, 0.001, 0.0)),
}


def rig(fisheye, lens, views=2):
    rotations = Rotation.from_rotvec([[0.3, -0.2, 0.1], [-0.1, 0.5, 0.2]]).as_matrix()[:views]
    translations = np.array([[0.1, -0.2, 4.0], [-0.3, 0.2, 3.7]])[:views]
    return cameras.Cameras.create(
        np.stack([MATRIX] * views), rotations, translations, (1024, 1024),
        np.stack([lens] * views), fisheye)


def opencv_pixels(own, view, points):
    vector = Rotation.from_matrix(own.rotation[view]).as_rotvec()
    lens = np.asarray(own.distortion[view])
    if own.fisheye[view]:
        found, _ = cv2.fisheye.projectPoints(
            points[:, None], vector, own.translation[view], MATRIX, lens[:4])
    else:
        found, _ = cv2.projectPoints(points, vector, own.translation[view], MATRIX, lens)
    return found.reshape(-1, 2)


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).uniform(-1, 1, (5000, 3))


@pytest.mark.parametrize("name", LENSES)
def test_projection(name, points):
    own = rig(*LENSES[name])
    found, _ = jax.jit(cameras.project)(own, points.astype(np.float32))
    exact = points.astype(np.float32).astype(np.float64)
    with jax.enable_x64(True):
        double, _ = jax.jit(cameras.project)(own, exact)
    for view in range(2):
        expected = opencv_pixels(own, view, exact)
        inside = (np.abs(expected - 512) < 700).all(axis=1)
        assert inside.sum() > 4000
        np.testing.assert_allclose(double[view][inside], expected[inside], atol=1e-9)
        # float32 has steps of 6e-5 at 1,000 pixels
        np.testing.assert_allclose(found[view][inside], expected[inside], atol=3e-4)
        error = np.abs(found[view][inside] - expected[inside])
        assert np.quantile(error, 0.95) < 1e-4


@pytest.mark.parametrize("name", LENSES)
def test_undistortion(name, points):
    own = rig(*LENSES[name])
    pixels = np.stack([opencv_pixels(own, v, points[:500]) for v in range(2)])
    with jax.enable_x64(True):
        found, residual = jax.jit(cameras.undistort)(own, pixels)
    assert np.asarray(residual).max() < 1e-8
    for view in range(2):
        local = points[:500] @ own.rotation[view].T + own.translation[view]
        np.testing.assert_allclose(found[view], local[:, :2] / local[:, 2:], atol=1e-9)
    if not LENSES[name][0]:
        lens = np.asarray(own.distortion[0])
        steps = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-14)
        given = pixels[0][:, None], MATRIX, lens
        if hasattr(cv2, "undistortPointsIter"):  # OpenCV 4
            theirs = cv2.undistortPointsIter(*given, None, None, steps)
        else:
            theirs = cv2.undistortPoints(*given, R=None, P=None, criteria=steps)
        np.testing.assert_allclose(found[0], theirs[:, 0], atol=1e-9)


def test_triangulation_of_two_views(points):
    own = rig(*LENSES["five coefficients"])
    few = points[:300]
    pixels = np.stack([opencv_pixels(own, v, few) for v in range(2)])
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(cameras.triangulate)(own, pixels))
        flat, _ = cameras.undistort(own, pixels)
    extrinsic = np.concatenate([own.rotation, own.translation[..., None]], axis=-1)
    theirs = cv2.triangulatePoints(
        extrinsic[0], extrinsic[1], np.asarray(flat[0]).T, np.asarray(flat[1]).T)
    np.testing.assert_allclose(found, (theirs[:3] / theirs[3]).T, atol=1e-9)
    np.testing.assert_allclose(found, few, atol=1e-9)
    single = jax.jit(cameras.triangulate)(own, pixels.astype(np.float32))
    np.testing.assert_allclose(single, few, atol=2e-5)
