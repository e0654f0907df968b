"""Calibration files: aniposelib TOML, Qualisys, DANNCE .mat and JARVIS YAML, read and written.

Every reader returns cameras in OpenCV's convention with their names; world units stay the file's.
"""

import os
import pathlib
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import yaml
from scipy.spatial.transform import Rotation

from common.storage import write_whole
from keypoints.cameras import Cameras

Path = str | os.PathLike[str]


class CalibrationError(ValueError):
    """A calibration file is damaged, incomplete or of an unknown kind; the message has its name."""


class Calibration(NamedTuple):
    """Cameras `[views]` and their names, in the order of the file.

    Attributes:
        names: of the cameras.
        cameras: the cameras.
        sized: whether the images' sizes are known; else they are guesses from the principal points.
    """

    names: tuple[str, ...]
    cameras: Cameras
    sized: bool = True

    def select(self, names: Sequence[str]) -> "Calibration":
        """The named cameras in the given order.

        Raises:
            CalibrationError: a name that is not there.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise CalibrationError(
                f"no camera {missing[0]!r} in the calibration, which has {', '.join(self.names)}"
            )
        index = np.asarray([self.names.index(name) for name in names])
        return Calibration(tuple(names), self.cameras[index], self.sized)


def read(path: Path) -> Calibration:
    """Reads a calibration; the kind follows from the name.

    Args:
        path: `.toml` (aniposelib, also Lightning Pose, caliscope, Pose2Sim, sleap-anipose),
            `.qca.txt` or `.qca` (Qualisys), `.mat` (DANNCE, Label3D, Rat7M), or a folder of JARVIS
            `.yaml` files, one for each camera.

    Raises:
        CalibrationError: see the class.
        FileNotFoundError: there is no such file.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no calibration {path}")
    if path.is_dir():
        return read_jarvis(path)
    for endings, reader in _READERS:
        if path.name.endswith(endings):
            return reader(path)
    known = ", ".join(ending for endings, _ in _READERS for ending in endings)
    raise CalibrationError(f"{path}: unknown kind of calibration; known: {known}, a JARVIS folder")


def _build(
    path: pathlib.Path, names: Sequence[str], parts: Sequence[Mapping], sized: bool = True
) -> Calibration:
    if not parts:
        raise CalibrationError(f"{path} has no cameras")
    if len(set(names)) != len(names):
        raise CalibrationError(f"{path} has two cameras of one name: {', '.join(names)}")
    try:
        lenses = [np.ravel(part["distortion"]).astype(float) for part in parts]
        if max(map(len, lenses)) > 5:
            raise ValueError(f"{max(map(len, lenses))} lens coefficients, at most 5")
        sizes = [np.ravel(part["size"]).astype(float) for part in parts]
        if any(len(size) != 2 for size in sizes):
            raise ValueError(f"a size is (width, height), found {[s.tolist() for s in sizes]}")
        cameras = Cameras.create(
            np.stack([part["matrix"] for part in parts]),
            np.stack([part["rotation"] for part in parts]),
            np.stack([np.ravel(part["translation"]) for part in parts]),
            np.stack(sizes),
            np.stack([np.pad(lens, (0, 5 - len(lens))) for lens in lenses]),
            np.asarray([part.get("fisheye", False) for part in parts]),
        )
    except (ValueError, TypeError) as error:
        raise CalibrationError(f"{path}: {error}") from error
    return Calibration(tuple(names), cameras, sized)


def read_toml(path: Path) -> Calibration:
    """Reads aniposelib's TOML: sections with name, size, matrix, distortions, rotation (Rodrigues),
    translation and perhaps fisheye; other sections, such as metadata, are left out."""
    path = pathlib.Path(path)
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} is not valid TOML: {error}") from error
    names, parts = [], []
    for title, section in sections.items():
        if not isinstance(section, dict) or "matrix" not in section:
            continue
        missing = {"size", "distortions", "rotation", "translation"} - section.keys()
        if missing:
            raise CalibrationError(f"{path}: section [{title}] lacks {', '.join(sorted(missing))}")
        names.append(str(section.get("name", title)))
        try:
            turn = np.ravel(np.asarray(section["rotation"], float))
            parts.append(
                dict(
                    matrix=np.asarray(section["matrix"], float),
                    distortion=section["distortions"],
                    rotation=Rotation.from_rotvec(turn).as_matrix(),
                    translation=section["translation"],
                    size=section["size"],
                    fisheye=bool(section.get("fisheye", False)),
                )
            )
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{path}: section [{title}]: {error}") from error
    return _build(path, names, parts)


