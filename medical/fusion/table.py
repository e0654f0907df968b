"""A user's own patients: one CSV row each, with the image's file and the clinical variables."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from common import datasets
from medical.data import contrast as contrasts
from medical.data import studies
from medical.data.studies import ABSENT, PARTS, StudyError


@dataclasses.dataclass(frozen=True)
class Patients:
    """Rows of a table.

    Attributes:
      images: float32 ``[n, size, size, 1]`` in [-1, 1]; -1 where there is none.
      columns: variable to its values ``[n]``, numbers (NaN: absent) or objects (None: absent).
      image: bool ``[n]``, whether there is an image; `clinical` whether any variable is known.
      labels: int32 ``[n]``.
      patients: ``[n]`` identifiers.
      parts: ``[n]`` "train", "validation" or "test"; None if the table does not say.
      bad: (file, reason) of images that could not be read; their rows count as without image.
    """

    images: np.ndarray
    columns: dict[str, np.ndarray]
    image: np.ndarray
    clinical: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    parts: np.ndarray | None
    bad: tuple[tuple[str, str], ...]


def read(
    table: str | os.PathLike[str],
    size: int,
    classes: Sequence[str],
    *,
    file: str = "file",
    patient: str = "patient",
    label: str = "level",
    part: str = "",
    names: Sequence[str] = (),
    contrast: str = "none",
) -> Patients:
    """Reads a table and its images.

    Args:
      table: CSV file with a header; paths in it are relative to its folder.
      size: side of the images in pixels; they are padded to squares and resized.
      classes: levels in order.
      file: column of the image's path; an empty cell is a patient without image.
      patient: column of the patient's identifier.
      label: column of the level.
      part: column that says "train", "validation" or "test"; empty for a table without.
      names: columns of the clinical variables; all further columns if empty. A variable is a number
        if all its cells are; empty cells (also nan, na, none) are absent. A row in which all are
        absent is a patient without clinical variables.
      contrast: see `medical.data.contrast`.

    Raises:
      FileNotFoundError: there is no such table.
      StudyError: a column or a value is missing, a level or part is unknown, a file belongs to two
        patients, a row has neither image nor variables.
    """
    table = pathlib.Path(table)
    header, rows = studies.read_rows(table)
    own = [file, patient, label, *([part] if part else [])]
    chosen = list(names) or [name for name in header if name not in own]
    missing = [name for name in (*own, *chosen) if name not in header]
    if missing:
        raise StudyError(f"{table}: no column {missing[0]!r}, it has {', '.join(header)}")
    if not rows or not chosen:
        raise StudyError(f"{table}: {len(rows)} rows, {len(chosen)} clinical variables")
    allowed = {label: tuple(classes), **({part: PARTS} if part else {})}
    for number, row in enumerate(rows, 2):
        for column in (patient, *allowed):
            if row[column].lower() in ABSENT:
                raise StudyError(f"{table}, line {number}: column {column!r} is {row[column]!r}")
        for column, known in allowed.items():
            if row[column] not in known:
                raise StudyError(f"{table}, line {number}: {column!r} is {row[column]!r}; known: "
                                 f"{', '.join(known)}")
    columns = {name: _column([row[name] for row in rows]) for name in chosen}
    clinical = np.any([[v is not None and v == v for v in values]
                       for values in columns.values()], axis=0)
    files = ["" if row[file].lower() in ABSENT else row[file] for row in rows]
    studies.check_owners(table, files, [row[patient] for row in rows])
    images, has, bad = _images(table.parent, files, size, contrast)
    for number, (picture, known) in enumerate(zip(has, clinical, strict=True), 2):
        if not picture and not known:
            raise StudyError(f"{table}, line {number}: neither an image nor clinical variables"
                             + (f"; first unreadable image: {bad[0]}" if bad else ""))
    return Patients(
        images, columns, has, clinical,
        np.array([tuple(classes).index(row[label]) for row in rows], np.int32),
        np.array([row[patient] for row in rows]),
        np.array([row[part] for row in rows]) if part else None, bad)


def _column(cells: Sequence[str]) -> np.ndarray:
    """Numbers if all cells that are not absent are numbers, else categories."""
    try:
        return np.array([np.nan if c.lower() in ABSENT else float(c) for c in cells])
    except ValueError:
        return np.array([None if c.lower() in ABSENT else c for c in cells], object)


def _images(
    folder: pathlib.Path, files: Sequence[str], size: int, contrast: str
) -> tuple[np.ndarray, np.ndarray, tuple[tuple[str, str], ...]]:
    images = np.full((len(files), size, size, 1), -1, np.float32)
    has, bad = np.zeros(len(files), bool), []
    for i, name in enumerate(files):
        if not name:
            continue
        try:
            image = contrasts.apply(studies.load(folder / name), contrast)
            images[i, ..., 0] = studies.square(image, size) * 2 - 1
            has[i] = True
        except datasets.IMAGE_ERRORS as error:
            bad.append((name, f"{type(error).__name__}: {error}"))
    return images, has, tuple(bad)
