"""Subjects on one mesh as `jraph.GraphsTuple`, and back: for other graph libraries in JAX."""

from typing import Any

import jax.numpy as jnp
import jraph
import numpy as np

from meshgcn.meshes import Mesh, TopologyError, VertexCountError

__all__ = ["from_graphs", "to_graphs"]


def to_graphs(mesh: Mesh, features: np.ndarray, globals_: np.ndarray | None = None) -> Any:
    """Subjects on one mesh as a batched `jraph.GraphsTuple`, for other graph libraries in JAX.

    Every graph has its own copy of the edges, in both directions; this package's networks do not
    need that, see `meshgcn.operators`.

    Args:
      mesh: shared topology.
      features: `[subjects, vertices, features]`.
      globals_: `[subjects, ...]`, for example labels.

    Raises:
      VertexCountError: `features` are not of this mesh.
    """
    subjects, vertices, _ = features.shape
    if vertices != len(mesh):
        raise VertexCountError(f"features of {vertices} vertices, the mesh has {len(mesh)}")
    edges = mesh.edges()
    both = np.concatenate([edges, edges[:, ::-1]])
    offsets = np.repeat(np.arange(subjects) * vertices, len(both))
    senders, receivers = (np.tile(both[:, i], subjects) + offsets for i in range(2))
    return jraph.GraphsTuple(
        nodes=jnp.asarray(features.reshape(subjects * vertices, -1)),
        edges=None,
        receivers=jnp.asarray(receivers, jnp.int32),
        senders=jnp.asarray(senders, jnp.int32),
        globals=None if globals_ is None else jnp.asarray(globals_),
        n_node=jnp.full(subjects, vertices, jnp.int32),
        n_edge=jnp.full(subjects, len(both), jnp.int32),
    )


def from_graphs(graphs: Any) -> tuple[np.ndarray, np.ndarray]:
    """(features `[subjects, vertices, features]`, edges `[edges, 2]`) of graphs of one topology.

    Raises:
      VertexCountError: the graphs differ in size.
      TopologyError: they differ in their edges.
    """
    counts, edge_counts = np.asarray(graphs.n_node), np.asarray(graphs.n_edge)
    if len(set(counts.tolist())) != 1:
        raise VertexCountError(f"graphs of different sizes: {sorted(set(counts.tolist()))}")
    if len(set(edge_counts.tolist())) != 1:
        raise TopologyError(f"graphs of different edges: {sorted(set(edge_counts.tolist()))}")
    size = int(counts[0])
    pairs = np.stack([np.asarray(graphs.senders), np.asarray(graphs.receivers)], axis=1)
    pairs = pairs.reshape(len(counts), -1, 2) - (np.arange(len(counts)) * size)[:, None, None]
    ordered = [np.unique(np.sort(own, axis=1), axis=0) for own in pairs]
    for index, own in enumerate(ordered):
        if own.shape != ordered[0].shape or (own != ordered[0]).any():
            raise TopologyError(f"graph {index} has other edges than graph 0")
    features = np.asarray(graphs.nodes).reshape(len(counts), size, -1)
    return features, ordered[0].astype(np.int32)
