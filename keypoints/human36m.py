"""Human3.6M: one subject of a copy that `h36m-fetch` has unpacked, with its calibration.

Ionescu, Papava, Olaru, Sminchisescu, "Human3.6M", TPAMI 2014. The folder of a subject holds
`calibration.toml` (aniposelib's form; cameras are named by their numbers, such as 54138969) and a
folder for each action with `annot.h5` and `imageSequence/CAMERA/img_FRAME.jpg`. The kept frames are
not evenly spaced in time. Cameras differ from subject to subject, and a recording here has one rig.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from keypoints import calibration as calibration_lib
from keypoints import recordings
from keypoints.calibration import Calibration
from keypoints.data import Recording
from keypoints.sources import RecordingError, Source

# 17 of the 32 joints, in the usual order, and the bones between them
JOINTS = {
    "ankle right": 3, "knee right": 2, "hip right": 1, "hip left": 6, "knee left": 7,
    "ankle left": 8, "pelvis": 0, "spine": 12, "neck": 13, "head": 15, "wrist right": 27,
    "elbow right": 26, "shoulder right": 25, "shoulder left": 17, "elbow left": 18,
    "wrist left": 19, "nose": 14,
}  # fmt: skip
BONES = (
    ("pelvis", "spine"), ("spine", "neck"), ("neck", "nose"), ("nose", "head"),
    *((a.format(side), b.format(side)) for side in ("left", "right") for a, b in (
        ("pelvis", "hip {}"), ("hip {}", "knee {}"), ("knee {}", "ankle {}"),
        ("neck", "shoulder {}"), ("shoulder {}", "elbow {}"), ("elbow {}", "wrist {}"))),
)  # fmt: skip
_AGREE = 30.0  # mm by which the cameras may differ over a joint in the world


def action(
    folder: pathlib.Path, rig: Calibration
) -> tuple[list[list[pathlib.Path]], np.ndarray]:
    """Images of all cameras and joints in the world, of frames that all cameras have.

    Args:
        folder: of the action.
        rig: the subject's cameras.

    Returns:
        (image files, one list a camera; joints in millimetres `[frames, 17, 3]`).

    Raises:
        RecordingError: something is missing, or the poses of two cameras differ in the world.
        ModuleNotFoundError: h5py is not installed (extra `keypoints`).
    """
    import h5py

    path = folder / "annot.h5"
    try:
        with h5py.File(path) as file:
            columns: dict[str, Any] = {key: np.asarray(file[key]) for key in ("camera", "frame")}
            local = np.asarray(file["pose/3d"], float)[:, list(JOINTS.values())]
    except (OSError, KeyError, IndexError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error
    names = [str(int(number)) for number in columns["camera"]]
    missing = [name for name in rig.names if name not in names]
    if missing:
        raise RecordingError(
            f"{path} has cameras {', '.join(sorted(set(names)))}, the calibration"
            f" {', '.join(rig.names)}"
        )
    rows: dict[tuple[str, int], int] = {
        (name, int(frame)): row
        for row, (name, frame) in enumerate(zip(names, columns["frame"], strict=True))
    }
    frames = sorted({frame for _, frame in rows})
    frames = [frame for frame in frames if all((name, frame) in rows for name in rig.names)]
    if not frames:
        raise RecordingError(f"{path}: no frame is there for all cameras")
    world = []
    for view, name in enumerate(rig.names):
        camera = rig.cameras[view]
        own = local[[rows[name, frame] for frame in frames]]
        world.append((own - np.asarray(camera.translation)) @ np.asarray(camera.rotation))
    apart = np.linalg.norm(np.stack(world) - world[0], axis=-1).mean(axis=(1, 2))
    if apart.max() > _AGREE:
        raise RecordingError(
            f"{path}: the poses of cameras {rig.names[0]} and {rig.names[int(apart.argmax())]} are"
            f" {apart.max():.0f} mm apart in the world: the calibration is of another subject"
        )
    files = [
        [folder / "imageSequence" / name / f"img_{frame:06d}.jpg" for frame in frames]
        for name in rig.names
    ]
    return files, np.mean(world, axis=0)


def load(config: ConfigDict) -> Recording:
    """One subject.

    Args:
        config: `path` (the subject's folder), perhaps `calibration`, `size`, `stride`, `motion` and
            `rate` (50; of the kept frames nominally).

    Raises:
        RecordingError: see `recordings` and `action`.
    """
    if not config.path:
        raise RecordingError("set config.data.path to the folder of a subject")
    root = pathlib.Path(config.path)
    rig = calibration_lib.read(config.calibration or root / "calibration.toml")
    folders = sorted(path.parent for path in root.glob("*/annot.h5"))
    if not folders:
        raise RecordingError(f"{root} has no folders with annot.h5")
    found = [action(folder, rig) for folder in folders]
    step = slice(None, None, config.stride)
    views = [
        Source(root / name, [file for files, _ in found for file in files[view][step]])
        for view, name in enumerate(rig.names)
    ]
    recording = recordings.read(views, rig, config.size, 1, config.motion, "mm", config.rate)
    sequence = np.repeat(
        np.arange(len(found), dtype=np.int32), [len(joints[step]) for _, joints in found])
    names = tuple(JOINTS)
    return dataclasses.replace(
        recording, rate=config.rate / config.stride, sequence=sequence,
        joints=np.concatenate([joints[step] for _, joints in found]), joint_names=names,
        bones=np.asarray([(names.index(a), names.index(b)) for a, b in BONES], np.int32),
    )  # fmt: skip
