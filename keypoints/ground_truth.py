"""Joints that were measured or labelled: what keypoints are compared with on a user's recording."""

import csv
import os
import pathlib

import numpy as np

Path = str | os.PathLike[str]


class GroundTruthError(ValueError):
    """A file of joints is damaged or does not fit; the message has its name."""


def read(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads joints of all frames; NaN where a joint is not known.

    Args:
        path: `.csv` with columns NAME_x, NAME_y, NAME_z (anipose's 3-D files, and `keypoints.csv`
            of a run; other columns are left out), or `.npy` `[frames, joints, 3]`.

    Returns:
        (float64 `[frames, joints, 3]` in the unit of the file, names of the joints).

    Raises:
        GroundTruthError: see the class.
        FileNotFoundError: there is no such file.
    """
    path = pathlib.Path(path)
    if path.suffix == ".npy":
        try:
            joints = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise GroundTruthError(f"{path} is no array: {error}") from error
        if joints.ndim != 3 or joints.shape[2] != 3 or joints.dtype.kind != "f":
            raise GroundTruthError(
                f"{path} must be float [frames, joints, 3], found {joints.dtype} {joints.shape}"
            )
        return joints.astype(float), tuple(f"joint{i}" for i in range(joints.shape[1]))
    if path.suffix != ".csv":
        raise GroundTruthError(f"{path}: unknown kind of file; known: .csv, .npy")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            columns = list(rows.fieldnames or ())
            names = [c[:-2] for c in columns if c.endswith("_x")]
            names = [n for n in names if f"{n}_y" in columns and f"{n}_z" in columns]
            if not names:
                raise GroundTruthError(f"{path} has no columns NAME_x, NAME_y, NAME_z")
            joints = np.asarray(
                [[[float(row[f"{n}_{axis}"] or "nan") for axis in "xyz"] for n in names]
                 for row in rows]
            )  # fmt: skip
        except GroundTruthError:
            raise
        except (TypeError, ValueError, csv.Error) as error:
            raise GroundTruthError(f"{path}, line {rows.line_num}: {error}") from error
    if not len(joints):
        raise GroundTruthError(f"{path} has no rows")
    return joints, tuple(names)
