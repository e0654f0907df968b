"""Sparse matrices with fixed topology as JAX arguments: products by gathers, forwards and back.

A matrix is stored by slots: every row has the same number of (column, weight) pairs, rows with
fewer entries are padded by weight 0. Meshes have about six neighbours for each vertex, so little is
wasted, and a product is a handful of contiguous row gathers. The transpose is stored in the same
form, so that a gradient is a gather too and never a scatter.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import struct

__all__ = ["Operator", "from_matrix", "maximum", "multiply", "to_matrix"]


class Operator(struct.PyTreeNode):
    """A sparse matrix `[rows, columns]`; arguments of jitted functions, never closed over.

    Attributes:
      columns: int32 `[slots, rows]`, where each entry stands; padding repeats the first entry.
      weights: `[slots, rows]`, 0 in padding.
      back_columns: int32 `[slots', columns]` of the transpose; None if the matrix is symmetric.
      back_weights: `[slots', columns]`, likewise.
    """

    columns: jax.Array
    weights: jax.Array
    back_columns: jax.Array | None = None
    back_weights: jax.Array | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.columns.shape[1]

    def transpose(self) -> "Operator":
        """The transposed matrix; itself if symmetric."""
        if self.back_columns is None or self.back_weights is None:
            return self
        return Operator(self.back_columns, self.back_weights, self.columns, self.weights)


def from_matrix(matrix: Any, dtype: Any = np.float32) -> Operator:
    """An operator from a SciPy sparse (or dense) matrix; symmetry is found out.

    Raises:
      ValueError: an entry is not finite.
    """
    matrix = sp.csr_array(matrix)
    if not np.isfinite(matrix.data).all():
        raise ValueError("a matrix entry is not finite")
    columns, weights = _slots(matrix, dtype)
    symmetric = matrix.shape[0] == matrix.shape[1] and abs(matrix - matrix.T).sum() == 0
    if symmetric:
        return Operator(columns, weights)
    return Operator(columns, weights, *_slots(sp.csr_array(matrix.T), dtype))


def to_matrix(operator: Operator, columns: int) -> sp.csr_array:
    """The SciPy matrix `[rows, columns]` of an operator."""
    rows = np.broadcast_to(np.arange(operator.rows), operator.columns.shape)
    entries = (np.asarray(operator.weights).ravel(), (rows.ravel(), _flat(operator.columns)))
    matrix = sp.csr_array(sp.coo_array(entries, shape=(operator.rows, columns)))
    matrix.eliminate_zeros()
    return matrix


def product(operator: Operator, x: jax.Array) -> jax.Array:
    """Matrix times `x [columns, channels]`, without a rule for gradients; see `multiply`."""
    total = None
    for slot in range(operator.columns.shape[0]):
        rows = x.at[operator.columns[slot]].get(mode="promise_in_bounds")
        term = operator.weights[slot][:, None].astype(x.dtype) * rows
        total = term if total is None else total + term
    assert total is not None
    return total


@jax.custom_vjp
def multiply(operator: Operator, x: jax.Array) -> jax.Array:
    """Matrix times `x [columns, channels]`; the weights are constants for differentiation.

    Returns:
      `[rows, channels]` of `x`'s dtype.
    """
    return product(operator, x)


def _multiply_forward(operator: Operator, x: jax.Array) -> tuple[jax.Array, Operator]:
    return product(operator, x), operator


def _multiply_backward(operator: Operator, g: jax.Array) -> tuple[None, jax.Array]:
    return None, product(operator.transpose(), g)


multiply.defvjp(_multiply_forward, _multiply_backward)


@jax.custom_vjp
def maximum(operator: Operator, x: jax.Array) -> jax.Array:
    """Largest of the entries of `x [columns, channels]` that each row has a weight for.

    The gradient goes to the first of equal ones.

    Returns:
      `[rows, channels]`.
    """
    return _maximum_forward(operator, x)[0]


def _maximum_forward(
    operator: Operator, x: jax.Array
) -> tuple[jax.Array, tuple[Operator, jax.Array]]:
    best = x.at[operator.columns[0]].get(mode="promise_in_bounds")
    winner = jnp.broadcast_to(operator.columns[0][:, None], best.shape)
    for slot in range(1, operator.columns.shape[0]):
        where = operator.columns[slot]
        value = x.at[where].get(mode="promise_in_bounds")
        larger = value > best
        best = jnp.where(larger, value, best)
        winner = jnp.where(larger, where[:, None], winner)
    return best, (operator, winner)


def _maximum_backward(
    residuals: tuple[Operator, jax.Array], g: jax.Array
) -> tuple[None, jax.Array]:
    operator, winner = residuals
    back = operator.transpose()
    own = jnp.arange(back.rows, dtype=winner.dtype)[:, None]
    total = jnp.zeros((back.rows, g.shape[1]), g.dtype)
    for slot in range(back.columns.shape[0]):
        rows = back.columns[slot]
        won = (winner.at[rows].get(mode="promise_in_bounds") == own) & (back.weights[slot] != 0)[
            :, None
        ]
        total = total + jnp.where(won, g.at[rows].get(mode="promise_in_bounds"), 0)
    return None, total


maximum.defvjp(_maximum_forward, _maximum_backward)


def _slots(matrix: sp.csr_array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(columns, weights) of the slots of a matrix in CSR form."""
    matrix = sp.csr_array(matrix)
    matrix.sort_indices()
    counts = np.diff(matrix.indptr)
    slots = max(int(counts.max(initial=0)), 1)
    rows = np.repeat(np.arange(matrix.shape[0]), counts)
    place = np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], counts)
    first = np.zeros(matrix.shape[0], np.int32)
    first[counts > 0] = matrix.indices[matrix.indptr[:-1][counts > 0]]
    columns = np.tile(first, (slots, 1))
    weights = np.zeros((slots, matrix.shape[0]), np.float64)
    columns[place, rows] = matrix.indices
    weights[place, rows] = matrix.data
    return jnp.asarray(columns), jnp.asarray(weights, dtype)


def _flat(columns: jax.Array) -> np.ndarray:
    return np.asarray(columns).ravel()
