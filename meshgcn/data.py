"""Real cohorts: a FreeSurfer subjects folder and a CSV of diagnoses, errors named per scan.

Values must lie on the template's vertices, as `recon-all -qcache` or `mri_surf2surf` write them
(`surf/lh.thickness.fwhm10.fsaverage.mgh`). Files on a finer member of the fsaverage family are cut
to the template's vertices, which come first in them. A scan that cannot be used is left out with
the reason; the rest is returned.
"""

import collections
import csv
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from meshgcn import files
from meshgcn.meshes import (
    Mesh,
    MeshError,
    NonFiniteError,
    VertexCountError,
    check,
    check_same_topology,
)
from meshgcn.splits import ROLES, OverlapError
from meshgcn.templates import Template

__all__ = [
    "SURFACE", "Excluded", "RealCohort", "Source", "TableError", "fingerprint", "load",
    "read_table",
]  # fmt: skip

SURFACE = "surface:"
THICKNESS = "{scan}/surf/{hemi}.thickness.fwhm10.fsaverage.mgh"
CLASSES = {"CN": 0, "AD": 1}


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
      excluded: what was left out: first what the table says, then what the files say.
      roles: int8 `[scans]`, the table's split as an index into `meshgcn.splits.ROLES`; or None.
    """

    values: np.ndarray
    measures: tuple[str, ...]
    subject: np.ndarray
    scan: np.ndarray
    label: np.ndarray
    excluded: tuple[Excluded, ...]
    roles: np.ndarray | None = None

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
    """A line of the table: folder of the scan, person, class, part of the split (-1: none)."""

    scan: str
    subject: str
    label: int
    role: int = -1


def read_table(
    path: str | os.PathLike[str],
    classes: Mapping[str, int],
    subject: str = "subject",
    scan: str = "scan",
    diagnosis: str = "diagnosis",
    split: str = "",
) -> tuple[list[Row], list[Excluded]]:
    """Reads the CSV of scans. Lines that cannot be used, one by one, are left out with the reason.

    Args:
      path: CSV with a header.
      classes: diagnosis -> 0 or 1, for example `{"CN": 0, "AD": 1}`; others are left out.
      subject: column that names the person; scans of one person stay together in splits.
      scan: column with the scan's folder name; the subject's name where there is no such column.
      diagnosis: column of the diagnosis.
      split: column with one of `meshgcn.splits.ROLES`; "" if there is none. All scans of a person
        who is in two parts are left out.

    Returns:
      (rows, excluded ones).

    Raises:
      TableError: no such file, no text, a column is missing, or a folder stands in two lines.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise TableError(f"there is no file {path}")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a CSV file in UTF-8: {error}") from error
    needed = (subject, diagnosis, *([split] if split else []))
    missing = [name for name in needed if name not in columns]
    if missing:
        raise TableError(f"{path}: no column {missing[0]!r} among {', '.join(columns)}")
    folder = scan if scan in columns else subject
    rows, excluded, seen = [], [], set()
    for line in lines:
        name = (line[folder] or "").strip()
        if not name or name in seen:
            raise TableError(f"{path}: scan {name!r} is empty or stands in two lines")
        seen.add(name)
        person, found = (line[subject] or "").strip(), (line[diagnosis] or "").strip()
        part = (line[split] or "").strip() if split else ""
        if not person:
            excluded.append(Excluded(name, "subject", f"column {subject!r} is empty"))
        elif found not in classes:
            reason = f"diagnosis {found!r} is none of {', '.join(classes)}"
            excluded.append(Excluded(name, "diagnosis", reason))
        elif split and part not in ROLES:
            reason = f"split {part!r} is none of {', '.join(ROLES)}"
            excluded.append(Excluded(name, "split", reason))
        else:
            role = ROLES.index(part) if split else -1
            rows.append(Row(name, person, classes[found], role))
    return _in_one_part(rows, excluded)


