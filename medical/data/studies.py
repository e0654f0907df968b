"""A table of studies (CSV, one row for each image), and splits that keep patients whole."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from common import datasets
from medical.data import dicom


class StudyError(ValueError):
    """A table of studies is not usable; the message names file, row and column."""


class PatientLeakError(ValueError):
    """A patient occurs in more than one part of a split."""


@dataclasses.dataclass(frozen=True)
class Studies:
    """Images with what the table says of them.

    Attributes:
      images: float32 ``[n, size, size, 1]`` in [-1, 1].
      labels: int32 ``[n]``, index into `classes`.
      patients: ``[n]`` identifiers.
      files: ``[n]`` as in the table.
      classes: names of the classes.
      bad: (file, reason) of images that could not be read and are left out.
    """

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    files: tuple[str, ...]
    classes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]


def read(
    table: str | os.PathLike[str],
    size: int,
    *,
    file: str = "file",
    patient: str = "patient",
    label: str = "label",
    classes: Sequence[str] | None = None,
) -> Studies:
    """Reads a table and its images.

    Args:
      table: CSV file with a header; paths in it are relative to its folder.
      size: side of the images in pixels; they are padded to squares and resized.
      file: column of the path: `.dcm` (or no suffix) is DICOM, everything else an 8-bit image.
      patient: column of the patient's identifier.
      label: column of the class.
      classes: known classes in order. None: those of the table, sorted.

    Raises:
      FileNotFoundError: there is no such table.
      StudyError: a column or a value is missing, a class is unknown, or no image can be read.
    """
    table = pathlib.Path(table)
    with open(table, newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        names = reader.fieldnames or []
        missing = [name for name in (file, patient, label) if name not in names]
        if missing:
            raise StudyError(f"{table}: no column {missing[0]!r}, it has {', '.join(names)}")
        rows = list(reader)
    if not rows:
        raise StudyError(f"{table}: no rows")
    for number, row in enumerate(rows, 2):
        for column in (file, patient, label):
            value = (row[column] or "").strip()
            if not value or value.lower() in ("nan", "na", "none"):
                raise StudyError(f"{table}, line {number}: column {column!r} is {row[column]!r}")
    known = tuple(sorted({row[label] for row in rows})) if classes is None else tuple(classes)
    for number, row in enumerate(rows, 2):
        if row[label] not in known:
            raise StudyError(
                f"{table}, line {number}: class {row[label]!r} is unknown; known: "
                f"{', '.join(known)}"
            )
    images, kept, bad = [], [], []
    for row in rows:
        path = table.parent / row[file]
        try:
            images.append(square(load(path), size))
        except datasets.IMAGE_ERRORS as error:
            bad.append((row[file], f"{type(error).__name__}: {error}"))
            continue
        kept.append(row)
    if not images:
        raise StudyError(f"{table}: none of {len(rows)} images can be read; first: {bad[0]}")
    return Studies(
        np.stack(images)[..., None] * 2 - 1,
        np.array([known.index(row[label]) for row in kept], np.int32),
        np.array([row[patient] for row in kept]),
        tuple(row[file] for row in kept),
        known,
        tuple(bad),
    )


def square(image: np.ndarray, size: int) -> np.ndarray:
    """An image ``[h, w]`` in [0, 1], padded with its lowest value to a square, at another size."""
    height, width = image.shape
    side = max(height, width)
    padded = np.full((side, side), image.min(), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = image
    resized = Image.fromarray(padded).resize((size, size), Image.Resampling.BOX)
    return np.asarray(resized, np.float32)


def split(
    patients: np.ndarray, fractions: Mapping[str, float], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Rows of each part, with every patient in one part only.

    Args:
      patients: ``[n]`` identifiers.
      fractions: name to share of the *patients*; they must sum to 1.
      rng: source of the order of patients.

    Returns:
      Name to sorted row numbers.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) <= 0:
        raise ValueError(f"fractions must be positive and sum to 1, got {dict(fractions)}")
    names = rng.permutation(np.unique(patients))
    edges = np.round(np.cumsum([0, *fractions.values()]) * len(names)).astype(int)
    parts = {}
    for name, low, high in zip(fractions, edges[:-1], edges[1:], strict=True):
        if low == high:
            raise ValueError(f"{len(names)} patients are too few for the part {name!r}")
        parts[name] = np.flatnonzero(np.isin(patients, names[low:high]))
    return parts


def check_disjoint(parts: Mapping[str, np.ndarray]) -> None:
    """Refuses parts (name to the patients of their rows) that share a patient.

    Raises:
      PatientLeakError: with the two parts, the number of shared patients and one of them.
    """
    names = list(parts)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(parts[first], parts[second])
            if len(shared):
                raise PatientLeakError(
                    f"{len(shared)} patients are in both {first!r} and {second!r}, for example "
                    f"{shared[0]!r}: split by patient, not by image"
                )


def load(path: pathlib.Path) -> np.ndarray:
    """One image as float32 ``[h, w]`` in [0, 1]: `.dcm` (or no suffix) is DICOM, else 8 bits."""
    if path.suffix.lower() in (".dcm", ""):
        return dicom.read(path).image
    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"{path}: mode {opened.mode} has more than 8 bits, scale unknown")
        return np.asarray(opened.convert("L"), np.float32) / 255
