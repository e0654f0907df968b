"""What a network needs of a template, as one pytree of arrays: operators of all levels."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import struct

from meshgcn import chebyshev, operators, pooling, spiral
from meshgcn.laplacian import Normalisation, scaled_laplacian
from meshgcn.meshes import Mesh
from meshgcn.operators import Operator

__all__ = ["Hierarchy", "build", "upsample"]


class Hierarchy(struct.PyTreeNode):
    """Operators of the finest mesh and of the coarser ones; an argument of jitted functions.

    Attributes:
      convolutions: of each level, finest first: scaled Laplacian, or spirals int32
        `[vertices, length]`.
      pools: from each level to the next coarser one, rows sum to 1.
      ups: from each coarser level back to the next finer one, rows sum to 1.
      regions: means over the regions of an atlas on each level, `[regions, vertices]`; rows of
        regions that have no vertex there are 0. Empty without an atlas.
    """

    convolutions: tuple[chebyshev.Laplacian | jax.Array, ...]
    pools: tuple[Operator, ...]
    ups: tuple[Operator, ...]
    regions: tuple[Operator, ...] = ()


def build(
    mesh: Mesh,
    depth: int,
    normalisation: Normalisation = "symmetric",
    largest: float | str = 2.0,
    method: str = "auto",
    pool: str = "mean",
    route: str = "gather",
    spiral_length: int = 0,
    cache: pathlib.Path | None = None,
    labels: np.ndarray | None = None,
) -> Hierarchy:
    """The operators of `mesh` and of `depth` coarser levels.

    Args:
      mesh: finest mesh.
      depth: coarser levels.
      normalisation, largest: see `meshgcn.laplacian.scaled_laplacian`.
      method: how meshes are made coarser, see `meshgcn.pooling.levels`.
      pool: "mean" (also what "max" pooling ranges over) or "select".
      route: see `meshgcn.chebyshev.operator_for`.
      spiral_length: spirals of that length instead of Laplacians; 0 for Laplacians.
      cache: folder for the levels.
      labels: region of each vertex, -1 for none; a coarser vertex has that of the finer one that
        stands for it.

    Raises:
      ValueError: another `pool`.
    """
    if pool not in ("mean", "select"):
        raise ValueError(f"pool {pool!r}: mean or select")
    coarser = pooling.levels(mesh, depth, method, cache)
    convolutions: list[chebyshev.Laplacian | jax.Array] = []
    for one in (mesh, *(level.mesh for level in coarser)):
        if spiral_length:
            convolutions.append(jnp.asarray(spiral.spirals(one, spiral_length)))
        else:
            matrix = scaled_laplacian(one, normalisation, largest)  # type: ignore[arg-type]
            convolutions.append(chebyshev.operator_for(matrix, route))
    return Hierarchy(
        tuple(convolutions),
        tuple(operators.from_matrix(getattr(level, pool)) for level in coarser),
        tuple(operators.from_matrix(level.up) for level in coarser),
        () if labels is None else _regions(labels, coarser),
    )


def _regions(labels: np.ndarray, coarser: list[pooling.Level]) -> tuple[Operator, ...]:
    """Means over regions, of each level."""
    count, found = int(labels.max()) + 1, []
    for level in (None, *coarser):
        labels = labels if level is None else labels[level.select.indices]
        inside = np.flatnonzero(labels >= 0)
        sizes = np.bincount(labels[inside], minlength=count)
        entries = (1.0 / sizes[labels[inside]], (labels[inside], inside))
        matrix = sp.csr_array(sp.coo_array(entries, shape=(count, len(labels))))
        found.append(operators.from_matrix(matrix))
    return tuple(found)


def upsample(hierarchy: Hierarchy, values: jax.Array, level: int) -> jax.Array:
    """Interpolates values `[n, vertices of the level]` to the finest mesh, `[n, vertices]`."""
    columns = values.T
    for up in hierarchy.ups[:level][::-1]:
        columns = operators.multiply(up, columns)
    return columns.T