def write_toml(path: Path, calibration: Calibration) -> None:
    """Writes aniposelib's TOML (five coefficients; four for a fisheye lens)."""
    lines = []
    for index, name in enumerate(calibration.names):
        camera = calibration.cameras[index]
        fisheye = bool(camera.fisheye)
        vector = Rotation.from_matrix(np.asarray(camera.rotation)).as_rotvec()
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        values = {
            "size": np.asarray(camera.size).astype(int).tolist(),
            "matrix": np.asarray(camera.matrix, float).tolist(),
            "distortions": np.asarray(camera.distortion, float)[: 4 if fisheye else 5].tolist(),
            "rotation": vector.tolist(),
            "translation": np.asarray(camera.translation, float).tolist(),
        }
        lines += [f"[cam_{index}]", f'name = "{escaped}"']
        lines += [f"{key} = {value}" for key, value in values.items()]
        lines += [f"fisheye = {str(fisheye).lower()}", ""]
    write_whole(pathlib.Path(path), "\n".join([*lines, "[metadata]", ""]).encode())


def read_qualisys(path: Path) -> Calibration:
    """Reads a Qualisys Track Manager calibration (XML), world in millimetres.

    Intrinsics and lens coefficients are in 1/64 pixel units, rotations are written by columns, and
    the camera looks along its negative z axis with y up. Cameras without a video image (markers
    only) are left out. The decoding follows Pose2Sim's reader.
    """
    path = pathlib.Path(path)
    try:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8-sig"))
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} is not valid XML: {error}") from error
    names: list[str] = []
    parts = []
    for camera in root.iter("camera"):
        view, place, lens = (camera.find(tag) for tag in ("fov_video", "transform", "intrinsic"))
        name = camera.get("serial", str(len(names)))
        if view is None:
            continue
        if place is None or lens is None:
            raise CalibrationError(f"{path}: camera {name} has no transform or no intrinsic")

        def number(tag: ElementTree.Element, key: str, name: str = name) -> float:
            text = tag.get(key)
            if text is None:
                raise CalibrationError(f"{path}: camera {name} has no {key}")
            try:
                return float(text)
            except ValueError as error:
                raise CalibrationError(f"{path}: camera {name}, {key}: {error}") from error

        left, top, right, bottom = (number(view, k) for k in ("left", "top", "right", "bottom"))
        focal = [number(lens, f"focalLength{axis}") / 64 for axis in "UV"]
        centre = [number(lens, f"centerPoint{axis}") / 64 for axis in "UV"]
        skew = number(lens, "skew") / 64 if lens.get("skew") else 0.0
        keys = ("radialDistortion1", "radialDistortion2", "tangentalDistortion1",
                "tangentalDistortion2", "radialDistortion3")  # fmt: skip
        to_world = np.array([[number(place, f"r{i}{j}") for j in (1, 2, 3)] for i in (1, 2, 3)]).T
        position = np.array([number(place, axis) for axis in "xyz"])
        rotation = np.diag([1.0, -1.0, -1.0]) @ to_world.T
        names.append(name)
        parts.append(
            dict(
                matrix=np.array(
                    [[focal[0], skew, centre[0] - left], [0, focal[1], centre[1] - top], [0, 0, 1]]
                ),
                distortion=[number(lens, k) / 64 if lens.get(k) else 0.0 for k in keys],
                rotation=rotation,
                translation=-rotation @ position,
                size=[right - left + 1, bottom - top + 1],
            )
        )
    return _build(path, names, parts)


def read_dannce(path: Path, size: Sequence[int] | None = None) -> Calibration:
    """Reads a DANNCE, Label3D or Rat7M `.mat` (MATLAB's row-vector convention).

    DANNCE and Label3D have `params` and perhaps `camnames`, Rat7M's `mocap-*.mat` has `cameras`
    with a field for each camera, whose name is taken in lower case as the videos have it. None
    holds the size of the images: without `size` (width, height) it is taken to be that whose centre
    is the principal point, and the result says so.
    """
    path = pathlib.Path(path)
    try:
        content = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # loadmat has no error of its own: damage makes it raise a dozen
        raise CalibrationError(f"{path} cannot be read as MATLAB 5 file: {error!r}") from error
    fields = ("K", "RDistort", "TDistort", "r", "t")
    if "params" in content:
        entries = list(np.atleast_1d(content["params"]))
        given = content.get("camnames", [f"Camera{i + 1}" for i in range(len(entries))])
        names = [str(name) for name in np.atleast_1d(given)]
    elif hasattr(content.get("cameras"), "_fieldnames"):
        fields = ("IntrinsicMatrix", "RadialDistortion", "TangentialDistortion", "rotationMatrix",
                  "translationVector")  # fmt: skip
        given = sorted(content["cameras"]._fieldnames)
        entries = [getattr(content["cameras"], name) for name in given]
        names = [name.lower() for name in given]
    else:
        raise CalibrationError(f"{path} has no 'params' and no 'cameras', it has {sorted(content)}")
    try:
        parts = [_dannce_camera(entry, fields, size) for entry in entries]
    except AttributeError as error:
        raise CalibrationError(f"{path}: a camera lacks a field: {error}") from error
    except (IndexError, TypeError, ValueError) as error:
        raise CalibrationError(f"{path}: a camera has a field of another form: {error}") from error
    return _build(path, names, parts, size is not None)


