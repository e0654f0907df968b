"""A user's recording: what is wrong with it is named."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from keypoints import calibration as calibration_lib
from keypoints import cameras, recordings
from keypoints.calibration import Calibration
from tests.keypoints.rigs import ring

NAMES = ("left", "top", "right")
SIZE = (72, 60)


def pictures(frames=40, shift=(0, 0, 0)):
    """A ball on a jerky path before three cameras, `[view][frame]`; `shift` delays views."""
    rig = ring(3, size=SIZE, focal=70.0, target=(0, 0, 0))
    rng = np.random.default_rng(5)
    steps = 1.5 * rng.uniform(0, 1, frames + 40)[:, None] ** 4 * rng.normal(size=(frames + 40, 3))
    path = 0.8 * np.sin(np.cumsum(steps, axis=0))
    pixels = np.asarray(cameras.project(rig, path)[0])
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    images = []
    for view in range(3):
        own = []
        for t in range(frames):
            centre = pixels[view, t + 20 - shift[view]]
            ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 20
            own.append(np.where(ball, 230, 80).astype(np.uint8)[..., None].repeat(3, axis=2))
        images.append(own)
    return rig, images


def write(folder, rig, images, names=NAMES):
    for name, own in zip(names, images, strict=True):
        (folder / "views" / name).mkdir(parents=True)
        for t, frame in enumerate(own):
            Image.fromarray(frame).save(folder / "views" / name / f"{t:04d}.png")
    calibration_lib.write_toml(folder / "c.toml", Calibration(NAMES, rig))
    return ConfigDict(
        dict(path=str(folder / "views"), calibration=str(folder / "c.toml"), size=32, stride=1,
             motion=0.08, rate=25.0, unit="m"))  # fmt: skip


def test_folders_are_read_cropped_and_stay_calibrated(tmp_path):
    rig, images = pictures()
    found = recordings.load(write(tmp_path, rig, images))
    assert found.images.shape == (40, 3, 32, 32, 3) and found.rate == 25.0
    # the ball's centroid in the crops triangulates to where it is
    bright = found.images[..., 0] > 150
    y, x = np.mgrid[:32, :32]
    area = bright.sum(axis=(2, 3))
    centroid = np.stack([(bright * x).sum((2, 3)), (bright * y).sum((2, 3))], -1) / area[..., None]
    points = cameras.triangulate(found.calibration.cameras, centroid.transpose(1, 0, 2))
    full = np.stack([np.stack(view) for view in images])[..., 0] > 150
    fy, fx = np.mgrid[: SIZE[1], : SIZE[0]]
    whole = np.stack(
        [(full * fx).sum((2, 3)), (full * fy).sum((2, 3))], -1) / full.sum((2, 3))[..., None]
    np.testing.assert_allclose(points, cameras.triangulate(rig, whole), atol=0.03)


def test_missing_and_unknown_cameras_are_named(tmp_path):
    rig, images = pictures(4)
    config = write(tmp_path, rig, images, ("left", "top", "rihgt"))
    with pytest.raises(recordings.RecordingError, match="camera right; it has rihgt"):
        recordings.load(config)
    config.calibration = ""
    with pytest.raises(recordings.RecordingError, match="set config.data.path"):
        recordings.load(config)


def test_unequal_lengths_are_named(tmp_path):
    rig, images = pictures(6)
    images[1] = images[1][:5]
    with pytest.raises(recordings.RecordingError, match="differ in length.*'top': 5"):
        recordings.load(write(tmp_path, rig, images))


def test_another_resolution_is_named(tmp_path):
    rig, images = pictures(4)
    with pytest.raises(recordings.RecordingError, match="calibrated at 144 x 120 pixels.*72 x 60"):
        recordings.load(write(tmp_path, cameras.resize(rig, (144, 120)), images))


def test_an_image_of_another_size_is_named(tmp_path):
    rig, images = pictures(4)
    images[0][2] = images[0][2][:30]
    with pytest.raises(recordings.RecordingError, match="0002.png has 72 x 30 pixels"):
        recordings.load(write(tmp_path, rig, images))


def test_a_lagging_view_is_named(tmp_path):
    rig, images = pictures(40, (0, 0, 5))
    with pytest.raises(recordings.RecordingError, match="camera right seems to lag .* by 5 frames"):
        recordings.load(write(tmp_path, rig, images))


def test_exchanged_cameras_are_named(tmp_path):
    rig, images = pictures()
    with pytest.raises(recordings.RecordingError, match="left and top seem to be exchanged"):
        recordings.load(write(tmp_path, rig, [images[1], images[0], images[2]]))


def test_no_motion_is_an_error(tmp_path):
    rig, images = pictures(6)
    images[2] = [images[2][0]] * 6
    with pytest.raises(recordings.RecordingError, match="camera right: nothing moves"):
        recordings.load(write(tmp_path, rig, images))
