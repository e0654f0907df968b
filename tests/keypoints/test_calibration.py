"""Calibration files: round trips, other tools' conventions, damaged files."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from keypoints import calibration as lib
from keypoints import cameras
from tests.keypoints.rigs import ring

LENS = (-0.2, 0.1, 0.001, -0.002, 0.01)
POINTS = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))


@pytest.fixture(scope="module")
def rig():
    own = ring(3, size=(640, 480), focal=500.0, lens=LENS)
    return lib.Calibration(("left one", "top", 'q"uote'), own)


def same(a, b, atol=1e-9):
    assert a.names == b.names
    for name in ("matrix", "distortion", "rotation", "translation", "size", "fisheye"):
        np.testing.assert_allclose(
            getattr(a.cameras, name), getattr(b.cameras, name), atol=atol, err_msg=name)


def test_toml_round_trip(rig, tmp_path):
    lenses = rig.cameras.distortion.copy()
    lenses[1, 4] = 0.0  # a fisheye lens has four
    bent = rig.cameras.replace(fisheye=np.array([False, True, False]), distortion=lenses)
    given = lib.Calibration(rig.names, bent)
    lib.write_toml(tmp_path / "calibration.toml", given)
    same(lib.read(tmp_path / "calibration.toml"), given)


def test_toml_of_pose2sim_has_four_coefficients(tmp_path):
    text = """
