"""Human3.6M's files, made by the layout of h36m-fetch."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from keypoints import calibration as calibration_lib
from keypoints import cameras, human36m
from keypoints.calibration import Calibration
from keypoints.sources import RecordingError
from tests.keypoints.rigs import ring

h5py = pytest.importorskip("h5py", reason="extra keypoints")

SIZE, NAMES = (80, 80), ("54138969", "60457274", "55011271")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A ball in the place of all joints, two actions; one frame of one camera is missing."""
    root = tmp_path_factory.mktemp("S1")
    rig = ring(3, size=SIZE, focal=80.0, radius=3000.0, target=(0, 0, 0))
    calibration_lib.write_toml(root / "calibration.toml", Calibration(NAMES, rig))
    rng = np.random.default_rng(5)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    truth = []
    for name, frames in (("Directions-1", range(1, 60, 2)), ("Posing-1", range(5, 90, 4))):
        steps = 1.5 * rng.uniform(0, 1, len(frames))[:, None] ** 4 * rng.normal(
            size=(len(frames), 3))
        ball = 700.0 * np.sin(np.cumsum(steps, axis=0) + 1)
        pixels = np.asarray(cameras.project(rig, ball)[0])
        rows = []
        for view, camera in enumerate(NAMES):
            folder = root / name / "imageSequence" / camera
            folder.mkdir(parents=True)
            local = ball @ rig.rotation[view].T + rig.translation[view]
            for index, frame in enumerate(frames):
                u, v = pixels[view, index]
                grey = np.where((x - u) ** 2 + (y - v) ** 2 < 25, 230, 80).astype(np.uint8)
                Image.fromarray(grey).convert("RGB").save(folder / f"img_{frame:06d}.jpg")
                if (view, index) != (1, 4):
                    rows.append((int(camera), frame, local[index]))
        order = rng.permutation(len(rows))
        with h5py.File(root / name / "annot.h5", "w") as file:
            file["camera"] = [rows[i][0] for i in order]
            file["frame"] = [rows[i][1] for i in order]
            file["pose/3d"] = np.stack([np.repeat(rows[i][2][None], 32, axis=0) for i in order])
        truth.append(np.delete(ball, 4, axis=0))
    return root, truth


def settings(root, **changes):
    return ConfigDict(dict(
        path=str(root), calibration="", size=40, stride=1, motion=0.08, rate=50.0) | changes)


@pytest.mark.parametrize("stride", [1, 2])
def test_joints_are_in_the_world_and_on_the_pictures(subject, stride):
    root, truth = subject
    found = human36m.load(settings(root, stride=stride))
    expected = np.concatenate([part[::stride] for part in truth])
    np.testing.assert_allclose(found.joints, np.repeat(expected[:, None], 17, axis=1), atol=0.1)
    assert found.sequence.tolist() == [0] * len(truth[0][::stride]) + [1] * len(truth[1][::stride])
    assert found.rate == 50.0 / stride and len(found.bones) == 16
    pixels = np.asarray(cameras.project(found.calibration.cameras, found.joints[:, 0])[0])
    bright = found.images[..., 0] > 150
    y, x = np.mgrid[:40, :40]
    centroid = np.stack([(bright * x).sum((2, 3)), (bright * y).sum((2, 3))], -1)
    centroid = centroid / np.maximum(bright.sum(axis=(2, 3)), 1)[..., None]
    distance = np.linalg.norm(centroid.transpose(1, 0, 2) - pixels, axis=-1)
    assert np.median(distance) < 0.5


def test_what_does_not_fit_is_named(subject, tmp_path):
    root, _ = subject
    with pytest.raises(RecordingError, match="set config.data.path"):
        human36m.load(settings(""))
    calibration = calibration_lib.read(root / "calibration.toml")
    own = calibration.cameras
    shift = own.translation + np.array([[0.0], [0.0], [90.0]])
    for cams, names, message in (
        (own, ("1", *NAMES[1:]), "has cameras 54138969, 55011271, 60457274, the calibration 1, 6"),
        (own.replace(translation=shift), NAMES, "mm apart in the world: .* another subject"),
    ):
        calibration_lib.write_toml(tmp_path / "c.toml", Calibration(names, cams))
        with pytest.raises(RecordingError, match=message):
            human36m.load(settings(root, calibration=str(tmp_path / "c.toml")))
    with pytest.raises(RecordingError, match="has no folders with annot.h5"):
        human36m.load(settings(tmp_path, calibration=str(root / "calibration.toml")))
    (tmp_path / "Eating-1").mkdir()
    (tmp_path / "Eating-1" / "annot.h5").write_bytes(b"nothing")
    with pytest.raises(RecordingError, match=r"annot\.h5 cannot be read"):
        human36m.load(settings(tmp_path, calibration=str(root / "calibration.toml")))
