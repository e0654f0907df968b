"""Bilinear upsampling as a matrix, its adjoint, and moments of upsampled maps that are never made.

Upsampling an `s x s` map to `t x t` is `U B = M B M^T` with `M [t, s]`. A correlation of an
upsampled map with a larger one needs `<A, U B>`, which is `<U^T A, B>`: the larger map is brought
down by the adjoint, and the product runs over `s^2` instead of `t^2` positions. The other moments:

    sum(U B) = w^T B w,  w = M^T 1            |U B|^2 = <B, G B G>,  G = M^T M.

All of these are identities, not approximations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rosetta.sums import column_sums

__all__ = ["adjoint", "matrix", "moments", "upsample"]

_HIGHEST = jax.lax.Precision.HIGHEST


@functools.cache
def matrix(small: int, big: int) -> np.ndarray:
    """The matrix `[big, small]` of bilinear interpolation with half-pixel centres, float64.

    It is PyTorch's `interpolate(mode="bilinear", align_corners=False)` along one axis: positions
    outside the outermost centres repeat the edge. Rows sum to 1.

    Raises:
      ValueError: `big` is smaller than `small`, where bilinear interpolation would skip cells.
    """
    if not 1 <= small <= big:
        raise ValueError(f"maps are enlarged only, not from {small} to {big} cells")
    position = np.maximum((np.arange(big) + 0.5) * small / big - 0.5, 0)
    low = np.minimum(position.astype(int), small - 1)
    high = np.minimum(low + 1, small - 1)
    weight = position - low
    result = np.zeros((big, small))
    np.add.at(result, (np.arange(big), low), 1 - weight)
    np.add.at(result, (np.arange(big), high), weight)
    return result


def upsample(maps: jax.Array, big: int) -> jax.Array:
    """`[batch, s, s, channels]` -> `[batch, big, big, channels]`, bilinear."""
    m = jnp.asarray(matrix(maps.shape[1], big), maps.dtype)
    return _both(maps, m)


def adjoint(maps: jax.Array, small: int) -> jax.Array:
    """The transpose of `upsample` from `small`, `[batch, t, t, c]` -> `[batch, s, s, c]`."""
    if maps.shape[1] == small:
        return maps
    m = jnp.asarray(matrix(small, maps.shape[1]).T, maps.dtype)
    return _both(maps, m)


def moments(maps: jax.Array, big: int) -> tuple[jax.Array, jax.Array]:
    """Sum and sum of squares of each channel of `upsample(maps, big)`, each `[channels]`."""
    small = maps.shape[1]
    if small == big:
        return _total(maps), _total(jnp.square(maps))
    m = matrix(small, big)
    weight = jnp.asarray(np.outer(m.sum(0), m.sum(0)), maps.dtype).reshape(1, small, small, 1)
    smoothed = _both(maps, jnp.asarray(m.T @ m, maps.dtype))
    return _total(maps * weight), _total(maps * smoothed)


def _total(maps: jax.Array) -> jax.Array:
    """Sum of each channel over images and positions."""
    return column_sums(maps.reshape(-1, maps.shape[3]))


def _both(maps: jax.Array, m: jax.Array) -> jax.Array:
    """Applies a matrix `[out, in]` to both axes of each map."""
    rows = jnp.einsum("oi,bijc->bojc", m, maps, precision=_HIGHEST)
    return jnp.einsum("pj,bojc->bopc", m, rows, precision=_HIGHEST)
