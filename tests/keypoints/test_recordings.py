"""A user's recording: what is wrong with it is named."""

import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from keypoints import build, cameras, checks, recordings, volume
from keypoints import calibration as calibration_lib
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


def test_a_lag_is_told_in_frames_of_the_videos():
    rng = np.random.default_rng(0)
    activity = np.repeat(rng.uniform(size=(60, 1)) ** 4 * 20, 3, axis=1)
    activity[:, 2] = np.roll(activity[:, 2], 3)
    with pytest.raises(recordings.RecordingError, match="right seems to lag the others by 12 fr"):
        checks.check_synchrony(activity, NAMES, stride=4)


def test_too_few_frames_to_compare_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        checks.check_synchrony(np.ones((5, 3)), NAMES)
    assert "5 frames are too few to see whether the views are synchronous" in caplog.text


def test_unequal_frame_rates_are_named(tmp_path):
    class Video:
        count = 9

        def __init__(self, name, rate):
            self.path, self.rate = tmp_path / name, rate

    rig, _ = pictures(1)
    views = [Video("a.mp4", 25.0), Video("b.mp4", 30.0), Video("c", None)]
    message = "differ in frame rate: {'a.mp4': 25.0, 'b.mp4': 30.0}"
    with pytest.raises(recordings.RecordingError, match=message):
        checks.check_sources(views, Calibration(NAMES, rig))
    with pytest.raises(recordings.RecordingError, match="1 view .left.*two or more"):
        checks.check_sources(views[:1], Calibration(NAMES[:1], rig[:1]))


def test_columns_that_a_coder_added_are_logged(tmp_path, caplog):
    rig, images = pictures()
    config = write(tmp_path, rig.replace(size=rig.size + [4, 0]), images)
    with caplog.at_level(logging.WARNING):
        found = recordings.load(config)
    assert "camera top is calibrated at 76 x 60 pixels" in caplog.text
    whole = recordings.load(write(tmp_path / "whole", rig, images))
    for one, two in zip(found.calibration.cameras.matrix, whole.calibration.cameras.matrix,
                        strict=True):
        np.testing.assert_allclose(one, two)


def test_exchanged_cameras_are_named(tmp_path):
    rig, images = pictures()
    with pytest.raises(recordings.RecordingError, match="left and top seem to be exchanged"):
        recordings.load(write(tmp_path, rig, [images[1], images[0], images[2]]))


def test_exchanged_views_of_unequal_sizes_are_named():
    """Masks of all views are brought to one size first."""
    rig, images = pictures()
    masks = [np.stack(view)[..., 0] > 150 for view in images]
    masks[2] = np.pad(masks[2], ((0, 0), (0, 6), (0, 0)))
    sizes = np.asarray([(mask.shape[2], mask.shape[1]) for mask in masks], float)
    own = cameras.resize(rig.replace(size=sizes), (128, 128))
    few = [checks.square(mask[::5]) for mask in masks]
    checks.check_assignment(own, np.stack(few, axis=1), NAMES)
    with pytest.raises(recordings.RecordingError, match="left and right seem to be exchanged"):
        checks.check_assignment(own, np.stack([few[2], few[1], few[0]], axis=1), NAMES)


def test_cameras_side_by_side(tmp_path, caplog):
    """Their axes meet nowhere; the crops lead to the subject, and a volume may be set by hand."""
    eyes = np.array([[-0.4, -3.0, 0.0], [0.0, -3.0, 0.0], [0.4, -3.0, 0.0]])
    rig = cameras.look_at(eyes, (0, 1e9, 0), (0, 0, 1), 60.0, SIZE)
    path = 0.3 * np.random.default_rng(0).normal(size=(20, 3))
    pixels = np.asarray(cameras.project(rig, path)[0])
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    images = [
        [np.where((x - u) ** 2 + (y - v) ** 2 < 20, 230, 80).astype(np.uint8)[..., None].repeat(
            3, axis=2) for u, v in view] for view in pixels]  # fmt: skip
    config = ConfigDict({"data": write(tmp_path, rig, images), "seed": 0})
    config.data.source = "folder"
    with caplog.at_level(logging.WARNING):
        build.record(config, {}, tmp_path)
    assert "exchanged is not looked at: the cameras look in parallel" in caplog.text
    settings = ConfigDict(dict(side=0.0, centre=(0.0, 0.0, 0.0), axes="rig", margin=0.2))
    build.find_volume(settings, {"record": tmp_path}, tmp_path)
    found = build.load_volume(tmp_path)
    assert np.abs(found.centre[[0, 2]]).max() < 0.3 and abs(found.centre[1]) < 1.2
    assert np.abs(found.from_world(path)).max(axis=1).mean() < 1.0
    with pytest.raises(ValueError, match="parallel directions: set the volume by hand"):
        volume.from_frustums(rig)
    assert volume.by_hand(rig, (0, 0, 0), 1.5).side == 1.5
    settings.side = 1.5
    build.find_volume(settings, {"record": tmp_path}, tmp_path)
    assert build.load_volume(tmp_path).side == 1.5
    settings.centre = (0.0, -9.0, 0.0)
    with pytest.raises(ValueError, match="no part of the volume of side 1.5 .*two cameras"):
        build.find_volume(settings, {"record": tmp_path}, tmp_path)
    settings.centre = (500.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="check its centre, its side and their units"):
        build.find_volume(settings, {"record": tmp_path}, tmp_path)


