"""Attribute directions in the coefficients of a weight space, and edits along them.

A direction is the least-squares solution that predicts an attribute's labels from the coefficients
of the training models (Dravid et al., NeurIPS 2024, section 4.1). Its strength is the largest
projection of a training model on the unit direction (section 4.3), so an edit of ``alpha = 1`` goes
as far from the mean model as any training model does. Fitting runs on the host in float64; edits
are pure JAX.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike


class Direction(struct.PyTreeNode):
    """A calibrated direction, or a stack of them along leading axes.

    Attributes:
      unit: ``[..., k]`` direction of norm 1.
      strength: ``[...]`` length of an edit of ``alpha = 1``, in coefficient units.
    """

    unit: jax.Array
    strength: jax.Array


def least_squares(
    coefficients: ArrayLike, labels: ArrayLike, ridge: float = 0.0, intercept: bool = False
) -> np.ndarray:
    """Least-squares direction of each attribute: ``min_d |P d - y|^2 + ridge |d|^2``.

    Args:
      coefficients: ``P [N, k]``, of the training models.
      labels: ``y [N]`` or ``[N, attributes]``; typically +1 and -1.
      ridge: 0 for the minimum-norm solution ``pinv(P) y`` of the paper.
      intercept: also fit a constant (not penalised), which unbalanced labels need: without it a
        rare attribute's direction is drawn to the mean of the labels.

    Returns:
      Float64 ``[k]``, or ``[attributes, k]``; not normalised.

    Raises:
      ValueError: shapes that do not match, values that are not finite, labels that are all equal.
    """
    p, y = np.asarray(coefficients, np.float64), np.asarray(labels, np.float64)
    if p.ndim != 2 or y.ndim not in (1, 2) or len(p) != len(y):
        raise ValueError(f"coefficients {p.shape} and labels {y.shape} do not match")
    if not (np.isfinite(p).all() and np.isfinite(y).all()):
        raise ValueError("coefficients and labels must be finite")
    columns = y.reshape(len(y), -1)
    constant = np.flatnonzero(np.ptp(columns, axis=0) == 0)
    if constant.size:
        raise ValueError(
            f"labels of attribute {constant[0]} are {columns[0, constant[0]]:g} for all "
            f"{len(y)} models"
        )
    if intercept:
        p, columns = p - p.mean(axis=0), columns - columns.mean(axis=0)
    if ridge:
        # Equivalent to ridge rows below P: no normal equations, which would square its condition.
        k = p.shape[1]
        p = np.concatenate([p, np.sqrt(ridge) * np.eye(k)])
        columns = np.concatenate([columns, np.zeros((k, columns.shape[1]))])
    solution = np.linalg.lstsq(p, columns, rcond=None)[0].T
    return solution[0] if y.ndim == 1 else solution


def strength_unit(coefficients: ArrayLike, unit: ArrayLike) -> np.ndarray:
    """Largest projection ``[...]`` of the models ``[N, k]`` on unit directions ``[..., k]``."""
    return np.max(np.asarray(unit, np.float64) @ np.asarray(coefficients, np.float64).T, axis=-1)


def calibrate(vectors: ArrayLike, coefficients: ArrayLike) -> Direction:
    """Normalises raw directions ``[..., k]`` and measures their strength on models ``[N, k]``.

    Raises:
      ValueError: a direction is zero, or no model lies on its positive side.
    """
    vectors = np.asarray(vectors, np.float64)
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not norm.all():
        raise ValueError("a direction is zero and cannot be normalised")
    unit = vectors / norm
    strength = strength_unit(coefficients, unit)
    if not (strength > 0).all():
        raise ValueError(f"a direction has no model on its positive side: strengths {strength}")
    return Direction(jnp.asarray(unit, jnp.float32), jnp.asarray(strength, jnp.float32))


def debias_sequential(vector: ArrayLike, others: ArrayLike) -> np.ndarray:
    """Removes other attributes' directions one after another: ``d <- d - (d.e / e.e) e``.

    The paper's code does this. The result is orthogonal to the last of ``others [M, k]`` only, and
    depends on their order unless they are orthogonal; :func:`debias_joint` is exact.
    """
    d = np.asarray(vector, np.float64)
    for e in np.atleast_2d(np.asarray(others, np.float64)):
        d = d - (d @ e) / (e @ e) * e
    return d


def debias_joint(vector: ArrayLike, others: ArrayLike) -> np.ndarray:
    """The part of ``vector [k]`` orthogonal to all of ``others [M, k]`` at once.

    Raises:
      ValueError: the vector lies in the span of the others, so that nothing is left.
    """
    d = np.asarray(vector, np.float64)
    e = np.atleast_2d(np.asarray(others, np.float64))
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    _, s, basis = np.linalg.svd(e, full_matrices=False)
    basis = basis[s > max(e.shape) * np.finfo(np.float64).eps * s[0]]
    rest = d - (d @ basis.T) @ basis
    rest = rest - (rest @ basis.T) @ basis  # A second pass removes the first one's rounding error.
    if np.linalg.norm(rest) <= 1e-10 * np.linalg.norm(d):
        raise ValueError(f"the direction lies in the span of the {len(e)} it is debiased against")
    return rest


def edit(coefficients: jax.Array, direction: Direction, alpha: ArrayLike = 1.0) -> jax.Array:
    """Moves models ``[..., k]`` by ``alpha`` along one direction.

    Args:
      coefficients: ``[..., k]``.
      direction: a single direction.
      alpha: strength, a scalar or an array that broadcasts to the leading axes; 1 is the largest
        training projection, negative values go the other way.

    Returns:
      ``[..., k]``, with the leading axes of ``coefficients`` and ``alpha`` broadcast.
    """
    alpha = jnp.asarray(alpha, coefficients.dtype)
    lead = jnp.broadcast_shapes(alpha.shape, coefficients.shape[:-1])
    shape = (*lead, coefficients.shape[-1])
    step = (jnp.broadcast_to(alpha, lead) * direction.strength)[..., None]
    unit = jnp.broadcast_to(direction.unit, shape)
    return jnp.broadcast_to(coefficients, shape) + step * unit


def compose(
    coefficients: jax.Array, directions: Sequence[Direction], alphas: Sequence[ArrayLike]
) -> jax.Array:
    """Applies several edits; their sum, in any order."""
    for direction, alpha in zip(directions, alphas, strict=True):
        coefficients = edit(coefficients, direction, alpha)
    return coefficients


def pad(vectors: ArrayLike, k: int) -> np.ndarray:
    """Directions ``[..., j]`` fitted on the first ``j <= k`` components, in ``k`` coefficients."""
    vectors = np.asarray(vectors)
    if vectors.shape[-1] > k:
        raise ValueError(f"a direction of {vectors.shape[-1]} components does not fit into {k}")
    return np.pad(vectors, [(0, 0)] * (vectors.ndim - 1) + [(0, k - vectors.shape[-1])])


def cosine_matrix(vectors: ArrayLike) -> np.ndarray:
    """Cosines ``[A, A]`` among directions ``[A, k]``."""
    vectors = np.asarray(vectors, np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def entanglement(vectors: ArrayLike) -> float:
    """Mean absolute cosine over all pairs of directions ``[A, k]`` (the paper's section 4.6)."""
    cosines = cosine_matrix(vectors)
    if len(cosines) < 2:
        raise ValueError("entanglement needs at least two directions, got 1")
    return float(np.mean(np.abs(cosines[np.triu_indices(len(cosines), 1)])))
