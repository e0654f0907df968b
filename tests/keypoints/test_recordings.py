"""A user's recording: what is wrong with it is named."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from keypoints import calibration as calibration_lib
from keypoints import cameras, data, exports, ground_truth, recordings
from keypoints.calibration import Calibration
from keypoints.recordings import RecordingError
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


@pytest.mark.parametrize("index", [0, 2])
def test_a_damaged_image_is_named(tmp_path, index):
    rig, images = pictures(4)
    config = write(tmp_path, rig, images)
    place = sorted(tmp_path.rglob(f"000{index}.png"))[0]
    place.write_bytes(place.read_bytes().replace(b"IDAT", b"I\xc1AT"))
    with pytest.raises(recordings.RecordingError, match=f"000{index}.png cannot be read"):
        recordings.load(config)


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


def test_joints_of_a_user_are_read_and_checked(tmp_path):
    rig, images = pictures()
    config = write(tmp_path, rig, images)
    lines = ["ball_x,ball_y,ball_z,ball_score,fnum"]
    heights = ["" if t == 7 else 3 * t for t in range(40)]
    lines += [f"{t},{2 * t},{z},0.5,{t}" for t, z in enumerate(heights)]
    (tmp_path / "joints.csv").write_text("\n".join(lines))
    config.joints, config.stride = str(tmp_path / "joints.csv"), 2
    found = recordings.load(config)
    assert found.joints.shape == (20, 1, 3) and found.joint_names == ("ball",)
    np.testing.assert_array_equal(found.joints[4, 0], [8, 16, 24])
    split = data.split(found, 0, 0.25)
    assert len(data.labelled(found, split).train) == len(split.train)  # frame 7 is left out
    config.stride = 1
    found = recordings.load(config)
    split = data.split(found, 0, 0.25)
    known = data.labelled(found, split)
    assert 7 in split.train and 7 not in known.train and len(known.train) == len(split.train) - 1
    np.testing.assert_array_equal(known.later, split.later)
    nothing = dataclasses.replace(found, joints=np.full((40, 1, 3), np.nan))
    with pytest.raises(ValueError, match="none of the training frames"):
        data.labelled(nothing, split)
    (tmp_path / "joints.csv").write_text("\n".join(lines[:30]))
    with pytest.raises(RecordingError, match="has 29 frames, the views have 40"):
        recordings.load(config)


def test_files_of_joints(tmp_path):
    array = np.arange(12.0).reshape(2, 2, 3)
    np.save(tmp_path / "a.npy", array)
    joints, names = ground_truth.read(tmp_path / "a.npy")
    np.testing.assert_array_equal(joints, array)
    assert names == ("joint0", "joint1")
    # what a run writes is read back
    ones = np.ones((2, 2))
    exports.anipose_csv(tmp_path / "k.csv", array, ("k0", "k1"), ones, ones, np.full(2, 4))
    joints, names = ground_truth.read(tmp_path / "k.csv")
    np.testing.assert_array_equal(joints, array)
    assert names == ("k0", "k1")
    for name, text, message in (
        ("b.csv", "a,b\n1,2\n", "no columns NAME_x"),
        ("c.csv", "a_x,a_y,a_z\n", "no rows"),
        ("d.csv", "a_x,a_y,a_z\n1,2,3\n1,here,3\n", "line 3"),
        ("e.txt", "", "unknown kind"),
        ("f.npy", "no array", "is no array"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ground_truth.GroundTruthError, match=message):
            ground_truth.read(tmp_path / name)
    np.save(tmp_path / "g.npy", array[0])
    with pytest.raises(ground_truth.GroundTruthError, match="must be float"):
        ground_truth.read(tmp_path / "g.npy")


def test_sizes_that_a_calibration_lacks_are_those_of_the_views(tmp_path):
    rig, images = pictures()
    config = write(tmp_path, rig, images)
    whole = recordings.load(config)
    off = np.asarray(rig.matrix).copy()
    off[:, 0, 2] += 3.0  # a principal point that is not the centre guesses another size
    calibration_lib.write_dannce(tmp_path / "c.mat", Calibration(NAMES, rig.replace(matrix=off)))
    config.calibration = str(tmp_path / "c.mat")
    found = recordings.load(config)
    scale = np.asarray(whole.calibration.cameras.matrix)[:, 0, 0] / np.asarray(rig.matrix)[:, 0, 0]
    moved = (found.calibration.cameras.matrix - whole.calibration.cameras.matrix)[:, 0, 2]
    np.testing.assert_allclose(moved, 3.0 * scale, rtol=1e-5)
