"""Levels of coarser meshes, and the sparse matrices between them.

Subdivided icospheres (FreeSurfer's fsaverage family) are nested exactly: a coarser level is the
first vertices of the finer one, and every other vertex is the midpoint of one edge. Other meshes
are simplified by quadric edge collapses, whose record says which coarse vertex each fine one went
into. Both give a `Level` with the same three matrices; structures are never mixed.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

import fast_simplification
import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from common import storage
from meshgcn.meshes import Mesh, MeshError, union

__all__ = ["Level", "collapse", "levels", "nested"]


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """A coarse mesh and how it is reached from the finer one.

    Attributes:
      mesh: the coarse mesh.
      mean: `[coarse, fine]`, rows sum to 1: averages.
      select: `[coarse, fine]`, one 1 in each row: the fine vertex that stands for a coarse one.
      up: `[fine, coarse]`, rows sum to 1: linear interpolation.
    """

    mesh: Mesh
    mean: sp.csr_array
    select: sp.csr_array
    up: sp.csr_array


def levels(
    mesh: Mesh, depth: int, method: str = "auto", cache: pathlib.Path | None = None
) -> list[Level]:
    """`depth` successively coarser levels, each with about a quarter of the vertices.

    Args:
      mesh: the finest mesh; each of its structures is coarsened alone.
      depth: number of coarser levels.
      method: "nested", "collapse", or "auto": nested where a structure is, else collapse.
      cache: folder of results, under the digest of the mesh.

    Raises:
      MeshError: "nested" of a mesh that is not, or a mesh too small for `depth`.
      ValueError: another method.
    """
    if method not in ("auto", "nested", "collapse"):
        raise ValueError(f"method {method!r}: auto, nested or collapse")
    file = None
    if cache is not None:
        geometry = hashlib.sha256(mesh.vertices.tobytes()).hexdigest()
        text = f"{mesh.digest()} {geometry} {depth} {method}"
        cache.mkdir(parents=True, exist_ok=True)
        file = cache / f"levels-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
        if file.is_file():
            return _load(file)
    found: list[Level] = []
    for _ in range(depth):
        found.append(_join([_coarser(part, method) for part in mesh.split()]))
        mesh = found[-1].mesh
    if file is not None:
        _save(file, found)
    return found


def nested(mesh: Mesh) -> Level:
    """The next coarser level of one subdivided closed surface.

    Raises:
      MeshError: the mesh is not a once subdivided one with the coarse vertices first.
    """
    fine = len(mesh)
    coarse = (fine - 2) // 4 + 2
    edges = mesh.edges()
    if (fine - 2) % 4 or coarse < 4:
        raise MeshError(f"{fine} vertices are not 4 n - 6, so the mesh is not nested")
    parents = edges[(edges[:, 0] < coarse) & (edges[:, 1] >= coarse)]
    joined = edges[(edges[:, 0] < coarse) & (edges[:, 1] < coarse)]
    order = np.argsort(parents[:, 1], kind="stable")
    twice = np.repeat(np.arange(coarse, fine), 2)
    if len(joined) or len(parents) != len(twice) or (parents[order, 1] != twice).any():
        raise MeshError(f"the {fine - coarse} last vertices are not midpoints of edges of others")
    ends = parents[order, 0].reshape(-1, 2)
    centres = mesh.faces[(mesh.faces >= coarse).all(axis=1)] - coarse
    corners = [_common(ends[centres[:, i - 1]], ends[centres[:, i]]) for i in range(3)]
    faces = np.stack(corners, axis=1)
    if len(faces) * 4 != len(mesh.faces) or (faces < 0).any():
        raise MeshError("the faces are not those of a subdivided mesh")
    rows = np.concatenate([np.arange(coarse), twice])
    columns = np.concatenate([np.arange(coarse), ends.ravel()])
    values = np.concatenate([np.ones(coarse), np.full(2 * (fine - coarse), 0.5)])
    up = sp.csr_array(sp.coo_array((values, (rows, columns)), shape=(fine, coarse)))
    select = sp.csr_array(sp.eye_array(coarse, fine))
    name = mesh.structures[0][0]
    smaller = Mesh(mesh.vertices[:coarse], faces, ((name, coarse),))
    return Level(smaller, _normalised(sp.csr_array(up.T)), select, up)


def collapse(mesh: Mesh, fraction: float = 0.25) -> Level:
    """A coarser level of one surface by quadric edge collapses (fast-simplification).

    Raises:
      MeshError: nothing was collapsed, or the record does not reach every coarse vertex.
    """
    points = mesh.vertices.astype(np.float32)
    faces = mesh.faces.astype(np.int32)
    target = 1.0 - fraction
    _, _, collapses = fast_simplification.simplify(points, faces, target, return_collapses=True)
    points, faces, cluster = fast_simplification.replay_simplification(points, faces, collapses)
    fine, coarse = len(mesh), len(points)
    if not 3 < coarse < fine:
        raise MeshError(f"{fine} vertices could not be reduced to {fraction:g} of them")
    if len(cluster) != fine or len(np.unique(cluster)) != coarse:
        raise MeshError(f"the collapses do not map {fine} vertices onto {coarse}")
    name = mesh.structures[0][0]
    smaller = Mesh(points, faces, ((name, coarse),))
    ones = np.ones(fine)
    members = sp.coo_array((ones, (cluster, np.arange(fine))), shape=(coarse, fine))
    distance = np.linalg.norm(mesh.vertices - smaller.vertices[cluster], axis=1)
    order = np.lexsort((np.arange(fine), distance, cluster))
    nearest = order[np.unique(cluster[order], return_index=True)[1]]
    entries = (np.ones(coarse), (np.arange(coarse), nearest))
    select = sp.csr_array(sp.coo_array(entries, shape=(coarse, fine)))
    return Level(smaller, _normalised(sp.csr_array(members)), select, _project(mesh, smaller))


def _coarser(part: Mesh, method: str) -> Level:
    if method == "collapse":
        return collapse(part)
    try:
        return nested(part)
    except MeshError:
        if method == "nested":
            raise
        return collapse(part)


def _join(parts: list[Level]) -> Level:
    """One level of the levels of several structures."""
    block: Callable = lambda name: sp.csr_array(  # noqa: E731
        sp.block_diag([getattr(part, name) for part in parts], format="csr")
    )
    return Level(union([p.mesh for p in parts]), block("mean"), block("select"), block("up"))


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The vertex that is an end of both edges `[n, 2]`, or -1."""
    result = np.full(len(a), -1, np.int32)
    for i in range(2):
        for j in range(2):
            equal = a[:, i] == b[:, j]
            result[equal] = a[equal, i]
    return result


