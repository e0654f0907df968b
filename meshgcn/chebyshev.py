"""Chebyshev graph convolution (Defferrard et al., NIPS 2016, eq. 4) on a shared, fixed graph.

    Y = sum over k < K of T_k(L) X W_k,   T_0 = 1, T_1 = L, T_k = 2 L T_{k-1} - T_{k-2}

K is the number of terms: the polynomial's degree is K - 1, and so is the number of hops that a
layer sees ("order K" in papers often means the degree). L is the scaled Laplacian, with spectrum in
[-1, 1]. The batch is folded into the channels, so each step is one sparse product for all subjects.

Two routes. An `Operator` runs the recurrence in a `lax.scan`: unrolled, XLA on CPU fuses each
product into the next and computes every neighbour's neighbours again. A `BCSR` matrix is multiplied
by a library call that is not fused, so its loop is unrolled. `operator_for` has what was measured.

The gradient is written by hand: with respect to X it is the same polynomial of the transposed L,
by Clenshaw's recurrence, and with respect to W the terms are computed again, so that a layer keeps
nothing but its input.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.experimental import sparse

from meshgcn import operators
from meshgcn.operators import Operator

__all__ = ["Laplacian", "convolve", "operator_for", "terms"]

Laplacian = Operator | sparse.BCSR


def operator_for(matrix: sp.csr_array, route: str = "gather", dtype: Any = np.float32) -> Laplacian:
    """A scaled Laplacian in the form of a route: "gather" (`Operator`) or "bcsr".

    On one core of an AMD EPYC "bcsr" was a tenth faster, for K = 3 and for K = 6
    (`meshgcn/README.md` has the numbers). "bcsr" needs symmetry.

    Raises:
      ValueError: another route, or "bcsr" of a matrix that is not symmetric.
    """
    if route == "gather":
        return operators.from_matrix(matrix, dtype)
    if route != "bcsr":
        raise ValueError(f"route {route!r}: gather or bcsr")
    if abs(matrix - matrix.T).sum() != 0:
        raise ValueError("route 'bcsr' needs a symmetric matrix")
    ordered = sp.csr_matrix(matrix)
    ordered.sort_indices()
    return sparse.BCSR.from_scipy_sparse(ordered.astype(dtype))


@jax.custom_vjp
def convolve(x: jax.Array, weights: jax.Array, operator: Laplacian) -> jax.Array:
    """The convolution without bias.

    Args:
      x: `[vertices, batch, inputs]`.
      weights: `[K, inputs, outputs]`, of `x`'s dtype.
      operator: scaled Laplacian `[vertices, vertices]`; constant for differentiation.

    Returns:
      `[vertices, batch, outputs]`.
    """
    return _forward(x, weights, operator)


def terms(x: jax.Array, count: int, operator: Laplacian) -> jax.Array:
    """T_0(L) x ... T_{count-1}(L) x, `[count, vertices, channels]`, of `x [vertices, channels]`."""
    found = [x]
    for k in range(1, count):
        step = _product(operator, found[-1])
        found.append(step if k == 1 else 2 * step - found[-2])
    return jnp.stack(found)


def _forward(x: jax.Array, weights: jax.Array, operator: Laplacian) -> jax.Array:
    vertices, batch, inputs = x.shape
    count, expected, outputs = weights.shape
    if expected != inputs:
        raise ValueError(f"weights for {expected} channels, x has {inputs}")
    flat = x.reshape(vertices, batch * inputs)

    def step(state, this):
        (before, last, total), (factor, weight) = state, this
        new = factor * _product(operator, last) - before
        return (last, new, total + _mix(new, weight)), None

    start = (jnp.zeros_like(flat), flat, _mix(flat, weights[0]))
    factors = jnp.asarray([1.0] + [2.0] * (count - 2), x.dtype)[: count - 1]
    (_, _, total), _ = _loop(step, start, (factors, weights[1:]), operator)
    return total.reshape(vertices, batch, outputs)


def _convolve_forward(x, weights, operator):
    return _forward(x, weights, operator), (x, weights, operator)


def _convolve_backward(residuals, g):
    x, weights, operator = residuals
    vertices, batch, inputs = x.shape
    count, _, outputs = weights.shape
    flat = x.reshape(vertices, batch * inputs)
    rows = g.reshape(vertices * batch, outputs)

    def correlate(value):
        return value.reshape(vertices * batch, inputs).T @ rows

    def term(state, factor):
        before, last = state
        new = factor * _product(operator, last) - before
        return (last, new), correlate(new)

    factors = jnp.asarray([1.0] + [2.0] * (count - 2), x.dtype)[: count - 1]
    _, others = _loop(term, (jnp.zeros_like(flat), flat), factors, operator)
    dw = correlate(flat)[None]
    if count > 1:
        dw = jnp.concatenate([dw, others])

    back = operator.transpose() if isinstance(operator, Operator) else operator

    def clenshaw(state, this):
        (first, second), (factor, weight) = state, this
        return (
            _mix(rows, weight.T, flat.shape) + factor * _product(back, first) - second,
            first,
        ), None

    # b_{K-1} = G_{K-1}; b_k = G_k + 2 L b_{k+1} - b_{k+2}; the last step has the factor 1.
    start = (_mix(rows, weights[-1].T, flat.shape), jnp.zeros_like(flat))
    factors = jnp.asarray([2.0] * (count - 2) + [1.0], x.dtype)[-(count - 1) or count :]
    (dx, _), _ = _loop(clenshaw, start, (factors, weights[:-1][::-1]), back)
    return dx.reshape(x.shape), dw, None


convolve.defvjp(_convolve_forward, _convolve_backward)


def _product(operator: Laplacian, x: jax.Array) -> jax.Array:
    return operators.product(operator, x) if isinstance(operator, Operator) else operator @ x


def _mix(x: jax.Array, weight: jax.Array, shape: tuple[int, ...] | None = None) -> jax.Array:
    """`[..., channels in]` as rows times `weight [in, out]`; `[rows, out]`, or of `shape`."""
    rows = x.reshape(-1, weight.shape[0])
    # One channel is an outer product, which XLA fuses with what follows.
    mixed = (rows * weight) if weight.shape[0] == 1 else rows @ weight
    return mixed if shape is None else mixed.reshape(shape)


def _loop(step, state, inputs, operator):
    """`lax.scan`, unrolled where products are not fused anyway."""
    length = jax.tree.leaves(inputs)[0].shape[0]
    if length == 0:
        return (state, None)
    if isinstance(operator, Operator):
        return jax.lax.scan(step, state, inputs)
    outputs = []
    for k in range(length):
        state, out = step(state, jax.tree.map(lambda leaf, k=k: leaf[k], inputs))
        outputs.append(out)
    return state, None if outputs[0] is None else jnp.stack(outputs)
