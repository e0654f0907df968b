"""Files for other tools have the layout those tools read."""

import csv

import numpy as np
import pytest
import scipy.io

from keypoints import exports, overlay_video

POINTS = np.random.default_rng(0).normal(size=(5, 3, 3))
SCORE = np.linspace(0, 1, 15).reshape(5, 3)
NAMES = ("k0", "k1", "k2")


def test_anipose_csv(tmp_path):
    path = tmp_path / "a.csv"
    exports.anipose_csv(path, POINTS, NAMES, SCORE, SCORE / 2, np.full(5, 4))
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and rows[3]["fnum"] == "3" and rows[0]["k1_ncams"] == "4"
    np.testing.assert_allclose([float(rows[2][f"k1_{c}"]) for c in "xyz"], POINTS[2, 1])
    assert float(rows[4]["k2_score"]) == 1.0 and float(rows[4]["k2_error"]) == 0.5
    assert [rows[0][f"M_{i}{i}"] for i in range(3)] == ["1.0"] * 3


def test_dannce_mat(tmp_path):
    exports.dannce_mat(tmp_path / "a.mat", POINTS, SCORE)
    found = scipy.io.loadmat(tmp_path / "a.mat")
    np.testing.assert_array_equal(found["pred"], POINTS.transpose(0, 2, 1))
    np.testing.assert_array_equal(found["p_max"], SCORE)


def test_sleap_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="extra keypoints")
    exports.sleap_hdf5(tmp_path / "a.h5", POINTS, NAMES, SCORE)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["tracks"].shape == (5, 1, 3, 3)
        np.testing.assert_array_equal(file["tracks"][:, 0], POINTS)
        np.testing.assert_array_equal(file["point_scores"][:, 0], SCORE)


def test_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected \[frames, 3, 3\]"):
        exports.anipose_csv(tmp_path / "a.csv", POINTS[:, :2], NAMES, SCORE, SCORE, np.ones(5))
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(("views", "shape"), [(2, (256, 512)), (4, (512, 512)), (5, (512, 768))])
def test_overlay_video(tmp_path, views, shape):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is in the extra `test`")
    images = np.full((6, views, 32, 32, 3), 60, np.uint8)
    pixels = np.full((6, views, 2, 2), 15.5)
    pixels[3, 0] = np.nan  # not seen
    path = overlay_video.write(tmp_path / "o.mp4", images, pixels, [(0, 1)], 25.0)
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == 25.0
    frames = [video.read()[1] for _ in range(6)]
    assert not video.read()[0] and frames[0].shape[:2] == shape
    spot = np.s_[124:132, 124:132]
    assert np.abs(frames[0][spot].astype(int) - 60).max() > 60  # the keypoint
    assert np.abs(frames[3][spot].astype(int) - 60).max() < 20
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]
    with pytest.raises(ValueError, match="at least one frame"):
        overlay_video.write(tmp_path / "p.mp4", images[:0], pixels[:0], [], 25.0)
