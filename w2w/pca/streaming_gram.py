"""Exact principal components from a dense Gram matrix of streamed rows, for a small N or D."""

import jax
import numpy as np
import scipy.linalg

from w2w.pca.krylov import combine, inner, polish
from w2w.pca.products import Moments, Products, checked, merge_over_processes, sum_over_processes
from w2w.pca.row_blocks import Rows
from w2w.pca.standardised import (
    Standardisation,
    check_finite,
    estimate,
    exact,
    finish_moments,
    require,
    require_rank,
    stream,
    stream_moments,
)

# Row blocks whose products with all later blocks are formed in one pass.
_HELD = 4

Solution = tuple[Standardisation, np.ndarray, np.ndarray]


def _leading(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading ``k`` eigenpairs, descending, of a matrix whose lower triangle is filled."""
    n = len(matrix)
    values, vectors = scipy.linalg.eigh(
        matrix, subset_by_index=(n - k, n - 1), overwrite_a=True, check_finite=False
    )
    return values[::-1].clip(0), vectors[:, ::-1]


def _mirror(matrix: np.ndarray, step: int = 1024) -> None:
    """Copies the upper triangle to the lower one, in place."""
    for start in range(0, len(matrix), step):
        where = slice(start, start + step)
        square = matrix[where, where]
        square[:] = np.triu(square) + np.triu(square, 1).T
        matrix[start + step :, where] = matrix[where, start + step :].T


def gram_columns(rows: Rows, products: Products, k: int, std_floor: float) -> Solution:
    """``(standardisation, squared singular values [k], components [k, D])`` by ``X^T X [D, D]``.

    One pass: moments and the product of the roughly standardised rows, which is then corrected.
    """
    n, d = rows.shape
    shift, scale = checked(lambda: estimate(rows, std_floor))
    total = np.zeros((d, d))

    def own() -> Moments:
        moments = Moments(0, np.zeros(d), np.zeros(d))
        for start, block, x, mask in stream(rows, products, shift, scale, "gram"):
            check_finite(start, block, products.finite(x))
            moments = moments.merge(products.moments(x, mask))
            products.add_triangle(total, x)
        return moments

    moments = merge_over_processes(checked(own))
    sum_over_processes(total)
    mean, std = finish_moments(rows, moments, shift, scale, std_floor)
    require(k, n, std)
    _mirror(total)
    ratio = np.divide(1, scale * std, out=np.zeros(d), where=std != 0)
    total -= n * moments.mean[:, None] * moments.mean[None]
    total *= ratio[:, None]
    total *= ratio[None]
    values, vectors = _leading(total, k)
    require_rank(k, n, values)
    vectors[std == 0] = 0  # not a rounding error
    return exact(mean, std), values, np.ascontiguousarray(vectors.T, np.float32)


def gram_rows(rows: Rows, products: Products, k: int, std_floor: float) -> Solution:
    """As :func:`gram_columns`, by ``X X^T [N, N]``.

    A pass for the moments, ``N / (8 b)`` for the blocks of ``b`` rows of the upper triangle, and
    one for the components, which also refines the eigenvalues. Processes share the block rows.
    """
    n, d = rows.shape
    shift, scale = checked(lambda: estimate(rows, std_floor))
    moments = stream_moments(rows, products, shift, scale)
    mean, std = finish_moments(rows, moments, shift, scale, std_floor)
    require(k, n, std)
    standard = exact(mean, std)
    values, left = _leading(_outer_products(rows, products, standard), k)
    require_rank(k, n, values)

    def transposed():
        total = None
        for start, block, x, _ in stream(
            rows, products, standard.shift, standard.scale, "components"
        ):
            u = products.split(left[start : start + len(block)].astype(np.float32), rows.block)
            total = products.accumulate(total, x, u)
        return total

    z = [products.collect(checked(transposed), (d, k))]
    values, vectors = np.linalg.eigh(inner(z, z))
    values, vectors = values[::-1], vectors[:, ::-1]
    right = polish(combine(z, vectors / np.sqrt(values)[None]))
    return standard, values, np.ascontiguousarray(right.T)


def _outer_products(rows: Rows, products: Products, standard: Standardisation) -> np.ndarray:
    """``X X^T [N, N]`` in float64, its upper triangle computed and mirrored."""
    n = rows.shape[0]
    total = np.zeros((n, n))
    shift, scale = products.place(standard.shift), products.place(standard.scale)

    def own() -> None:
        span = _HELD * rows.block
        for index, first in enumerate(range(0, n, span)):
            if index % jax.process_count() != jax.process_index():
                continue
            held = []
            for start, block in rows.blocks(first, n, f"gram from row {first}"):
                x, _ = products.standardise(block, rows.block, shift, scale)
                if start < first + span:
                    held.append((start, x))
                for place, other in held:
                    piece = products.outer(other, x)
                    height, width = min(rows.block, n - place), len(block)
                    total[place : place + height, start : start + width] = piece[:height, :width]

    checked(own)
    sum_over_processes(total)
    _mirror(total)
    # Rows and columns of the Gram matrix of centred data add up to zero: this removes delta.
    means = total.mean(axis=0)
    total += means.mean() - means[:, None] - means[None]
    return total