[cam01]
name = "cam01"
size = [ 1088.0, 1920.0,]
matrix = [ [ 1681.2, 0.0, 532.9,], [ 0.0, 1681.0, 948.1,], [ 0.0, 0.0, 1.0,],]
distortions = [ -0.0007, 0.002, 0.0, 0.0,]
rotation = [ 1.0, -0.5, 0.3,]
translation = [ 0.1, 0.2, 4.0,]
fisheye = false
[metadata]
adjusted = false
error = 0.0
"""
    (tmp_path / "c.toml").write_text(text)
    found = lib.read(tmp_path / "c.toml")
    assert found.names == ("cam01",)
    np.testing.assert_allclose(found.cameras.distortion[0], [-0.0007, 0.002, 0, 0, 0])
    np.testing.assert_allclose(
        found.cameras.rotation[0], Rotation.from_rotvec([1, -0.5, 0.3]).as_matrix())


def test_dannce_round_trip_and_row_vectors(rig, tmp_path):
    path = tmp_path / "label3d_dannce.mat"
    lib.write_dannce(path, rig)
    same(lib.read_dannce(path, (640, 480)), rig)
    import scipy.io

    entry = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)["params"][1]
    row = POINTS[0] @ entry.r + entry.t  # DANNCE: x_cam = x r + t
    flat = (row / row[2]) @ entry.K  # without the lens
    pinhole = rig.cameras.replace(distortion=np.zeros((3, 5)))
    np.testing.assert_allclose(
        flat[:2], cameras.project(pinhole, POINTS[:1])[0][1, 0], rtol=1e-5)


def test_rat7m_cameras(rig, tmp_path):
    """The layout that the published loader reads: a struct of cameras, matrices transposed."""
    import scipy.io

    entries = {}
    for index, name in ((1, "Camera2"), (0, "Camera1"), (2, "Camera3")):
        camera = rig.cameras[index]
        k = np.asarray(camera.distortion)
        entries[name] = {
            "frame": np.arange(3.0), "IntrinsicMatrix": np.asarray(camera.matrix).T,
            "rotationMatrix": np.asarray(camera.rotation).T,
            "translationVector": np.asarray(camera.translation)[None],
            "RadialDistortion": k[None, :2], "TangentialDistortion": k[None, 2:4],
        }  # fmt: skip
    scipy.io.savemat(tmp_path / "mocap-s1-d1.mat", {"cameras": entries})
    found = lib.read(tmp_path / "mocap-s1-d1.mat")
    assert found.names == ("camera1", "camera2", "camera3") and not found.sized
    known = lib.read_dannce(tmp_path / "mocap-s1-d1.mat", (640, 480))
    assert known.sized
    lens = np.asarray(rig.cameras.distortion) * [1, 1, 1, 1, 0]
    same(known, lib.Calibration(known.names, rig.cameras.replace(distortion=lens)))
    del entries["Camera2"]["rotationMatrix"]
    scipy.io.savemat(tmp_path / "broken.mat", {"cameras": entries})
    with pytest.raises(lib.CalibrationError, match="lacks a field"):
        lib.read(tmp_path / "broken.mat")


def test_jarvis_folder(rig, tmp_path):
    def matrix(name, value):
        rows, columns = value.shape
        data = ", ".join(f"{v:.17g}" for v in value.ravel())
        return (f"{name}: !!opencv-matrix\n   rows: {rows}\n   cols: {columns}\n   dt: d\n"
                f"   data: [ {data} ]\n")

    names = ("a", "b", "c")
    for index, name in enumerate(names):
        camera = rig.cameras[index]
        text = "%YAML:1.0\n---\n" + matrix("intrinsicMatrix", camera.matrix.T)
        text += matrix("distortionCoefficients", camera.distortion[None])
        text += matrix("R", camera.rotation.T) + matrix("T", camera.translation[:, None])
        (tmp_path / f"{name}.yaml").write_text(text)
    same(lib.read(tmp_path), lib.Calibration(names, rig.cameras), atol=1e-9)


def test_qualisys_conventions(rig, tmp_path):
    """A file written by the format's definition: 1/64 pixels, rotation by columns, y up, z back."""
    tags = []
    for index, name in enumerate(("s1", "s2", "s3")):
        camera = rig.cameras[index]
        to_world = (np.diag([1.0, -1.0, -1.0]) @ camera.rotation).T
        centre = -camera.rotation.T @ camera.translation
        turn = " ".join(
            f'r{i + 1}{j + 1}="{to_world[j, i]:.17g}"' for i in range(3) for j in range(3))
        k, m = camera.distortion * 64, camera.matrix * 64
        tags.append(
            f'<camera serial="{name}"><fov_video left="0" top="0" right="639" bottom="479"/>'
            f'<transform x="{centre[0]}" y="{centre[1]}" z="{centre[2]}" {turn}/>'
            f'<intrinsic focalLengthU="{m[0, 0]}" focalLengthV="{m[1, 1]}" centerPointU="{m[0, 2]}"'
            f' centerPointV="{m[1, 2]}" skew="0" radialDistortion1="{k[0]}"'
            f' radialDistortion2="{k[1]}" radialDistortion3="{k[4]}"'
            f' tangentalDistortion1="{k[2]}" tangentalDistortion2="{k[3]}"/></camera>')
    path = tmp_path / "Calib.qca.txt"
    path.write_text("<calibration><cameras>" + "".join(tags) + "</cameras></calibration>")
    same(lib.read(path), lib.Calibration(("s1", "s2", "s3"), rig.cameras), atol=1e-9)


def test_selection_keeps_the_asked_order(rig):
    found = rig.select(["top", "left one"])
    np.testing.assert_array_equal(found.cameras.matrix, rig.cameras.matrix[[1, 0]])
    with pytest.raises(lib.CalibrationError, match="no camera 'side'"):
        rig.select(["side"])


GOOD = {"size": "[640, 480]", "matrix": "[[500, 0, 320], [0, 500, 240], [0, 0, 1]]",
        "distortions": "[0, 0, 0, 0, 0]", "rotation": "[0, 0, 0]",
        "translation": "[0, 0, 1]"}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"matrix": "[[500, 0, 320], [0, 500], [0, 0, 1]]"}, {"matrix": "'none'"},
     {"rotation": "[0, 0]"}, {"rotation": "['a', 'b', 'c']"}, {"distortions": "['a']"},
     {"distortions": "[0, 0, 0, 0, 0, 1]"}, {"size": "[640]"}, {"size": "[640, 0]"},
     {"translation": "[0, 0]"}, {"translation": "[0, 0, nan]"}],
)  # fmt: skip
def test_bad_values_in_toml_are_named(tmp_path, change):
    def text(values):
        return "[cam_0]\n" + "\n".join(f"{key} = {value}" for key, value in values.items())

    (tmp_path / "good.toml").write_text(text(GOOD))
    assert lib.read(tmp_path / "good.toml").names == ("cam_0",)
    (tmp_path / "bad.toml").write_text(text(GOOD | change))
    with pytest.raises(lib.CalibrationError, match=r"bad\.toml"):
        lib.read(tmp_path / "bad.toml")