def test_a_camera_that_sees_nothing_of_a_volume_is_logged(caplog):
    rig = ring(3)
    away = rig.replace(rotation=rig.rotation * np.array([[[1]], [[1]], [[1]]]))
    turned = away.rotation.copy()
    turned[1] = np.diag([-1.0, 1.0, -1.0]) @ turned[1]
    away = away.replace(rotation=turned, translation=-np.einsum(
        "vij,vj->vi", turned, np.asarray(rig.centres, float)))
    with caplog.at_level(logging.WARNING):
        volume.by_hand(away, (0, 0, 0.3), 1.0)
    assert "cameras [1] see no part of the volume" in caplog.text


def test_a_box_holds_where_the_subject_rarely_is():
    """Small in a wide arena: in 1 of 50 frames at the left end, nowhere for long."""
    mask = np.zeros((200, 40, 120), bool)
    for t in range(200):
        left = 60 + t % 50 if t % 50 else 5
        mask[t, 20:24, left : left + 4] = True
    left, top, width, height = recordings.motion_box(mask, (240, 80), 0.0)
    assert left <= 10 and left + width >= 2 * 113
    assert (top, height) == (0, 80)  # a square does not fit: as high as the image
    # one that stays is cropped to a square around it
    still = np.zeros((9, 40, 60), bool)
    still[:, 10:20, 30:36] = True
    assert recordings.motion_box(still, (60, 40), 0.0) == (28, 10, 10, 10)


def test_somebody_taller_than_the_image_is_wide_is_not_cut(tmp_path):
    """Crops that are no squares: resized along each axis by its own factor, still calibrated."""
    rig, images = pictures()
    tall = cameras.crop(rig, 20, 0, (32, SIZE[1]))
    narrow = [[frame[:, 20:52] for frame in view] for view in images]
    found = recordings.load(write(tmp_path, tall, narrow))
    ratio = found.calibration.cameras.matrix[:, 0, 0] / found.calibration.cameras.matrix[:, 1, 1]
    assert (ratio > 1.2).any()  # 32 columns, more rows
    bright = found.images[..., 0] > 150
    y, x = np.mgrid[:32, :32]
    area = bright.sum(axis=(2, 3))
    whole = (area > 8).all(axis=1)  # frames in which the ball is in all views
    assert whole.sum() > 5
    centroid = np.stack([(bright * x).sum((2, 3)), (bright * y).sum((2, 3))], -1)[whole]
    pixels = (centroid / area[whole][..., None]).transpose(1, 0, 2)
    points = np.asarray(cameras.triangulate(found.calibration.cameras, pixels))
    again = np.asarray(cameras.project(found.calibration.cameras, points)[0])
    assert np.median(np.linalg.norm(again - pixels, axis=-1)) < 0.6


def test_no_motion_is_an_error(tmp_path):
    rig, images = pictures(6)
    images[2] = [images[2][0]] * 6
    with pytest.raises(recordings.RecordingError, match="camera right: nothing moves"):
        recordings.load(write(tmp_path, rig, images))


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


def test_a_moving_background_is_logged(tmp_path, caplog):
    rig, images = pictures()
    rng = np.random.default_rng(0)
    images[1] = [np.roll(rng.integers(0, 255, (*SIZE[::-1], 3), np.uint8), t, 1) for t in range(40)]
    with caplog.at_level(logging.WARNING):
        recordings.load(write(tmp_path, rig, images))
    assert "camera top: " in caplog.text and "the background should be still" in caplog.text
