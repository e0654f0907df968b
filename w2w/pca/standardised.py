"""Standardisation of rows as they stream by, and its exact correction in products.

A block is shifted and scaled in float32, ``X0 = (Theta - shift) scale``, by values known before a
pass. With the column means ``delta`` of ``X0`` and ``r = 1 / (scale std)``, the standardised matrix
is ``X = (X0 - 1 delta^T) diag(r)``, and

    X^T X W = diag(r) (X0^T X0 - N delta delta^T) diag(r) W.
"""

from typing import Any, NamedTuple

import numpy as np

from w2w.pca.dense import constant_below
from w2w.pca.products import Device, Moments, Products, checked, merge_over_processes
from w2w.pca.row_blocks import Rows

# Beside the largest, eigenvalues of a float32 product below this are rounding errors.
RESOLUTION = 1e-6
_CHUNK = 4096


class Standardisation(NamedTuple):
    """How rows are standardised in a pass, and what remains.

    Attributes:
      shift: ``[D]`` float32.
      scale: ``[D]`` float32.
      delta: ``[D]`` float64, column means of the shifted and scaled rows.
      mean: ``[D]`` float64, of the rows.
      std: ``[D]`` float64, unbiased; 0 for columns that do not vary.
    """

    shift: np.ndarray
    scale: np.ndarray
    delta: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def exact(mean: np.ndarray, std: np.ndarray) -> Standardisation:
    """Standardisation by known moments; the rounding of the mean to float32 is in ``delta``."""
    shift = mean.astype(np.float32)
    scale = np.divide(1, std, out=np.zeros_like(std), where=std != 0).astype(np.float32)
    return Standardisation(shift, scale, (mean - shift) * scale, mean, std)


def estimate(rows: Rows, std_floor: float, count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """``(shift, scale)`` in float32 from evenly spaced rows.

    A column that hardly varies among them has scale 1: columns of other scales must not come from
    a rounding error.
    """
    sample = rows.sample(count)
    first = sample[0].copy()
    sample -= first[None]  # exactly 0 in a constant column
    shift = (first + sample.mean(axis=0, dtype=np.float64)).astype(np.float32)
    std = sample.std(axis=0, dtype=np.float64, ddof=1)
    unsure = std <= 4 * constant_below(shift.astype(np.float64), read_dtype(rows), std_floor)
    return shift, np.where(unsure, 1, 1 / np.where(unsure, 1, std)).astype(np.float32)


def read_dtype(rows: Rows) -> np.dtype:
    """The type in which values arrive."""
    return np.dtype(np.float32) if rows.dtype == np.float64 else rows.dtype


def finish_moments(
    rows: Rows, moments: Moments, shift: np.ndarray, scale: np.ndarray, std_floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased deviation ``[D]`` from those of the shifted and scaled rows."""
    mean = shift + moments.mean / scale
    std = np.sqrt(moments.squares / (moments.rows - 1)) / scale
    std[std <= constant_below(mean, read_dtype(rows), std_floor)] = 0
    return mean, std


def require(k: int, n: int, std: np.ndarray) -> None:
    """Raises ValueError where fewer than ``k`` entries vary."""
    varying = int(np.count_nonzero(std))
    if k > varying:
        raise ValueError(f"k = {k} components of {n} models with {len(std)} entries; "
                         f"at most {min(n - 1, varying)}")  # fmt: skip


def require_rank(k: int, n: int, values: np.ndarray) -> None:
    """Raises ValueError where fewer than ``k`` eigenvalues stand above rounding errors."""
    found = int(np.count_nonzero(values > RESOLUTION * values[:1]))
    if found < k:
        raise ValueError(f"k = {k} components, but the {n} models span only {found} directions")


def stream(rows: Rows, products: Products, shift: np.ndarray, scale: np.ndarray, title: str) -> Any:
    """``(start, block, X0, mask)`` of every block of this process's share of the rows."""
    shift, scale = products.place(shift), products.place(scale)
    for start, block in rows.blocks(*rows.own_range(), title):
        yield start, block, *products.standardise(block, rows.block, shift, scale)


def check_finite(start: int, block: np.ndarray, finite: Device) -> None:
    """Raises ValueError with the number of the first row of a block that is not finite."""
    bad = np.flatnonzero(~np.asarray(finite))
    if len(bad):
        row = int(bad[0])
        reason = "overflow float32" if np.isfinite(block[row]).all() else "are not finite"
        raise ValueError(f"weights of model {start + row} {reason}")


def stream_moments(rows: Rows, products: Products, shift: np.ndarray, scale: np.ndarray) -> Moments:
    """Moments of all shifted and scaled rows."""

    def own() -> Moments:
        moments = Moments(0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1]))
        for start, block, x, mask in stream(rows, products, shift, scale, "moments"):
            check_finite(start, block, products.finite(x))
            moments = moments.merge(products.moments(x, mask))
        return moments

    return merge_over_processes(checked(own))


def multiply(
    rows: Rows,
    products: Products,
    right: np.ndarray,
    shift: np.ndarray,
    scale: np.ndarray,
    title: str,
    with_moments: bool = False,
) -> tuple[np.ndarray, Moments]:
    """``X0^T X0 right [D, l]`` in one pass, and the moments of ``X0`` where asked for."""

    def own() -> tuple[Device | None, Moments]:
        placed, total = products.place(right), None
        moments = Moments(0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1]))
        for start, block, x, mask in stream(rows, products, shift, scale, title):
            y = products.times(x, placed)
            total = products.accumulate(total, x, y)
            check_finite(start, block, products.finite(y))  # a bad entry makes all its row of y bad
            if with_moments:
                moments = moments.merge(products.moments(x, mask))
        return total, moments

    total, moments = checked(own)
    return products.collect(total, right.shape), merge_over_processes(moments)


def centre(product: np.ndarray, right: np.ndarray, delta: np.ndarray, n: int) -> np.ndarray:
    """``product - N delta (delta^T right)``, in place."""
    row = np.zeros(right.shape[1])
    for i in range(0, len(right), _CHUNK):
        row += delta[i : i + _CHUNK] @ right[i : i + _CHUNK].astype(np.float64)
    row *= n
    for i in range(0, len(product), _CHUNK):
        product[i : i + _CHUNK] -= delta[i : i + _CHUNK, None] * row[None]
    return product
