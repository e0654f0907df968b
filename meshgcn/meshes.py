"""Triangle meshes: the container, what is wrong with a bad one, and unions of several."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

__all__ = [
    "FlippedFacesError",
    "Mesh",
    "MeshError",
    "MissingSurfaceError",
    "NonFiniteError",
    "NonManifoldError",
    "TopologyError",
    "VertexCountError",
    "check",
    "check_same_topology",
    "union",
]


class MeshError(ValueError):
    """Something is wrong with a surface; each kind has its own class."""


class MissingSurfaceError(MeshError):
    """A file of a hemisphere or structure does not exist."""


class VertexCountError(MeshError):
    """Not as many vertices or values as the template has."""


class TopologyError(MeshError):
    """Faces differ from the template's, or name vertices that do not exist."""


class NonManifoldError(MeshError):
    """An edge belongs to more than two faces, or a face has no area by its indices."""


class FlippedFacesError(MeshError):
    """Neighbouring faces disagree about which side is outside, or all point inwards."""


class NonFiniteError(MeshError):
    """A coordinate or a value is NaN or infinite."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh, or several disjoint ones.

    Attributes:
      vertices: float64 `[vertices, 3]`, millimetres.
      faces: int32 `[faces, 3]`, counter-clockwise seen from outside.
      structures: name and number of vertices of each part, in order.
    """

    vertices: np.ndarray
    faces: np.ndarray
    structures: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        vertices = np.asarray(self.vertices, np.float64)
        faces = np.asarray(self.faces, np.int32)
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise MeshError(f"vertices need shape [vertices, 3], got {vertices.shape}")
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise MeshError(f"faces need shape [faces, 3], got {faces.shape}")
        structures = tuple((str(n), int(c)) for n, c in self.structures)
        structures = structures or (("surface", len(vertices)),)
        if sum(count for _, count in structures) != len(vertices):
            raise VertexCountError(f"structures {structures} for {len(vertices)} vertices")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)
        object.__setattr__(self, "structures", structures)

    def __len__(self) -> int:
        return len(self.vertices)

    def part(self, name: str) -> slice:
        """The vertices of a structure.

        Raises:
          KeyError: no structure of this name.
        """
        start = 0
        for structure, count in self.structures:
            if structure == name:
                return slice(start, start + count)
            start += count
        raise KeyError(f"no structure {name!r}; there are {[n for n, _ in self.structures]}")

    def split(self) -> list["Mesh"]:
        """The structures as meshes of their own, in order; inverse of `union`."""
        parts = []
        for name, count in self.structures:
            where = self.part(name)
            inside = (self.faces[:, 0] >= where.start) & (self.faces[:, 0] < where.stop)
            faces = self.faces[inside] - where.start
            parts.append(Mesh(self.vertices[where], faces, ((name, count),)))
        return parts

    def labels(self) -> np.ndarray:
        """Number of the structure of each vertex, int32 `[vertices]`."""
        counts = [count for _, count in self.structures]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def edges(self) -> np.ndarray:
        """Each undirected edge once, int32 `[edges, 2]`, smaller vertex first, sorted."""
        directed = np.concatenate(
            [self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]]
        )
        return np.unique(np.sort(directed, axis=1), axis=0)

    def euler(self) -> int:
        """Vertices - edges + faces: 2 for each closed surface without handles."""
        return len(self.vertices) - len(self.edges()) + len(self.faces)

    def normals(self) -> np.ndarray:
        """Unit normals of the vertices, weighted by area, `[vertices, 3]`."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        face = np.cross(b - a, c - a)
        total = np.zeros_like(self.vertices)
        for i in range(3):
            np.add.at(total, self.faces[:, i], face)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return total / np.where(length > 0, length, 1.0)

    def areas(self) -> np.ndarray:
        """A third of the area of the faces around each vertex, mm^2, `[vertices]`."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        face = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
        total = np.zeros(len(self.vertices))
        for i in range(3):
            np.add.at(total, self.faces[:, i], face / 3)
        return total

    def volume(self) -> float:
        """Signed enclosed volume of a closed mesh, mm^3; negative if the faces point inwards."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)

    def digest(self) -> str:
        """SHA-256 of the topology (faces and numbers of vertices), hexadecimal."""
        parts = [np.ascontiguousarray(self.faces).tobytes(), str(self.structures).encode()]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def union(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of several, without edges between them: its Laplacian is block-diagonal."""
    if not meshes:
        raise MeshError("no meshes to unite")
    offsets = np.cumsum([0, *(len(mesh) for mesh in meshes)])
    structures = tuple(part for mesh in meshes for part in mesh.structures)
    names = [name for name, _ in structures]
    if len(set(names)) != len(names):
        raise MeshError(f"structures need different names, got {names}")
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    return Mesh(np.concatenate([m.vertices for m in meshes]), np.concatenate(faces), structures)


