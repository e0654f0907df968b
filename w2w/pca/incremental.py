"""New adapters for an existing space, without the adapters that it was built from.

A space of ``n`` models stands for their standardised matrix by its leading part: with ``s_i^2 =
(n - 1) variances_i``, the rows ``s_i V_i`` have the same inner products of columns. The update
(after Ross, Lim, Lin and Yang, "Incremental learning for robust visual tracking", IJCV 2008, with
standardisation added) finds the principal components of the stacked rows

    s_i V_i std_old / std            the old models about their mean, in the new units
    (theta_j - mean_new) / std       the new models about theirs
    sqrt(n m / (n + m)) (mean_old - mean_new) / std          the distance of both means

whose Gram matrix is that of all ``n + m`` standardised models.

Exact, up to float32 rounding of the stored space: the number of models, the mean, the deviation of
every entry (the un-standardised second moments ``(n - 1) std^2`` are merged by Chan's formula), and
the change of units of the old components. If the space has all components that its models span,
so are components and variances, as far as they are kept. Approximate: a truncated space has lost
what lies outside it, so the variances of an update are too small by at most what was lost (in the
new units), and directions outside the space can only be learnt from new models. The deviations
stay exact even then, so ``explained_variance`` reports what is missing. An entry that was constant,
or below the floor, counts as exactly constant in the old models.
"""

from typing import Any

import numpy as np

from w2w.pca.dense import constant_below
from w2w.pca.products import Moments
from w2w.pca.row_blocks import Rows
from w2w.pca.standardised import require
from w2w.subspace import Subspace, assemble

_CHUNK = 4096


def update(
    space: Subspace,
    source: Any,
    k: int | None = None,
    *,
    std_floor: float = 0.0,
    batch: int | None = None,
) -> Subspace:
    """The space of the models of ``space`` and those of ``source``.

    New models are taken in batches; each costs ``D (k + batch)^2`` multiplications in float64 on
    the host and memory for ``k + batch`` vectors.

    Args:
      space: a fitted space with positive deviations.
      source: ``[m, D]`` new models, as for :func:`w2w.pca.streaming.fit`; one is enough.
      k: number of components; None for the space's. More than it has are possible up to the
        number of stacked rows; 0 for all directions that these span.
      std_floor: entries with a standard deviation up to this count as constant.
      batch: models taken in at once; None for ``max(k, 64)``. Components beyond ``k`` are kept
        between batches where there are any, up to ``k + batch``.

    Raises:
      ValueError: models of another size or that are not finite, a space with negative deviations,
        or more components asked for than there are.
    """
    std = np.asarray(space.std, np.float64)
    if (std < 0).any():
        raise ValueError("the space has negative deviations; take their magnitudes, and change the "
                         "sign of those columns of its components")  # fmt: skip
    k = space.k if k is None else k
    batch = max(k or space.k, 64) if batch is None else batch
    if k < 0 or batch < 1:
        raise ValueError(f"expected k >= 0 and batch >= 1, got {k} and {batch}")
    rows = Rows(source, 1, batch, least=1)
    n, d = space.n + rows.shape[0], len(std)
    kept = k or n  # between batches
    if rows.shape[1] != d:
        raise ValueError(f"models have {rows.shape[1]} entries, the space has {d}")
    old = Moments(space.n, np.asarray(space.mean, np.float64), std**2 * (space.n - 1))
    # Components in the units of the entries: rows whose inner products add up to the scatter.
    factor = np.asarray(space.components, np.float64)
    factor *= np.sqrt(np.asarray(space.variances, np.float64) * (space.n - 1))[:, None] * std[None]
    values = np.zeros(0)
    for start, block in rows.blocks(0, rows.shape[0], "update"):
        new, deviations = _about_mean(block, start)
        apart = np.sqrt(old.rows * new.rows / (old.rows + new.rows)) * (old.mean - new.mean)
        old = old.merge(new)
        std = np.sqrt(old.squares / (old.rows - 1))
        std[std <= constant_below(old.mean, block.dtype, std_floor)] = 0
        stacked = np.concatenate([factor, deviations, apart[None]])
        del factor, deviations
        last = start + len(block) == rows.shape[0]
        values, factor = _compress(stacked, std, kept if last else kept + batch)
    found = len(values)
    k = k or found
    require(k, n, std)
    if found < k:
        raise ValueError(f"k = {k} components, but the {n} models span only {found} directions")
    inverse = np.divide(1, std, out=np.zeros_like(std), where=std != 0)
    factor *= inverse[None]
    factor /= np.sqrt(values)[:, None]
    components = np.array(factor, np.float32)
    return assemble(old.mean, std, components, values / (n - 1), n)


def _about_mean(block: np.ndarray, start: int) -> tuple[Moments, np.ndarray]:
    """Moments of new models, and their deviations from their mean in float64."""
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise ValueError(f"weights of model {start + int(bad[0])} are not finite")
    deviations = block.astype(np.float64)
    mean = deviations.mean(axis=0)
    deviations -= mean[None]
    return Moments(len(block), mean, np.einsum("ij,ij->j", deviations, deviations)), deviations


def _compress(stacked: np.ndarray, std: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading ``k`` squared singular values in units of ``std``, and rows in units of entries.

    Rows are ``s_i V_i std``, with orthonormal ``V_i``; fewer than ``k`` where there are fewer.
    """
    inverse = np.divide(1, std, out=np.zeros_like(std), where=std != 0)
    gram = np.zeros((len(stacked), len(stacked)))
    for start in range(0, stacked.shape[1], _CHUNK):
        where = slice(start, start + _CHUNK)
        scaled = stacked[:, where] * inverse[None, where]
        gram += scaled @ scaled.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    # Below this, eigenvectors of a Gram matrix in float64 are rounding errors.
    sound = values > 1e-12 * values[0]
    return values[sound], vectors[:, sound].T @ stacked
