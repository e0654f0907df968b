"""Principal subspace of a weight bank larger than memory, in a few passes over its rows.

:func:`fit` gives the :class:`w2w.subspace.Subspace` that :func:`w2w.subspace.fit` gives, from any
source of rows (an array, a memory map, a :class:`w2w.bank.Bank`). With ``X = (Theta - mean) / std``
and ``A = X^T X [D, D]``:

* ``"randomized"`` (``N`` and ``D`` both large): block Krylov iteration from a random start (Musco
  and Musco, NeurIPS 2015; Halko, Martinsson and Tropp, SIAM Review 2011), extracted by the Nystrom
  formula (:func:`w2w.pca.krylov.extract`). A pass reads every row once and forms ``A Q`` as the sum
  over row blocks of ``X_b^T (X_b Q)``: ``4 N D l`` operations for ``l = k + oversampling`` columns.
  Passes end when the estimated angle to the true leading subspace is below ``tolerance``; a gap
  ``g = lambda_{k+1} / lambda_k`` needs about ``log(200 / tolerance) / log(1 / g)`` passes, fewer
  where ``g`` is near 1.
* ``"gram"`` (``N`` or ``D`` small): eigenvectors of ``X^T X`` (one pass) or of ``X X^T``, of which
  only the upper triangle is computed; then one pass for the components.

Standardisation. A block is shifted and scaled in float32 to about zero mean and unit deviation, by
values known before the pass: estimates from evenly spaced rows in the first pass, the moments
found by it in the others; a copy of the block costs far less than folding the mean into products
of uncentred float32 numbers would lose. What the values miss is corrected exactly in the product
(:mod:`w2w.pca.standardised`). The first pass thus gives mean, deviation (Chan's formula) and the
first product at once: its test matrix is random, so ``A (Omega / r)``, which is what the correction
leaves, serves as well as ``A Omega``. Products are float32 with highest precision; sums over
blocks of moments, orthogonalisation and small matrices are float64.

Memory: ``(depth + 3) D l`` float32 numbers and four blocks. Processes (after
:func:`common.distributed.initialize`) read a share of the rows each and add their sums; all return
the same space.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from w2w.pca.products import Products
from w2w.pca.row_blocks import Rows
from w2w.pca.streaming_gram import gram_columns, gram_rows
from w2w.pca.streaming_randomized import Options, Pass, randomized
from w2w.subspace import Subspace, assemble

__all__ = ["Pass", "fit"]

# Widest matrix whose dense eigenproblem is chosen by method="auto".
_DENSE_LIMIT = 8192


def fit(
    source: Any,
    k: int,
    method: str = "auto",
    *,
    std_floor: float = 0.0,
    oversampling: int | None = None,
    tolerance: float = 2e-4,
    max_passes: int = 12,
    depth: int = 3,
    seed: int = 0,
    block: int | None = None,
    block_bytes: int = 256 * 2**20,
    devices: Sequence[Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_pass: Callable[[Pass], None] | None = None,
) -> Subspace:
    """The ``k`` leading principal components of a standardised population, in a few passes.

    Args:
      source: ``[N, D]`` floating-point adapters: ``shape``, ``dtype`` and row slices that are numpy
        arrays. float64 is read as float32.
      k: number of components, at most ``N - 1`` and the number of entries that vary.
      method: ``"gram"``, ``"randomized"`` or ``"auto"``: gram where the smaller side is at most
        8,192 and takes fewer operations than four passes.
      std_floor: entries with a standard deviation up to this count as constant; so do those whose
        deviation is within the rounding error of their mean in the source's dtype.
      oversampling: columns of a Krylov block beyond ``k``; None for ``max(16, k // 10)``.
      tolerance: estimated angle (rad) to the true leading subspace at which passes end. At least
        two are made.
      max_passes: passes at most; a warning says that the tolerance was not reached. A spectrum
        without a gap after ``k`` leaves the last components undetermined whatever the passes.
      depth: blocks of the Krylov basis before it restarts from its best vectors.
      seed: of the random test matrix.
      block: rows read at a time; None for as many as ``block_bytes`` hold in float32.
      block_bytes: see ``block``.
      devices: devices of this process to use; all by default.
      checkpoint: folder for the state after every pass of ``"randomized"``; a fit that was stopped
        continues from it to the same result, and one that ended returns at once. Processes share
        the folder. ``"gram"``, which is for small problems, starts over.
      on_pass: called after every pass of ``"randomized"``.

    Raises:
      ValueError: a row that is not finite (named), a source that is no floating-point matrix of at
        least two models, an option out of range, a checkpoint of other options or data, or more
        components asked for than the population has directions.
    """
    if method not in ("auto", "gram", "randomized"):
        raise ValueError(f"unknown method {method!r}; expected one of auto, gram, randomized")
    if max_passes < 2 or depth < 1 or not 0 < tolerance < 1:
        raise ValueError(
            "expected max_passes >= 2, depth >= 1 and 0 < tolerance < 1, "
            f"got {max_passes}, {depth} and {tolerance}"
        )
    rows = Rows(source, block_bytes, block)
    n, d = rows.shape
    if not 1 <= k <= min(n - 1, d):
        limit = min(n - 1, d)
        raise ValueError(f"k = {k} components of {n} models with {d} entries; at most {limit}")
    oversampling = max(16, k // 10) if oversampling is None else oversampling
    if oversampling < 0:
        raise ValueError(f"oversampling must be at least 0, got {oversampling}")
    width = min(k + oversampling, n - 1, d)
    products = Products(devices)
    if method == "auto":
        small = min(n, d)
        # n d small operations of the triangle against four passes of 4 n d width.
        method = "gram" if small <= min(_DENSE_LIMIT, 16 * width) else "randomized"
    if method == "randomized":
        options = Options(k, width, tolerance, max_passes, depth, seed, std_floor)
        solution = randomized(rows, products, options, checkpoint, on_pass)
    else:
        solution = (gram_columns if d <= n else gram_rows)(rows, products, k, std_floor)
    standard, values, components = solution
    return assemble(standard.mean, standard.std, components, values / (n - 1), n)