def _guess(matrix: np.ndarray) -> np.ndarray:
    """Size (width, height) of the image whose centre is the principal point."""
    return np.maximum(1.0, np.round(2 * matrix[:2, 2] + 1))


def _dannce_camera(entry: Any, fields: Sequence[str], size: Sequence[int] | None) -> dict[str, Any]:
    """One camera for `_build`; `fields` are the names of K, lens (twice), rotation, translation."""
    numbers = (np.asarray(getattr(entry, name), float) for name in fields)
    inner, radial, tangential, turn, shift = numbers
    matrix, radial, tangential = inner.T, np.ravel(radial), np.ravel(tangential)
    # MATLAB counts pixels from 1; files made by DANNCE's own tools keep OpenCV's origin
    third = radial[2:3] if len(radial) > 2 else np.zeros(1)
    return dict(
        matrix=matrix,
        distortion=np.concatenate([radial[:2], tangential[:2], third]),
        rotation=turn.T,
        translation=np.ravel(shift),
        size=size if size is not None else _guess(matrix),
    )


def write_dannce(path: Path, calibration: Calibration) -> None:
    """Writes `params` and `camnames` as DANNCE reads them."""
    entries = np.empty((len(calibration.names), 1), object)
    for index in range(len(calibration.names)):
        camera = calibration.cameras[index]
        if bool(camera.fisheye):
            raise CalibrationError(f"{path}: DANNCE's format has no fisheye lens")
        k = np.asarray(camera.distortion, float)
        entries[index, 0] = {
            "K": np.asarray(camera.matrix, float).T,
            "r": np.asarray(camera.rotation, float).T,
            "t": np.asarray(camera.translation, float)[None],
            "RDistort": k[[0, 1, 4]][None],
            "TDistort": k[[2, 3]][None],
        }
    names = np.array(calibration.names, object)[:, None]
    scipy.io.savemat(pathlib.Path(path), {"params": entries, "camnames": names})


class _OpenCvLoader(yaml.SafeLoader):
    """YAML with OpenCV's matrix tag; everything else as in safe YAML."""


def _matrix(loader: yaml.SafeLoader, node: yaml.MappingNode) -> np.ndarray:
    value = loader.construct_mapping(node, deep=True)
    return np.asarray(value["data"], float).reshape(value["rows"], value["cols"])


_OpenCvLoader.add_constructor("tag:yaml.org,2002:opencv-matrix", _matrix)


def read_jarvis(folder: Path, size: Sequence[int] | None = None) -> Calibration:
    """Reads a folder of JARVIS files NAME.yaml (OpenCV FileStorage, transposed matrices).

    The files do not hold the size of the images: see `read_dannce`.
    """
    folder = pathlib.Path(folder)
    names, parts = [], []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            text = re.sub(r"\A%YAML[^\n]*\n(---\n)?", "", path.read_text(encoding="utf-8"))
            nodes: dict[str, Any] = yaml.load(text, _OpenCvLoader)  # noqa: S506  (a safe loader)
            matrix = nodes["intrinsicMatrix"].T
            parts.append(
                dict(
                    matrix=matrix,
                    distortion=nodes["distortionCoefficients"],
                    rotation=nodes["R"].T,
                    translation=nodes["T"],
                    size=size if size is not None else _guess(matrix),
                )
            )
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise CalibrationError(f"{path} is no JARVIS calibration: {error!r}") from error
        names.append(path.stem)
    return _build(folder, names, parts, size is not None)


_READERS: tuple[tuple[tuple[str, ...], Callable[[Path], Calibration]], ...] = (
    ((".toml",), read_toml),
    ((".qca.txt", ".qca"), read_qualisys),
    ((".mat",), read_dannce),
)
