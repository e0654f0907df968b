"""Legacy VTK files with a POLYDATA set, the usual form of a surface there (meshio has none of it).

Versions 3 to 5.1, ASCII or binary (big endian). Only points and polygons are taken.
"""

import re

import numpy as np

from meshgcn.meshes import MeshError

__all__ = ["is_polydata", "read_polydata"]

_TYPES = {
    "float": ">f4",
    "double": ">f8",
    "int": ">i4",
    "long": ">i8",
    "vtktypeint32": ">i4",
    "vtktypeint64": ">i8",
}
_HEADER = re.compile(
    rb"# vtk DataFile Version [^\n]*\n[^\n]*\n\s*(ASCII|BINARY)\s+DATASET\s+POLYDATA\s*?\n",
    re.IGNORECASE,
)


def is_polydata(content: bytes) -> bool:
    """Whether these bytes begin as such a file does."""
    return _HEADER.match(content) is not None


def read_polydata(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(vertices float64 `[n, 3]`, triangles int64 `[m, 3]`) of a file's bytes.

    Raises:
      MeshError: no points or triangles, other polygons, strips, or a type of numbers that is not
        of coordinates or indices.
      ValueError: the file ends early.
    """
    header = _HEADER.match(content)
    if header is None:
        raise MeshError("not a legacy VTK file with DATASET POLYDATA")
    reader = _Reader(content, header.end(), header[1].upper() == b"BINARY")
    points = faces = None
    while words := reader.words():
        kind = words[0].upper()
        if kind == "POINTS":
            points = reader.numbers(3 * int(words[1]), words[2]).reshape(-1, 3)
        elif kind in ("VERTICES", "LINES", "POLYGONS"):
            counts, ids = reader.cells(int(words[1]), int(words[2]))
            if kind == "POLYGONS":
                if len(counts) and (counts != 3).any():
                    raise MeshError(
                        f"holds polygons of {counts.max()} vertices, not only triangles"
                    )
                faces = ids.reshape(-1, 3)
        elif kind == "METADATA":
            reader.skip_paragraph()
        elif kind in ("POINT_DATA", "CELL_DATA"):
            break
        else:
            raise MeshError(f"holds {kind[:20]}, not only points and polygons")
    if points is None or faces is None or not len(faces):
        raise MeshError("holds no points" if points is None else "holds no triangles")
    return points.astype(np.float64), faces.astype(np.int64)


class _Reader:
    """A place in the bytes of a file."""

    def __init__(self, content: bytes, place: int, binary: bool) -> None:
        self._content, self._place, self._binary = content, place, binary

    def words(self) -> list[str]:
        """Words of the next line that is not blank; none at the end."""
        while self._place < len(self._content):
            line = self._line()
            if line.strip():
                return line.decode("latin-1").split()
        return []

    def numbers(self, count: int, kind: str) -> np.ndarray:
        """The next `count` numbers."""
        if kind.lower() not in _TYPES:
            raise MeshError(f"numbers of type {kind[:20]}; known: {', '.join(_TYPES)}")
        dtype = np.dtype(_TYPES[kind.lower()])
        if self._binary:
            found = np.frombuffer(self._content, dtype, count, self._place)
            self._place += found.nbytes
            return found
        parts = self._content[self._place :].split(None, count)
        if len(parts) < count:
            raise ValueError(f"ends after {len(parts)} of {count} numbers")
        self._place = len(self._content) - (len(parts[count]) if len(parts) > count else 0)
        return np.array(parts[:count]).astype(np.float64 if dtype.kind == "f" else np.int64)

    def cells(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """(vertices of each cell, all their indices), as before or since version 5."""
        start = self._place
        words = self.words()
        if words[:1] == ["OFFSETS"]:
            offsets = self.numbers(first, words[1])
            words = self.words()
            if words[:1] != ["CONNECTIVITY"]:
                raise MeshError("has no CONNECTIVITY after OFFSETS")
            return np.diff(offsets), self.numbers(second, words[1])
        self._place = start
        packed = self.numbers(second, "int")
        if second == 4 * first and (packed[::4] == 3).all():
            return packed[::4], packed.reshape(-1, 4)[:, 1:].ravel()
        counts, ids, place = [], [], 0
        for _ in range(first):
            counts.append(int(packed[place]))
            ids.append(packed[place + 1 : place + 1 + counts[-1]])
            place += 1 + counts[-1]
        return np.array(counts, int), np.concatenate([np.zeros(0, int), *ids])

    def skip_paragraph(self) -> None:
        """Goes behind the next blank line."""
        while self._place < len(self._content) and self._line().strip():
            pass

    def _line(self) -> bytes:
        end = self._content.find(b"\n", self._place)
        end = len(self._content) if end < 0 else end
        line, self._place = self._content[self._place : end], end + 1
        return line
