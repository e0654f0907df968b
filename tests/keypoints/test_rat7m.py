"""Rat7M's files, made by the layout of its release."""

import numpy as np
import pytest
import scipy.io
from ml_collections import ConfigDict

from keypoints import cameras, rat7m
from keypoints.sources import RecordingError
from tests.keypoints.rigs import ring

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is in the extra `test`")

SIZE, LENGTH = (96, 80), 20  # of an image; of a video


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A ball as the only marker; the second camera runs two frames ahead, a video is missing."""
    folder = tmp_path_factory.mktemp("rat7m")
    rig = ring(3, size=SIZE, focal=90.0, target=(0, 0, 0))
    rng = np.random.default_rng(5)
    steps = 1.5 * rng.uniform(0, 1, 64)[:, None] ** 4 * rng.normal(size=(64, 3))
    ball = 0.7 * np.sin(np.cumsum(steps, axis=0))
    pixels = np.asarray(cameras.project(rig, ball)[0])
    frames = np.arange(64)[:, None] + [0, 2, 0]
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    for view in range(3):
        for start in (0, 20, 40):
            if (view, start) == (2, 20):
                continue
            writer = cv2.VideoWriter(
                str(folder / f"s1-d1-camera{view + 1}-{start}.mp4"),
                cv2.VideoWriter.fourcc(*"mp4v"), 120.0, SIZE)
            for frame in range(start, start + LENGTH):
                sample = min(63, max(0, frame - int(frames[0, view])))
                u, v = pixels[view, sample]
                grey = np.where((x - u) ** 2 + (y - v) ** 2 < 40, 230, 80).astype(np.uint8)
                writer.write(grey[..., None].repeat(3, axis=2))
            writer.release()
    entries = {
        f"Camera{i + 1}": {
            "frame": frames[:, i].astype(float), "IntrinsicMatrix": rig.matrix[i].T,
            "rotationMatrix": rig.rotation[i].T, "translationVector": rig.translation[i][None],
            "RadialDistortion": np.zeros((1, 2)), "TangentialDistortion": np.zeros((1, 2)),
        }
        for i in range(3)
    }  # fmt: skip
    ball[3] = np.nan
    scipy.io.savemat(
        folder / "mocap-s1-d1.mat", {"cameras": entries, "mocap": {"SpineM": ball}})
    return folder, ball


def settings(folder, **changes):
    return ConfigDict(dict(
        path=str(folder), calibration=str(folder / "mocap-s1-d1.mat"), size=48, stride=1,
        motion=0.08, rate=0.0) | changes)  # fmt: skip


@pytest.mark.parametrize("stride", [1, 3])
def test_markers_lie_on_the_pictures_of_their_samples(release, stride):
    folder, ball = release
    found = rat7m.load(settings(folder, stride=stride))
    # frames 20 to 39 of the third camera are missing, and 58 on of the second
    expected = [m for m in range(0, 64, stride) if m < 20 or 40 <= m < 58]
    np.testing.assert_array_equal(found.joints[:, 0], ball[expected])
    assert found.rate == 120.0 / stride and found.joint_names == ("SpineM",)
    # a sequence in each stretch; none runs on into the next
    assert found.sequence.tolist() == [int(m >= 40) for m in expected]
    known = np.isfinite(found.joints).all(axis=(1, 2))
    pixels = np.asarray(cameras.project(
        found.calibration.cameras, found.joints[known, 0])[0]).transpose(1, 0, 2)
    bright = found.images[known][..., 0] > 150
    y, x = np.mgrid[:48, :48]
    area = bright.sum(axis=(2, 3))
    centroid = np.stack([(bright * x).sum((2, 3)), (bright * y).sum((2, 3))], -1)
    distance = np.linalg.norm(centroid / np.maximum(area, 1)[..., None] - pixels, axis=-1)
    assert np.median(distance) < 0.5 and np.quantile(distance, 0.9) < 1.5


def test_what_is_missing_is_named(release, tmp_path):
    folder, _ = release
    with pytest.raises(RecordingError, match="no folder"):
        rat7m.load(settings(folder, path=str(tmp_path / "none")))
    with pytest.raises(RecordingError, match=r"no videos \*-camera1-FRAME.mp4 of camera camera1"):
        rat7m.load(settings(folder, path=str(tmp_path)))
    with pytest.raises(RecordingError, match="set config.data.path"):
        rat7m.load(settings(folder, path=""))
    for number in (1, 2, 3):
        name = f"s1-d1-camera{number}"
        (tmp_path / f"{name}-9000.mp4").write_bytes((folder / f"{name}-0.mp4").read_bytes())
    with pytest.raises(RecordingError, match="0 of the 64 samples .*'camera1': .9000."):
        rat7m.load(settings(folder, path=str(tmp_path)))
    content = scipy.io.loadmat(folder / "mocap-s1-d1.mat", squeeze_me=True)
    scipy.io.savemat(tmp_path / "c.mat", {"cameras": content["cameras"]})
    with pytest.raises(RecordingError, match="c.mat has no 'mocap'"):
        rat7m.markers(tmp_path / "c.mat", ("camera1",))
    with pytest.raises(RecordingError, match="of another form: 'camera7'"):
        rat7m.markers(folder / "mocap-s1-d1.mat", ("camera7",))
