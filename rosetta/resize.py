"""Bilinear upsampling as a matrix, its adjoint, and moments of upsampled maps that are never made.

Upsampling an `s x s` map to `t x t` is `U B = M B M^T` with `M [t, s]`. A correlation of an
upsampled map with a larger one needs `<A, U B>`, which is `<U^T A, B>`: the larger map is brought
down by the adjoint, and the product runs over `s^2` instead of `t^2` positions. The other moments:

    sum(U B) = w^T B w,  w = M^T 1            |U B|^2 = <B, G B G>,  G = M^T M.

G is tridiagonal, so the second needs five products of B with itself and its neighbours, summed over
the images, whatever t is. All of these are identities, not approximations.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rosetta.sums import column_sums, product

__all__ = ["adjoint", "adjoints", "matrix", "moments", "upsample"]

_HIGHEST = jax.lax.Precision.HIGHEST
_BANDS = 8  # most parts into which the rows of a map are split
_NEIGHBOURS = ((0, 0), (0, 1), (1, 0), (1, 1), (1, -1))  # of a cell; the others by symmetry


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
    rows = jnp.einsum("oi,bijc->bojc", m, maps, precision=_HIGHEST)
    return jnp.einsum("pj,bojc->bopc", m, rows, precision=_HIGHEST)


def adjoint(maps: jax.Array, small: int) -> jax.Array:
    """The transpose of `upsample` from `small`, `[batch, t, t, c]` -> `[batch, s, s, c]`."""
    return adjoints(maps, (small,))[0]


def adjoints(maps: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """`adjoint` to each of several sizes; the maps are read once."""
    batch, big, _, channels = maps.shape
    smaller = tuple(size for size in sizes if size != big)
    found = {big: maps}
    if smaller:
        rows = _lowered(maps.reshape(batch, big, big * channels), smaller)
        for size, part in zip(smaller, rows, strict=True):
            columns = _lowered(part.reshape(batch * size, big, channels), (size,))[0]
            found[size] = columns.reshape(batch, size, size, channels)
    return [found[size] for size in sizes]


def moments(
    maps: jax.Array, sizes: Sequence[int]
) -> list[tuple[jax.Array, jax.Array]]:
    """Sum and sum of squares of each channel of `upsample(maps, size)`, each `[channels]`."""
    small, channels = maps.shape[1], maps.shape[3]
    found = {}
    if small in sizes:
        found[small] = _total(maps), _total(jnp.square(maps))
    bigger = tuple(size for size in sizes if size != small)
    if bigger:
        # Sums over the images of the maps and of their products, then over cells with weights.
        parts = [column_sums(x) for x in (maps.reshape(len(maps), -1), *_products(maps))]
        cells = jnp.stack(parts).reshape(len(parts), small**2, channels)
        totals, squares = (jnp.asarray(w, maps.dtype) for w in _weights(small, bigger))
        first = product(totals, cells[0])
        second = product(squares, cells[1:].reshape(-1, channels))
        found |= {size: (first[i], second[i]) for i, size in enumerate(bigger)}
    return [found[size] for size in sizes]


def _products(maps: jax.Array) -> list[jax.Array]:
    """Maps times themselves moved to each of `_NEIGHBOURS`, `[batch, cells * channels]` each."""
    size = maps.shape[1]
    around = jnp.pad(maps, ((0, 0), (0, 1), (1, 1), (0, 0)))
    return [
        (maps * around[:, i : i + size, j + 1 : j + 1 + size]).reshape(len(maps), -1)
        for i, j in _NEIGHBOURS
    ]


@functools.cache
def _weights(small: int, bigger: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the cells of sums, and of the products of squares, `[weights, sizes]` each."""
    totals, squares = [], []
    for big in bigger:
        m = matrix(small, big)
        totals.append(np.outer(m.sum(0), m.sum(0)).ravel())
        gram = m.T @ m
        parts = []
        for i, j in _NEIGHBOURS:
            # <B, G B G> holds each pair of different cells twice.
            rows, columns = (
                np.append(np.diagonal(gram, abs(k)), np.zeros(abs(k))) for k in (i, j)
            )
            if j < 0:
                columns = np.roll(columns, 1)
            parts.append(np.outer(rows, columns).ravel() * (1 if (i, j) == (0, 0) else 2))
        squares.append(np.concatenate(parts))
    return np.stack(totals, 1), np.stack(squares, 1)


def _total(maps: jax.Array) -> jax.Array:
    """Sum of each channel over images and positions."""
    return column_sums(maps.reshape(-1, maps.shape[3]))


def _lowered(x: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    """The transposed matrices to several sizes along the middle axis, `[outer, big, inner]`.

    A row of the big map has a share in two cells of each size only, so that a band of rows needs
    few of them: one product of matrices for each band, whose parts are added.
    """
    outer, big, inner = x.shape
    bands, places = _bands(big, sizes)
    count, _, length = bands.shape
    many = jnp.broadcast_to(jnp.asarray(bands, x.dtype), (outer, *bands.shape))
    parts = jax.lax.dot_general(
        many, x.reshape(outer, count, length, inner), (((3,), (2,)), ((0, 1), (0, 1))),
        precision=_HIGHEST,
    )  # fmt: skip
    found, low = [], 0
    for size, (width, starts) in zip(sizes, places, strict=True):
        own = parts[:, :, low : low + width]
        moved = [
            jnp.pad(own[:, band], ((0, 0), (start, size - start - width), (0, 0)))
            for band, start in enumerate(starts)
        ]
        found.append(functools.reduce(jnp.add, moved))
        low += width
    return found


@functools.cache
def _bands(
    big: int, sizes: tuple[int, ...]
) -> tuple[np.ndarray, tuple[tuple[int, tuple[int, ...]], ...]]:
    """Matrices `[bands, cells, rows]`, and of each size (its cells, the first of each band)."""
    count = max(n for n in range(1, _BANDS + 1) if big % n == 0 and (n == 1 or big // n >= 8))
    length = big // count
    rows: list[list[np.ndarray]] = [[] for _ in range(count)]
    places = []
    for size in sizes:
        m = matrix(size, big).T
        parts = [m[:, band * length : (band + 1) * length] for band in range(count)]
        touched = [np.flatnonzero(part.any(1)) for part in parts]
        width = max(int(cells[-1] - cells[0]) for cells in touched) + 1
        starts = tuple(min(int(cells[0]), size - width) for cells in touched)
        for band, (part, start) in enumerate(zip(parts, starts, strict=True)):
            rows[band].append(part[start : start + width])
        places.append((width, starts))
    return np.stack([np.concatenate(parts) for parts in rows]), tuple(places)
