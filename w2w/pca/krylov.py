"""Block Krylov basis of a symmetric positive semidefinite matrix known by its products alone.

From products ``Z_i = A Q_i`` of orthonormal blocks ``Q_i [D, l]`` (block Lanczos with full
reorthogonalisation; Golub and Van Loan, Matrix Computations, 10.3.6), with ``K = [Q_1 .. Q_q]``:

    A K = [K Q_{q+1}] H,      T = K^T A K = the first rows of H.

Tall arrays are float32 on the host; every inner product of them is summed in float64, and so are
all small matrices.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

# A direction that is this small beside the product it belongs to is a rounding error of float32.
NEGLIGIBLE = 1e-6
_CHUNK = 4096


def _wide(blocks: Sequence[np.ndarray], where: slice) -> np.ndarray:
    return np.concatenate([b[where] for b in blocks], axis=1, dtype=np.float64)


def inner(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """``[left]^T [right]`` in float64, of blocks of columns."""
    total = np.zeros((sum(b.shape[1] for b in left), sum(b.shape[1] for b in right)))
    for start in range(0, len(left[0]), _CHUNK):
        where = slice(start, start + _CHUNK)
        first = _wide(left, where)
        total += first.T @ (first if left is right else _wide(right, where))
    return total


def combine(blocks: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """``[blocks] weights`` in float32, ``[D, columns of weights]``."""
    parts = np.split(weights.astype(np.float32), np.cumsum([b.shape[1] for b in blocks])[:-1])
    result = np.empty((len(blocks[0]), weights.shape[1]), np.float32)
    for start in range(0, len(result), _CHUNK):
        where = slice(start, start + _CHUNK)
        result[where] = sum(b[where] @ part for b, part in zip(blocks, parts, strict=True))
    return result


def orthonormalise(
    z: np.ndarray, basis: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(Q, C, S)`` with ``Z = [basis] C + Q S`` and ``Q`` orthonormal, also to the basis.

    Two rounds of block Gram-Schmidt and of the eigendecomposition of the float64 Gram matrix (the
    rank-revealing form of CholeskyQR2). Directions below ``NEGLIGIBLE`` of the columns of ``Z`` are
    dropped, so ``Q`` may be narrower than ``Z``, and empty. ``Z`` is overwritten.
    """
    norms = np.sqrt(sum(np.einsum("ij,ij->j", p, p) for p in _pieces(z)))
    norms[norms == 0] = 1
    coefficients = np.zeros((sum(b.shape[1] for b in basis), z.shape[1]))
    factor = np.diag(norms)
    for i in range(0, len(z), _CHUNK):
        z[i : i + _CHUNK] /= norms.astype(np.float32)[None]
    for threshold in (NEGLIGIBLE, 0.1):
        if basis:
            found = inner(basis, [z])
            coefficients += found @ factor
            for i in range(0, len(z), _CHUNK):
                where = slice(i, i + _CHUNK)
                z[where] -= combine([b[where] for b in basis], found)
        tall = [z]
        values, vectors = np.linalg.eigh(inner(tall, tall))
        kept = values > threshold**2
        roots, vectors = np.sqrt(values[kept])[::-1], vectors[:, kept][:, ::-1]
        factor = (roots[:, None] * vectors.T) @ factor
        z = combine(tall, vectors / roots[None])
        if not kept.any():
            break
    return z, coefficients, factor


def _pieces(z: np.ndarray) -> Iterator[np.ndarray]:
    return (z[i : i + _CHUNK].astype(np.float64) for i in range(0, len(z), _CHUNK))


def polish(v: np.ndarray) -> np.ndarray:
    """The orthonormal matrix nearest to nearly orthonormal ``v [D, k]``: ``v (v^T v)^(-1/2)``."""
    columns = [v]
    values, vectors = np.linalg.eigh(inner(columns, columns))
    return combine(columns, (vectors / np.sqrt(values)[None]) @ vectors.T)


class Ritz(NamedTuple):
    """Leading eigenpairs found from a basis ``[K Q_{q+1}]``.

    Attributes:
      values: ``[j]`` eigenvalues, descending, ``j >= k`` where there are as many.
      vectors: ``[columns of the basis, j]`` coordinates of the eigenvectors.
      change: largest principal angle (rad) between the subspaces of the first k before and after
        the last product.
      error: estimated angle (rad) from the true subspace, see :func:`extract`.
    """

    values: np.ndarray
    vectors: np.ndarray
    change: float
    error: float


def extract(h: np.ndarray, k: int, keep: int) -> Ritz:
    """Leading ``keep`` eigenpairs from ``H [m + w, m]``.

    The eigenpairs are those of the Nystrom approximation ``(A K) (K^T A K)^+ (A K)^T`` (Halko,
    Martinsson and Tropp, 2011, section 5.4): one more application of A than the Rayleigh-Ritz
    vectors ``K W`` of the same products have seen, at no cost. An application of A shrinks what is
    outside the leading subspace by ``g = lambda_{k+1} / lambda_k`` or more. With ``change``, the
    angle between both subspaces, the error left is about ``tan(change) g / (1 - g)``; ``g`` is
    taken from the eigenvalues found.
    """
    m = h.shape[1]
    theta, w = np.linalg.eigh((h[:m] + h[:m].T) / 2)
    theta, w = theta[::-1], w[:, ::-1]
    sound = theta > NEGLIGIBLE * theta[0]
    root = h @ (w[:, sound] / np.sqrt(theta[sound])[None])
    if root.shape[1] == 0:
        return Ritz(np.zeros(0), np.zeros((len(h), 0)), np.pi / 2, np.pi / 2)
    columns = root.shape[1]
    kept = min(max(keep, k + 1), columns)
    values, vectors = scipy.linalg.eigh(
        root.T @ root, subset_by_index=(columns - kept, columns - 1), overwrite_a=True
    )
    values, vectors = values[::-1].clip(0), root @ vectors[:, ::-1]
    vectors /= np.sqrt(values.clip(1e-300))[None]
    if len(h) == m:
        return Ritz(values, vectors, 0.0, 0.0)  # an invariant subspace
    if len(values) < k:
        return Ritz(values, vectors, np.pi / 2, np.pi / 2)
    before = np.zeros((len(h), k))
    before[:m] = w[:, :k]
    leading = vectors[:, :k]
    sine = float(np.linalg.norm(before - leading @ (leading.T @ before), 2))
    change = float(np.arcsin(min(1.0, sine)))
    ratio = float(values[k] / values[k - 1]) if len(values) > k else 0.0
    decay = ratio / max(1.0 - ratio, 1e-12)
    error = float(np.arctan(np.tan(change) * decay))
    return Ritz(values, vectors, change, error)
