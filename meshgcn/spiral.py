"""Spiral convolution (SpiralNet++, Gong et al. 2019): a fixed sequence of neighbours, one matrix.

The sequence of a vertex is itself, its first ring in the mesh's orientation, its second ring, and
so on. It begins at the neighbour with the smallest number, so a template must be shared by all
subjects; unlike the Chebyshev filter the result depends on the vertices' order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from meshgcn.meshes import Mesh

__all__ = ["convolve", "spirals"]


def spirals(mesh: Mesh, length: int, dilation: int = 1) -> np.ndarray:
    """Spiral of each vertex, int32 `[vertices, length]`, the vertex itself first.

    Args:
      mesh: consistently oriented triangles.
      length: entries kept.
      dilation: every so many-th entry of a spiral of `length * dilation` is kept.

    Where a structure has not enough vertices in rings (borders), the nearest vertices of the same
    structure take over; where it has not enough vertices at all, the vertex itself is repeated.
    """
    need = length * dilation
    following: list[dict[int, int]] = [{} for _ in range(len(mesh))]
    for a, b, c in mesh.faces.tolist():
        following[a][b], following[b][c], following[c][a] = c, a, b
    result = np.empty((len(mesh), need), np.int32)
    trees: dict[int, tuple[cKDTree, np.ndarray]] = {}
    labels = mesh.labels()
    for vertex in range(len(mesh)):
        found = [vertex]
        seen = {vertex}
        ring = _around(following, vertex)
        while ring and len(found) < need:
            new = [v for v in dict.fromkeys(ring) if v not in seen]
            found += new
            seen.update(new)
            ring = [v for centre in new for v in _around(following, centre)]
        if len(found) < need:
            label = int(labels[vertex])
            if label not in trees:
                own = np.flatnonzero(labels == label)
                trees[label] = (cKDTree(mesh.vertices[own]), own)
            tree, own = trees[label]
            near = tree.query(mesh.vertices[vertex], k=min(need, len(own)))[1]
            extra = [int(v) for v in own[np.atleast_1d(near)] if int(v) not in seen]
            found += extra + [vertex] * need
        result[vertex] = found[:need]
    return result[:, ::dilation]


def convolve(x: jax.Array, weights: jax.Array, indices: jax.Array) -> jax.Array:
    """Spiral convolution without bias.

    Args:
      x: `[vertices, batch, inputs]`.
      weights: `[length, inputs, outputs]`.
      indices: `[vertices, length]` of `spirals`.

    Returns:
      `[vertices, batch, outputs]`.
    """
    if weights.shape[0] != indices.shape[1]:
        raise ValueError(f"weights for {weights.shape[0]} entries, spirals have {indices.shape[1]}")

    def step(total, this):
        column, weight = this
        return total + x.at[column].get(mode="promise_in_bounds") @ weight, None

    start = jnp.zeros((*x.shape[:2], weights.shape[2]), x.dtype)
    return jax.lax.scan(step, start, (indices.T, weights))[0]


def _around(following: list[dict[int, int]], vertex: int) -> list[int]:
    """Neighbours of a vertex in the mesh's orientation, from the smallest or from a border."""
    turn = following[vertex]
    if not turn:
        return []
    begin = min(set(turn) - set(turn.values()), default=min(turn))
    ring, current = [begin], turn.get(begin)
    while current is not None and current != begin and len(ring) <= len(turn):
        ring.append(current)
        current = turn.get(current)
    return ring
