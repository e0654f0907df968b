"""Products with principal components ``V [k, D]``, which may be held in half precision.

Ten thousand components of 99,648 entries are 4 GB in float32 and 2 GB in bfloat16. Coefficients and
vectors stay float32: a coefficient in bfloat16 would lose steps of less than 1/256 of its value.
Half-precision components are converted a block of rows at a time, so that no float32 copy of them
is ever held, neither in the product nor in its gradient, which is the transposed product with
the same blocks. (XLA's CPU compiler holds one more copy in half precision while it computes.)
"""

from typing import Any

import jax
import jax.numpy as jnp

ROWS = 512  # components converted at a time
_HIGHEST = jax.lax.Precision.HIGHEST


def combine(coefficients: jax.Array, components: jax.Array) -> jax.Array:
    """``coefficients [..., k]`` times ``components [k, D]``: float32 ``[..., D]``.

    Exact up to float32 rounding for any type of the components. Half-precision components are
    constants to differentiation: their cotangent is zero.
    """
    if components.dtype == coefficients.dtype:
        return jnp.matmul(coefficients, components, precision=_HIGHEST)
    return _combine(coefficients, components)


def correlate(vectors: jax.Array, components: jax.Array) -> jax.Array:
    """``vectors [..., D]`` times the transpose of ``components [k, D]``: float32 ``[..., k]``.

    The transpose of :func:`combine`, with the same properties.
    """
    if components.dtype == vectors.dtype:
        return jnp.matmul(vectors, components.T, precision=_HIGHEST)
    return _correlate(vectors, components)


def _rows(components: jax.Array, start: int | jax.Array, count: int, dtype: Any) -> jax.Array:
    """Converted rows. As floats, XLA's CPU compiler would convert all of them before the loop."""
    bits = jax.lax.bitcast_convert_type(components, jnp.uint16)
    rows = jax.lax.dynamic_slice_in_dim(bits, start, count)
    return jax.lax.bitcast_convert_type(rows, components.dtype).astype(dtype)


@jax.custom_vjp
def _combine(coefficients: jax.Array, components: jax.Array) -> jax.Array:
    whole, rest = divmod(len(components), ROWS)

    def part(start, count):
        rows = _rows(components, start, count, coefficients.dtype)
        chosen = jax.lax.dynamic_slice_in_dim(coefficients, start, count, axis=-1)
        return jnp.matmul(chosen, rows, precision=_HIGHEST)

    total = jnp.zeros((*coefficients.shape[:-1], components.shape[1]), coefficients.dtype)
    if whole:
        total = jax.lax.fori_loop(0, whole, lambda i, sum: sum + part(i * ROWS, ROWS), total)
    return total + part(whole * ROWS, rest) if rest else total


def _correlate_blocks(vectors: jax.Array, components: jax.Array) -> jax.Array:
    whole, rest = divmod(len(components), ROWS)

    def part(start, count):
        rows = _rows(components, start, count, vectors.dtype)
        return jnp.matmul(vectors, rows.T, precision=_HIGHEST)

    parts = [] if not rest else [part(whole * ROWS, rest)]
    if whole:
        stacked = jax.lax.map(lambda i: part(i * ROWS, ROWS), jnp.arange(whole))
        joined = jnp.moveaxis(stacked, 0, -2)
        parts.insert(0, joined.reshape(*joined.shape[:-2], whole * ROWS))
    return jnp.concatenate(parts, axis=-1)


_correlate = jax.custom_vjp(_correlate_blocks)

_combine.defvjp(
    lambda coefficients, components: (_combine(coefficients, components), components),
    lambda components, cotangent: (_correlate_blocks(cotangent, components), None),
)
_correlate.defvjp(
    lambda vectors, components: (_correlate_blocks(vectors, components), components),
    lambda components, cotangent: (_combine(cotangent, components), None),
)