def _normalised(matrix: sp.csr_array) -> sp.csr_array:
    """Rows divided by their sums."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return sp.csr_array(sp.diags_array(1.0 / sums) @ matrix)


def _project(fine: Mesh, coarse: Mesh, near: int = 6) -> sp.csr_array:
    """Barycentric weights `[fine, coarse]` of the nearest point of the coarse mesh.

    Only triangles at the `near` nearest coarse vertices are candidates.
    """
    corner = coarse.faces.ravel()
    order = np.argsort(corner, kind="stable")
    starts = np.searchsorted(corner[order], np.arange(len(coarse) + 1))
    at_vertex = [order[starts[v] : starts[v + 1]] // 3 for v in range(len(coarse))]
    found = cKDTree(coarse.vertices).query(fine.vertices, k=min(near, len(coarse)))[1]
    rows = [np.unique(np.concatenate([at_vertex[v] for v in row])) for row in found]
    of = np.repeat(np.arange(len(fine)), [len(row) for row in rows])
    triangles = coarse.faces[np.concatenate(rows)]
    weights, distance = _nearest_in_triangle(fine.vertices[of], coarse.vertices[triangles])
    best = np.lexsort((distance, of))[np.searchsorted(of, np.arange(len(fine)))]
    values, columns = weights[best], triangles[best]
    entries = (values.ravel(), (np.repeat(np.arange(len(fine)), 3), columns.ravel()))
    matrix = sp.csr_array(sp.coo_array(entries, shape=(len(fine), len(coarse))))
    matrix.eliminate_zeros()
    return _normalised(matrix)


def _nearest_in_triangle(
    points: np.ndarray, triangles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[n, 3]` and squared distance `[n]` of the nearest points in triangles `[n, 3, 3]`.

    The best of the plane's foot, where it is inside, and the nearest points of the three edges.
    """
    a, b, c = (triangles[:, i] for i in range(3))
    u, v, w = b - a, c - a, points - a
    uu, uv, vv = ((x * y).sum(1) for x, y in ((u, u), (u, v), (v, v)))
    wu, wv = (w * u).sum(1), (w * v).sum(1)
    area = np.maximum(uu * vv - uv * uv, 1e-30)
    second, third = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    inside = np.stack([1 - second - third, second, third], axis=1)
    within: np.ndarray = np.all(inside >= 0, axis=1)  # type: ignore[assignment]
    candidates = [np.where(within[:, None], inside, [1.0, 0.0, 0.0])]
    for i in range(3):
        j = (i + 1) % 3
        start, along = triangles[:, i], triangles[:, j] - triangles[:, i]
        length = np.maximum((along * along).sum(1), 1e-30)
        t = np.clip(((points - start) * along).sum(1) / length, 0, 1)
        edge = np.zeros_like(inside)
        edge[:, i], edge[:, j] = 1 - t, t
        candidates.append(edge)
    weights = np.stack(candidates)
    places = np.einsum("knc,ncd->knd", weights, triangles)
    distance = ((places - points) ** 2).sum(-1)
    best = np.argmin(distance, axis=0)
    rows = np.arange(len(points))
    return weights[best, rows], distance[best, rows]


def _save(file: pathlib.Path, found: list[Level]) -> None:
    arrays: dict[str, np.ndarray] = {}
    header = []
    for index, level in enumerate(found):
        arrays |= {f"{index}/vertices": level.mesh.vertices, f"{index}/faces": level.mesh.faces}
        for name in ("mean", "select", "up"):
            matrix = getattr(level, name)
            for part in ("data", "indices", "indptr"):
                arrays[f"{index}/{name}/{part}"] = getattr(matrix, part)
        header.append([list(part) for part in level.mesh.structures])
    storage.save_arrays(file, arrays, {"structures": header})


def _load(file: pathlib.Path) -> list[Level]:
    arrays, header = storage.load_arrays(file)
    found = []
    for index, structures in enumerate(header["structures"]):
        mesh = Mesh(
            arrays[f"{index}/vertices"],
            arrays[f"{index}/faces"],
            tuple((name, count) for name, count in structures),
        )
        fine = len(arrays[f"{index}/up/indptr"]) - 1
        shapes = {"mean": (len(mesh), fine), "select": (len(mesh), fine), "up": (fine, len(mesh))}
        matrices = {
            name: sp.csr_array(
                tuple(arrays[f"{index}/{name}/{part}"] for part in ("data", "indices", "indptr")),
                shape=shape,
            )
            for name, shape in shapes.items()
        }
        found.append(Level(mesh, **matrices))
    return found