def test_bad_values_elsewhere_are_named(tmp_path):
    (tmp_path / "a.qca.txt").write_text(
        '<calibration><camera serial="7"><fov_video left="0" top="0" right="x" bottom="9"/>'
        "<transform/><intrinsic/></camera></calibration>")
    with pytest.raises(lib.CalibrationError, match=r"a\.qca\.txt: camera 7, right"):
        lib.read(tmp_path / "a.qca.txt")
    folder = tmp_path / "jarvis"
    folder.mkdir()
    (folder / "a.yaml").write_bytes(b"%YAML:1.0\n---\nR: \xff")
    with pytest.raises(lib.CalibrationError, match=r"a\.yaml is no JARVIS calibration"):
        lib.read(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[cam_0]\nmatrix = [[1,0,0],[0,1,0],[0,0,1]]", "lacks distortions, rotation"),
        ("a.toml", "[metadata]\nerror = 1", "has no cameras"),
        ("a.toml", "[[[", "not valid TOML"),
        ("a.qca.txt", "<calibration", "not valid XML"),
        ("a.mat", "nothing", "cannot be read"),
        ("a.json", "{}", "unknown kind"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(lib.CalibrationError, match=message) as caught:
        lib.read(tmp_path / name)
    assert name in str(caught.value)


def test_a_matlab_file_with_damaged_bytes_is_named(tmp_path):
    """The compressed part no longer inflates; an empty file; one that was cut."""
    import scipy.io

    path = tmp_path / "c.mat"
    scipy.io.savemat(path, {"x": np.random.default_rng(0).random(1000)}, do_compression=True)
    whole = path.read_bytes()
    for damaged in (whole[:300] + bytes(20) + whole[320:], b"", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(lib.CalibrationError, match=r"c\.mat cannot be read"):
            lib.read(path)


@pytest.mark.parametrize("error", [TypeError, IndexError, UnboundLocalError, MemoryError])
def test_whatever_the_matlab_reader_raises_is_named(tmp_path, monkeypatch, error):
    """Its errors of 2,400 files with changed bytes, besides those above."""

    def broken(*_, **__):
        raise error("inside")

    (tmp_path / "c.mat").write_bytes(b"x")
    monkeypatch.setattr(lib.scipy.io, "loadmat", broken)
    with pytest.raises(lib.CalibrationError, match=rf"c\.mat cannot be read .*{error.__name__}"):
        lib.read(tmp_path / "c.mat")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"K": np.ones(3)}, "a field of another form"),
        ({"r": "turned"}, "a field of another form"),
        ({"t": None}, "a camera lacks a field"),
        ({"r": np.eye(2)}, "c.mat"),
    ],
)
def test_a_dannce_camera_of_another_form_is_named(tmp_path, change, message):
    import scipy.io

    camera = dict(K=np.eye(3), RDistort=np.zeros(2), TDistort=np.zeros(2), r=np.eye(3))
    camera = {k: v for k, v in {**camera, "t": np.zeros(3), **change}.items() if v is not None}
    entries = np.empty((2, 1), object)
    entries[:, 0] = [camera, camera]
    scipy.io.savemat(tmp_path / "c.mat", {"params": entries})
    with pytest.raises(lib.CalibrationError, match=message):
        lib.read(tmp_path / "c.mat")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no calibration"):
        lib.read(tmp_path / "none.toml")
