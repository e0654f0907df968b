"""Icospheres, boxes and small hierarchies for the tests."""

import numpy as np

from meshgcn.meshes import Mesh, union

_PHI = (1 + 5**0.5) / 2
_CORNERS = [
    (-1, _PHI, 0), (1, _PHI, 0), (-1, -_PHI, 0), (1, -_PHI, 0), (0, -1, _PHI), (0, 1, _PHI),
    (0, -1, -_PHI), (0, 1, -_PHI), (_PHI, 0, -1), (_PHI, 0, 1), (-_PHI, 0, -1), (-_PHI, 0, 1),
]  # fmt: skip
_FACES = [
    (0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4),
    (11, 10, 2), (10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9),
    (4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1),
]  # fmt: skip


def icosphere(subdivisions, name="sphere", radius=10.0):
    """A sphere of 10 * 4^k + 2 vertices, the coarser levels first; faces point outwards."""
    points = [np.array(c, float) / np.linalg.norm(c) for c in _CORNERS]
    faces = list(_FACES)
    for _ in range(subdivisions):
        middle = {}

        def half(a, b, middle=middle):
            key = (min(a, b), max(a, b))
            if key not in middle:
                middle[key] = len(points)
                points.append((points[a] + points[b]) / np.linalg.norm(points[a] + points[b]))
            return middle[key]

        finer = []
        for a, b, c in faces:
            ab, bc, ca = half(a, b), half(b, c), half(c, a)
            finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = finer
    return Mesh(radius * np.stack(points), np.array(faces), ((name, len(points)),))


def two_spheres(subdivisions=2):
    """Two structures without edges between them."""
    left, right = icosphere(subdivisions, "lh"), icosphere(subdivisions, "rh", 8.0)
    return union([left, Mesh(right.vertices + [30, 0, 0], right.faces, right.structures)])


def relabelled(mesh, order):
    """The same mesh with vertex `order[i]` in place i; only for meshes of one structure."""
    place = np.argsort(order)
    return Mesh(mesh.vertices[order], place[mesh.faces], mesh.structures)
