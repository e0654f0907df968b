"""Keypoints as files that other tools read: anipose CSV, sleap-anipose HDF5, DANNCE .mat."""

import csv
import io
import os
import pathlib

import numpy as np
import scipy.io

from common.storage import write_whole

Path = str | os.PathLike[str]


def _check(points: np.ndarray, names: tuple[str, ...]) -> None:
    if points.ndim != 3 or points.shape[1:] != (len(names), 3):
        raise ValueError(f"points have shape {points.shape}, expected [frames, {len(names)}, 3]")


def anipose_csv(
    path: Path,
    points: np.ndarray,
    names: tuple[str, ...],
    confidence: np.ndarray,
    error: np.ndarray,
    cameras: np.ndarray,
) -> None:
    """Writes anipose's 3-D CSV (read by movement and keypoint-moseq).

    Args:
        path: file.
        points: `[frames, keypoints, 3]`, world units.
        names: of the keypoints.
        confidence: `[frames, keypoints]`, column `_score`.
        error: `[frames, keypoints]`, column `_error`; here the standard deviation of the heat map
            in world units, since nothing is reprojected onto detections.
        cameras: number of views used in each frame, `[frames]`.
    """
    _check(points, names)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = [f"{n}_{c}" for n in names for c in ("x", "y", "z", "error", "ncams", "score")]
    frame = [f"M_{i}{j}" for i in range(3) for j in range(3)] + [f"center_{i}" for i in range(3)]
    writer.writerow([*header, *frame, "fnum"])
    fixed = [*np.eye(3).ravel().tolist(), 0.0, 0.0, 0.0]
    for index in range(len(points)):
        row: list[float] = []
        for k in range(len(names)):
            row += [*points[index, k].tolist(), float(error[index, k]), int(cameras[index]),
                    float(confidence[index, k])]  # fmt: skip
        writer.writerow([*row, *fixed, index])
    write_whole(pathlib.Path(path), text.getvalue().encode())


def sleap_hdf5(path: Path, points: np.ndarray, names: tuple[str, ...], score: np.ndarray) -> None:
    """Writes sleap-anipose's HDF5: `tracks` `[frames, 1, keypoints, 3]`, `point_scores`, names.

    Raises:
        ModuleNotFoundError: h5py is not installed (extra `keypoints`).
    """
    import h5py

    _check(points, names)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("tracks", data=points[:, None].astype(np.float64))
        file.create_dataset("point_scores", data=score[:, None].astype(np.float64))
        file.create_dataset("node_names", data=np.asarray(names, dtype="S"))
    write_whole(pathlib.Path(path), buffer.getvalue())


def dannce_mat(path: Path, points: np.ndarray, score: np.ndarray) -> None:
    """Writes DANNCE's prediction file: `pred` `[frames, 3, keypoints]`, `p_max`, `sampleID`."""
    _check(points, tuple(map(str, range(points.shape[1]))))
    buffer = io.BytesIO()
    content = {
        "pred": points.transpose(0, 2, 1),
        "p_max": np.asarray(score, float),
        "sampleID": np.arange(len(points), dtype=float)[None],
    }
    scipy.io.savemat(buffer, content)
    write_whole(pathlib.Path(path), buffer.getvalue())
