"""A table of studies (CSV, one row for each image), and splits that keep patients whole.

Cells are read without the spaces around them: "p1 " and "p1" are one patient.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from common import datasets
from medical.data import contrast as contrasts
from medical.data import dicom

ABSENT = ("", "nan", "na", "none")
PARTS = ("train", "validation", "test")
DICOM = (".dcm", ".dicom", ".dic", "")
"""Suffixes of files that are read as DICOM."""


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
      parts: ``[n]`` one of `PARTS`; None if the table does not say.
      bad: (file, reason) of images that could not be read and are left out.
    """

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    files: tuple[str, ...]
    classes: tuple[str, ...]
    parts: np.ndarray | None
    bad: tuple[tuple[str, str], ...]


def read(
    table: str | os.PathLike[str],
    size: int,
    *,
    file: str = "file",
    patient: str = "patient",
    label: str = "label",
    part: str = "",
    classes: Sequence[str] | None = None,
    contrast: str = "none",
) -> Studies:
    """Reads a table and its images.

    Args:
      table: CSV file with a header; paths in it are relative to its folder.
      size: side of the images in pixels; they are padded to squares and resized.
      file: column of the path: DICOM by its suffix (see `DICOM`), everything else 8-bit images.
      patient: column of the patient's identifier.
      label: column of the class.
      part: column that says "train", "validation" or "test"; empty for a table without.
      classes: known classes in order. None: those of the table, sorted.
      contrast: see `medical.data.contrast`.

    Raises:
      FileNotFoundError: there is no such table.
      StudyError: a column or a value is missing, a class or part is unknown, a file belongs to two
        patients, or no image can be read.
    """
    table = pathlib.Path(table)
    names, rows = read_rows(table)
    needed = [file, patient, label, *([part] if part else [])]
    missing = [name for name in needed if name not in names]
    if missing:
        raise StudyError(f"{table}: no column {missing[0]!r}, it has {', '.join(names)}")
    if not rows:
        raise StudyError(f"{table}: no rows")
    for number, row in enumerate(rows, 2):
        for column in needed:
            if row[column].lower() in ABSENT:
                raise StudyError(f"{table}, line {number}: column {column!r} is {row[column]!r}")
        if part and row[part] not in PARTS:
            raise StudyError(f"{table}, line {number}: {part!r} is {row[part]!r}; known: "
                             f"{', '.join(PARTS)}")
    check_owners(table, [row[file] for row in rows], [row[patient] for row in rows])
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
            images.append(square(contrasts.apply(load(path), contrast), size))
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
        np.array([row[part] for row in kept]) if part else None,
        tuple(bad),
    )


def read_rows(table: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns and the rows of a CSV file; absent cells are "".

    Raises:
      FileNotFoundError: there is no such table.
      StudyError: the file is not a CSV table in UTF-8.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            names = list(reader.fieldnames or [])
            rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{table}: not a CSV table in UTF-8: {error}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StudyError(f"{table}: two columns are called {twice[0]!r}")
    return names, rows


def check_owners(table: pathlib.Path, files: Sequence[str], patients: Sequence[str]) -> None:
    """Refuses an image of two patients: one of the names is wrong, and a split would leak.

    Raises:
      StudyError: with the file and both patients.
    """
    owner: dict[str, str] = {}
    for number, (name, patient) in enumerate(zip(files, patients, strict=True), 2):
        if name and owner.setdefault(name, patient) != patient:
            raise StudyError(f"{table}, line {number}: file {name!r} belongs to the patients "
                             f"{owner[name]!r} and {patient!r}")


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
    """One image as float32 ``[h, w]`` in [0, 1]: DICOM by its suffix (or none), else 8 bits."""
    if path.suffix.lower() in DICOM:
        return dicom.read(path).image
    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"{path}: mode {opened.mode} has more than 8 bits, scale unknown")
        return np.asarray(opened.convert("L"), np.float32) / 255
