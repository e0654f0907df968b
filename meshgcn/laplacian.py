"""Graph Laplacians of a mesh as SciPy matrices in float64, and their largest eigenvalue."""

from typing import Literal

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import eigsh

from meshgcn.meshes import Mesh

__all__ = ["Normalisation", "adjacency", "laplacian", "largest_eigenvalue", "scaled_laplacian"]

Normalisation = Literal["symmetric", "random_walk", "combinatorial"]


def adjacency(edges: np.ndarray, count: int, weights: np.ndarray | None = None) -> sp.csr_array:
    """Symmetric adjacency matrix `[count, count]` of undirected edges `[edges, 2]`.

    Args:
      edges: each pair once, no loops.
      count: number of vertices.
      weights: `[edges]`; 1 by default.

    Raises:
      ValueError: an edge is a loop, is repeated, or names a vertex that does not exist.
    """
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    if len(edges) and (edges.min() < 0 or edges.max() >= count):
        raise ValueError(f"edges name vertices {edges.min()} to {edges.max()}, there are {count}")
    if (edges[:, 0] == edges[:, 1]).any():
        raise ValueError(f"{(edges[:, 0] == edges[:, 1]).sum()} edges join a vertex to itself")
    if len(np.unique(np.sort(edges, axis=1), axis=0)) != len(edges):
        raise ValueError("edges are repeated")
    values = np.ones(len(edges)) if weights is None else np.asarray(weights, np.float64)
    both = np.concatenate([edges, edges[:, ::-1]])
    matrix = sp.coo_array((np.tile(values, 2), (both[:, 0], both[:, 1])), shape=(count, count))
    return sp.csr_array(matrix)


def laplacian(matrix: sp.csr_array, normalisation: Normalisation = "symmetric") -> sp.csr_array:
    """Laplacian of a graph with adjacency matrix A and degrees D.

    symmetric I - D^-1/2 A D^-1/2, random walk I - A D^-1 (columns sum to 0; the convention of
    torch_geometric), combinatorial D - A. Vertices without neighbours have D^-1 = 0.

    Raises:
      ValueError: another normalisation.
    """
    degrees = np.asarray(matrix.sum(axis=0)).ravel()
    identity = sp.eye_array(len(degrees))
    with np.errstate(divide="ignore"):
        inverse = np.where(degrees > 0, 1.0 / degrees, 0.0)
    if normalisation == "symmetric":
        root = sp.diags_array(np.sqrt(inverse))
        return sp.csr_array(identity - root @ matrix @ root)
    if normalisation == "random_walk":
        return sp.csr_array(identity - matrix @ sp.diags_array(inverse))
    if normalisation == "combinatorial":
        return sp.csr_array(sp.diags_array(degrees) - matrix)
    raise ValueError(f"normalisation {normalisation!r}: symmetric, random_walk or combinatorial")


def largest_eigenvalue(matrix: sp.csr_array) -> float:
    """Largest eigenvalue of a symmetric matrix by Lanczos iteration, from a fixed start vector."""
    if matrix.shape[0] < 64:
        return float(np.linalg.eigvalsh(matrix.toarray())[-1])
    start = np.random.default_rng(0).normal(size=matrix.shape[0])
    return float(eigsh(matrix, k=1, which="LA", v0=start, return_eigenvectors=False)[0])


def scaled_laplacian(
    mesh: Mesh,
    normalisation: Normalisation = "symmetric",
    largest: float | Literal["exact"] = 2.0,
) -> sp.csr_array:
    """2 L / largest - I, whose spectrum lies in [-1, 1] if `largest` bounds that of L.

    Args:
      mesh: its edges all have weight 1.
      normalisation: which Laplacian L.
      largest: 2 as in the published networks (a bound for the normalised ones), another bound,
        or "exact" for the largest eigenvalue. That of the random walk is the symmetric one's.

    Returns:
      float64 `[vertices, vertices]`, with explicit zeros removed.

    Raises:
      ValueError: `largest` is not positive, or less than the largest eigenvalue: the terms of a
        convolution would grow with their number.
    """
    edges = adjacency(mesh.edges(), len(mesh))
    matrix = laplacian(edges, normalisation)
    if largest != "exact" and not largest > 0:
        raise ValueError(f"largest eigenvalue must be positive, got {largest}")
    if largest == "exact" or normalisation == "combinatorial" or largest < 2:
        similar = "symmetric" if normalisation == "random_walk" else normalisation
        exact = largest_eigenvalue(laplacian(edges, similar))
        largest = exact if largest == "exact" else largest
        if largest < exact * (1 - 1e-6):
            raise ValueError(
                f"{largest:g} is no bound of the {normalisation} Laplacian, whose largest "
                f"eigenvalue is {exact:g}"
            )
    scaled = sp.csr_array(2.0 / largest * matrix - sp.eye_array(len(mesh)))
    scaled.data[np.abs(scaled.data) < 1e-15] = 0.0  # 1 - 1 on the diagonal where largest is 2
    scaled.eliminate_zeros()
    scaled.sort_indices()
    return scaled
