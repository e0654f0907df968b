"""Calibration files, projection and triangulation against aniposelib."""

import jax
import numpy as np
import pytest

from keypoints import calibration, cameras
from tests.keypoints.rigs import ring

pytestmark = pytest.mark.parity

LENS = (-0.2, 0.1, 0.001, -0.002, 0.01)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    library = pytest.importorskip(
        "aniposelib.cameras", reason="not in the extra `test`: it pulls a second OpenCV")
    rig = ring(4, size=(640, 480), focal=500.0, lens=LENS)
    path = tmp_path_factory.mktemp("anipose") / "calibration.toml"
    calibration.write_toml(path, calibration.Calibration(("a", "b", "c", "d"), rig))
    return library.CameraGroup.load(str(path)), rig


def test_aniposelib_reads_what_is_written_and_the_other_way_round(group, tmp_path):
    theirs, rig = group
    assert [camera.get_name() for camera in theirs.cameras] == ["a", "b", "c", "d"]
    theirs.dump(str(tmp_path / "again.toml"))
    again = calibration.read(tmp_path / "again.toml")
    assert again.names == ("a", "b", "c", "d")
    for name in ("matrix", "distortion", "rotation", "translation", "size"):
        np.testing.assert_allclose(getattr(again.cameras, name), getattr(rig, name), atol=1e-9)


def test_projection_and_triangulation(group):
    theirs, rig = group
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 3)) + [0, 0, 0.3]
    expected = np.asarray(theirs.project(points)).reshape(4, -1, 2)
    with jax.enable_x64(True):
        pixels = np.asarray(cameras.project(rig, points)[0])
        np.testing.assert_allclose(pixels, expected, atol=1e-6)
        noisy = pixels + np.random.default_rng(1).normal(size=pixels.shape)
        noisy[0, :50] = np.nan  # views that miss a point
        noisy[1, 20:30] = np.nan
        found = np.asarray(cameras.triangulate(rig, noisy))
    # both are linear and weigh the views alike; rows are scaled in other ways
    other = np.asarray(theirs.triangulate(noisy))
    error = np.linalg.norm(found - points, axis=1).mean()
    assert np.linalg.norm(found - other, axis=1).max() < 0.1 * error