def _in_one_part(rows: list[Row], excluded: list[Excluded]) -> tuple[list[Row], list[Excluded]]:
    """Moves the scans of people who are in two parts of the split to those left out."""
    parts: dict[str, set[int]] = collections.defaultdict(set)
    for row in rows:
        parts[row.subject].add(row.role)
    both = {person: sorted(roles) for person, roles in parts.items() if len(roles) > 1}
    for row in rows:
        if row.subject in both:
            names = " and ".join(ROLES[role] for role in both[row.subject])
            reason = f"person {row.subject!r} is in {names}"
            excluded.append(Excluded(row.scan, OverlapError.__name__, reason))
    return [row for row in rows if row.subject not in both], excluded


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a user's scans are.

    Attributes:
      folder: FreeSurfer's SUBJECTS_DIR.
      table: CSV, see `read_table`.
      template: cortex of both hemispheres.
      patterns: file of each measure, with `{scan}` and `{hemi}` (lh, rh). `surface:` before a
        pattern reads coordinates, three measures, of a surface with the template's topology.
      classes: see `read_table`; CN and AD by default.
      columns: names of the table's columns, as keywords of `read_table`.
      bodies: where the template has subcortical bodies, the file of each measure of a body, with
        `{scan}` and `{structure}` (lh.hippocampus); as many as `patterns`.

    Raises:
      ValueError: `bodies` do not fit `patterns` and the template.
    """

    folder: str | os.PathLike[str]
    table: str | os.PathLike[str]
    template: Template
    patterns: Sequence[str] = (THICKNESS,)
    classes: Mapping[str, int] | None = None
    columns: Mapping[str, str] | None = None
    bodies: Sequence[str] = ()

    def __post_init__(self) -> None:
        there = len(self.template.bodies)
        need = len(self.patterns) if there else 0
        if len(self.bodies) != need:
            raise ValueError(
                f"{len(self.bodies)} patterns for {there} subcortical bodies, expected {need}"
            )
        for cortex, body in zip(self.patterns, self.bodies, strict=False):
            if cortex.startswith(SURFACE) != body.startswith(SURFACE):
                raise ValueError(f"{cortex!r} and {body!r}: one of values, the other of surfaces")

    def rows(self) -> tuple[list[Row], list[Excluded]]:
        """What the table says, see `read_table`."""
        return read_table(self.table, self.classes or CLASSES, **(self.columns or {}))

    def files(self, scan: str, index: int) -> Iterator[tuple[Mesh, pathlib.Path]]:
        """(structure of the template, file) of one measure of a scan."""
        for part in self.template.mesh.split():
            name = part.structures[0][0]
            patterns = self.bodies if name in self.template.bodies else self.patterns
            pattern = patterns[index].removeprefix(SURFACE)
            file = pattern.format(scan=scan, hemi=name, structure=name)
            yield part, pathlib.Path(self.folder) / file


def load(source: Source) -> RealCohort:
    """Reads all scans of a table.

    Raises:
      TableError: see `read_table`; also if no scan is left or a class is empty.
    """
    rows, excluded = source.rows()
    kept, values = [], []
    for row in rows:
        try:
            values.append(_scan(source, row.scan))
            kept.append(row)
        except MeshError as error:
            excluded.append(Excluded(row.scan, type(error).__name__, str(error)))
    labels = np.array([row.label for row in kept], np.int32)
    if len(set(labels.tolist())) < 2:
        first = f"; first: {excluded[0].reason}" if excluded else ""
        raise TableError(
            f"{source.table}: {len(kept)} usable scans of one class or none, {len(excluded)} left "
            f"out{first}"
        )
    return RealCohort(
        np.stack(values).astype(np.float32),
        tuple(pathlib.PurePath(p).name.replace("{hemi}.", "") for p in source.patterns),
        np.array([row.subject for row in kept]),
        np.array([row.scan for row in kept]),
        labels,
        tuple(excluded),
        np.array([row.role for row in kept], np.int8) if kept[0].role >= 0 else None,
    )


def fingerprint(source: Source) -> str:
    """Hexadecimal digest that changes with the table or a file of it (size and time of change).

    Errors are those of `read_table`.
    """
    rows, _ = source.rows()
    digest = hashlib.sha256(pathlib.Path(source.table).read_bytes())
    for row in rows:
        for index in range(len(source.patterns)):
            for _, path in source.files(row.scan, index):
                stamp = "none"
                if path.is_file():
                    status = path.stat()
                    stamp = f"{status.st_size} {status.st_mtime_ns}"
                digest.update(f"{path} {stamp}\n".encode())
    return digest.hexdigest()


def _scan(source: Source, scan: str) -> np.ndarray:
    """One scan's values `[vertices, measures]`; off the cortex they are 0."""
    columns, template = [], source.template
    inside = template.labels >= 0
    for index, pattern in enumerate(source.patterns):
        surface = pattern.startswith(SURFACE)
        values = np.zeros((len(template.mesh), 3 if surface else 1))
        for part, path in source.files(scan, index):
            where = template.mesh.part(part.structures[0][0])
            if surface:
                values[where] = _coordinates(path, part)
                continue
            found = _values(path, part, template)
            bad = ~np.isfinite(found) & inside[where]
            if bad.any():
                raise NonFiniteError(
                    f"{path}: {bad.sum()} cortical values are not finite, first at vertex "
                    f"{np.argmax(bad)}"
                )
            values[where, 0] = np.where(inside[where], found, 0.0)
        columns.append(values)
    return np.concatenate(columns, axis=-1)


def _values(path: pathlib.Path, part: Mesh, template: Template) -> np.ndarray:
    """One number for each vertex of a structure, `[vertices]`."""
    found, need = files.read_values(path), len(part)
    cut = template.nested and part.structures[0][0] not in template.bodies
    if len(found) != need and not (cut and _finer(len(found), need)):
        raise VertexCountError(f"{path}: {len(found)} values, the template has {need}")
    return found[:need]


def _coordinates(path: pathlib.Path, part: Mesh) -> np.ndarray:
    """Coordinates of one structure on the template's topology, `[vertices, 3]`, mm."""
    mesh = files.read_surface(path, part.structures[0][0])
    check(mesh, str(path))  # first: it says what is wrong where the topology is only different
    check_same_topology(mesh, part, str(path))
    return mesh.vertices


def _finer(count: int, need: int) -> bool:
    """Whether `count` vertices are a subdivision of a template of `need` vertices."""
    while need < count:
        need = (need - 2) * 4 + 2
    return need == count