def check(mesh: Mesh, name: str = "mesh") -> None:
    """Raises if the mesh is no consistently oriented manifold with finite coordinates.

    Borders (edges of one face) are allowed; the orientation of a whole is judged where it is
    closed.

    Args:
      mesh: one or several structures.
      name: what messages call it, for example the file.

    Raises:
      NonFiniteError, TopologyError, NonManifoldError, FlippedFacesError: see there.
    """
    bad = ~np.isfinite(mesh.vertices).all(axis=1)
    if bad.any():
        raise NonFiniteError(f"{name}: {bad.sum()} vertices not finite, first {np.argmax(bad)}")
    count = len(mesh)
    if len(mesh.faces) == 0:
        raise TopologyError(f"{name}: no faces")
    low, high = int(mesh.faces.min()), int(mesh.faces.max())
    if low < 0 or high >= count:
        raise TopologyError(f"{name}: faces name vertices {low} to {high}, there are {count}")
    a, b, c = mesh.faces.T
    repeated = (a == b) | (b == c) | (a == c)
    if repeated.any():
        raise NonManifoldError(
            f"{name}: {repeated.sum()} faces with a repeated vertex, first {np.argmax(repeated)}"
        )
    directed = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    undirected = np.sort(directed, axis=1).astype(np.int64) @ [count, 1]
    keys, uses = np.unique(undirected, return_counts=True)
    if (uses > 2).any():
        edge = divmod(int(keys[np.argmax(uses > 2)]), count)
        raise NonManifoldError(
            f"{name}: {(uses > 2).sum()} edges of more than two faces, first {edge}"
        )
    twice = np.unique(directed.astype(np.int64) @ [count, 1], return_counts=True)[1] > 1
    if twice.any():
        raise FlippedFacesError(f"{name}: {twice.sum()} edges whose two faces are turned opposite")
    for part in mesh.split():
        if len(part.faces) and 2 * len(part.edges()) == 3 * len(part.faces) and part.volume() < 0:
            raise FlippedFacesError(f"{name}: the faces of {part.structures[0][0]} point inwards")


def check_same_topology(mesh: Mesh, template: Mesh, name: str = "mesh") -> None:
    """Raises unless a mesh has the template's vertices one for one.

    Raises:
      VertexCountError: another number of vertices.
      TopologyError: other faces (their order counts, the corner that a face begins with does not).
    """
    if len(mesh) != len(template):
        raise VertexCountError(f"{name}: {len(mesh)} vertices, the template has {len(template)}")
    if mesh.faces.shape != template.faces.shape:
        raise TopologyError(
            f"{name}: {len(mesh.faces)} faces, the template has {len(template.faces)}"
        )
    different = (_rolled(mesh.faces) != _rolled(template.faces)).any(axis=1)
    if different.any():
        flipped = (_rolled(mesh.faces[:, ::-1]) == _rolled(template.faces)).all()
        if flipped:
            raise FlippedFacesError(f"{name}: all faces are turned opposite to the template's")
        raise TopologyError(
            f"{name}: {different.sum()} of {len(different)} faces differ from the template's, "
            f"first {np.argmax(different)}"
        )


def _rolled(faces: np.ndarray) -> np.ndarray:
    """Faces beginning with their smallest vertex."""
    first = np.argmin(faces, axis=1)
    return np.take_along_axis(faces, (first[:, None] + np.arange(3)) % 3, axis=1)
