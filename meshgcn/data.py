"""Real cohorts: a FreeSurfer subjects folder and a CSV of diagnoses, errors named per scan.

Values must lie on the template's vertices, as `recon-all -qcache` or `mri_surf2surf` write them
(`surf/lh.thickness.fwhm10.fsaverage.mgh`). Files on a finer member of the fsaverage family are cut
to the template's vertices, which come first in them. A scan that cannot be used is left out with
the reason; the rest is returned.
"""

import collections
import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from meshgcn import files
from meshgcn.meshes import (
    MeshError,
    NonFiniteError,
    VertexCountError,
    check,
    check_same_topology,
)
from meshgcn.templates import Template

__all__ = ["Excluded", "RealCohort", "TableError", "load", "read_table"]

HEMISPHERES = ("lh", "rh")
SURFACE = "surface:"


class TableError(ValueError):
    """The CSV of diagnoses cannot be used."""


@dataclasses.dataclass(frozen=True)
class Excluded:
    """A scan that was left out: its folder, the kind of error, and the message."""

    scan: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class RealCohort:
    """Scans that could be read.

    Attributes:
      values: float32 `[scans, vertices, measures]`.
      measures: the files' names; one of coordinates has three columns of values.
      subject: `[scans]` text; scans of one person have the same.
      scan: `[scans]` text, folder names.
      label: int32 `[scans]`, 1 for patients.
      excluded: what was left out, in the order of the table.
    """

    values: np.ndarray
    measures: tuple[str, ...]
    subject: np.ndarray
    scan: np.ndarray
    label: np.ndarray
    excluded: tuple[Excluded, ...]

    def summary(self) -> str:
        """One line: scans, people, classes, and how many were left out for which reason."""
        kinds = collections.Counter(item.kind for item in self.excluded)
        left = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
        people = len(set(self.subject.tolist()))
        return (
            f"{len(self.label)} scans of {people} people, {int(self.label.sum())} of patients; "
            f"left out: {left}"
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: folder of the scan, person, class."""

    scan: str
    subject: str
    label: int


def read_table(
    path: str | os.PathLike[str],
    classes: Mapping[str, int],
    subject: str = "subject",
    scan: str = "scan",
    diagnosis: str = "diagnosis",
) -> tuple[list[Row], list[Excluded]]:
    """Reads the CSV of scans.

    Args:
      path: CSV with a header.
      classes: diagnosis -> 0 or 1, for example `{"CN": 0, "AD": 1}`; others are left out.
      subject: column that names the person; scans of one person stay together in splits.
      scan: column with the scan's folder name; the subject's name where there is no such column.
      diagnosis: column of the diagnosis.

    Returns:
      (rows, excluded ones).

    Raises:
      TableError: no such file, a column is missing, or a folder stands in two lines.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise TableError(f"there is no file {path}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        lines = list(reader)
    missing = [name for name in (subject, diagnosis) if name not in columns]
    if missing:
        raise TableError(f"{path}: no column {missing[0]!r} among {', '.join(columns)}")
    folder = scan if scan in columns else subject
    rows, excluded, seen = [], [], set()
    for line in lines:
        name = (line[folder] or "").strip()
        if not name or name in seen:
            raise TableError(f"{path}: scan {name!r} is empty or stands in two lines")
        seen.add(name)
        found = (line[diagnosis] or "").strip()
        if found not in classes:
            reason = f"diagnosis {found!r} is none of {', '.join(classes)}"
            excluded.append(Excluded(name, "diagnosis", reason))
        else:
            rows.append(Row(name, (line[subject] or "").strip(), classes[found]))
    return rows, excluded


def load(
    folder: str | os.PathLike[str],
    table: str | os.PathLike[str],
    template: Template,
    patterns: Sequence[str] = ("{scan}/surf/{hemi}.thickness.fwhm10.fsaverage.mgh",),
    classes: Mapping[str, int] | None = None,
    columns: Mapping[str, str] | None = None,
) -> RealCohort:
    """Reads all scans of a table.

    Args:
      folder: FreeSurfer's SUBJECTS_DIR.
      table: CSV, see `read_table`.
      template: cortex of both hemispheres.
      patterns: file of each measure, with `{scan}` and `{hemi}` (lh, rh). `surface:` before a
        pattern reads coordinates, three measures, of a surface with the template's topology.
      classes: see `read_table`; CN and AD by default.
      columns: names of the table's columns, as keywords of `read_table`.

    Raises:
      TableError: see `read_table`; also if no scan is left or a class is empty.
    """
    rows, excluded = read_table(table, classes or {"CN": 0, "AD": 1}, **(columns or {}))
    kept, values = [], []
    for row in rows:
        try:
            values.append(_scan(pathlib.Path(folder), row.scan, template, patterns))
            kept.append(row)
        except MeshError as error:
            excluded.append(Excluded(row.scan, type(error).__name__, str(error)))
    labels = np.array([row.label for row in kept], np.int32)
    if len(set(labels.tolist())) < 2:
        first = f"; first: {excluded[0].reason}" if excluded else ""
        raise TableError(
            f"{table}: {len(kept)} usable scans of one class or none, {len(excluded)} left out"
            f"{first}"
        )
    return RealCohort(
        np.stack(values).astype(np.float32),
        tuple(pathlib.PurePath(p).name.replace("{hemi}.", "") for p in patterns),
        np.array([row.subject for row in kept]),
        np.array([row.scan for row in kept]),
        labels,
        tuple(excluded),
    )


def _scan(
    folder: pathlib.Path, scan: str, template: Template, patterns: Sequence[str]
) -> np.ndarray:
    """One scan's values `[vertices, measures]`; off the cortex they are 0."""
    columns = []
    for pattern in patterns:
        if pattern.startswith(SURFACE):
            columns.append(_coordinates(folder, scan, template, pattern.removeprefix(SURFACE)))
            continue
        values = np.zeros(len(template.mesh))
        for hemi in HEMISPHERES:
            path = folder / pattern.format(scan=scan, hemi=hemi)
            found, where = files.read_values(path), template.mesh.part(hemi)
            need = where.stop - where.start
            if len(found) != need and not _finer(len(found), need):
                raise VertexCountError(f"{path}: {len(found)} values, the template has {need}")
            values[where] = found[:need]
        cortex = template.labels >= 0
        bad = ~np.isfinite(values) & cortex
        if bad.any():
            raise NonFiniteError(
                f"{pattern.format(scan=scan, hemi='?h')}: {bad.sum()} cortical values are not "
                f"finite, first at vertex {np.argmax(bad)}"
            )
        columns.append(np.where(cortex, values, 0.0)[:, None])
    return np.concatenate(columns, axis=-1)


def _coordinates(folder: pathlib.Path, scan: str, template: Template, pattern: str) -> np.ndarray:
    """Coordinates of one scan on the template's topology, `[vertices, 3]`, mm."""
    found = np.zeros((len(template.mesh), 3))
    for part in template.mesh.split():
        hemi = part.structures[0][0]
        path = folder / pattern.format(scan=scan, hemi=hemi)
        mesh = files.read_surface(path, hemi)
        check_same_topology(mesh, part, str(path))
        check(mesh, str(path))
        found[template.mesh.part(hemi)] = mesh.vertices
    return found


def _finer(count: int, need: int) -> bool:
    """Whether `count` vertices are a subdivision of a template of `need` vertices."""
    while need < count:
        need = (need - 2) * 4 + 2
    return need == count
