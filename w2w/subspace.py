"""The linear subspace of a population of adapters: standardisation, PCA, projection, sampling.

Flat adapter vectors ``theta [D]`` (see :mod:`w2w.lora_layout`) are standardised entry by entry and
described by their coefficients ``beta [k]`` on the leading principal components ``V [k, D]``
(Dravid et al., NeurIPS 2024, section 3):

    beta = ((theta - mean) / std) V^T          theta = (beta V) * std + mean

Coefficients are not whitened: each keeps the variance of its component. An entry that does not vary
over the population has ``std = 0``; it takes no part in the analysis and is always its mean.
Fitting runs on the host in float64, in blocks, so that ``weights`` may be a memory-mapped array of
any size; everything else is pure JAX. For populations larger than memory,
:mod:`w2w.pca.streaming` fits the same space in a few passes over the rows, on accelerators and by
several processes, and :mod:`w2w.pca.incremental` adds models to a space.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from common.storage import load_arrays, save_arrays
from w2w.components import combine, correlate
from w2w.pca.dense import METHODS, Standardised, moments

_HIGHEST = jax.lax.Precision.HIGHEST


class Subspace(struct.PyTreeNode):
    """A principal subspace of adapter vectors.

    Attributes:
      mean: ``[D]`` mean over the models.
      std: ``[D]`` unbiased standard deviation; 0 for entries that do not vary. Spaces from
        elsewhere may hold negative entries: the sign cancels between projection and its inverse.
      components: ``[k, D]`` orthonormal rows; in each, the entry of largest magnitude is positive.
        May be held in half precision, see :func:`narrow`.
      variances: ``[k]`` variance of the training coefficients, descending.
      n: number of models the space was built from.
    """

    mean: jax.Array
    std: jax.Array
    components: jax.Array
    variances: jax.Array
    n: int = struct.field(pytree_node=False)

    @property
    def k(self) -> int:
        """Number of components."""
        return self.components.shape[0]


def fit(
    weights: Any,
    k: int | None = None,
    method: str = "gram",
    std_floor: float = 0.0,
    chunk: int = 8192,
    seed: int = 0,
) -> Subspace:
    """Standardises the population and finds its ``k`` leading principal components.

    Args:
      weights: ``[N, D]`` flat adapters; a numpy or JAX array or a memory map.
      k: number of components, at most ``min(N - 1, D)``, which is also the default.
      method: ``"gram"`` (eigenvectors of the ``N x N`` or ``D x D`` product, whichever is smaller;
        one pass over blocks and one to form the components), ``"svd"`` (dense, the reference), or
        ``"randomized"`` (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4, with 8 power
        iterations; approximate where the spectrum has no gap at ``k``).
      std_floor: entries with a standard deviation up to this count as constant; so do those whose
        deviation is within the rounding error of their mean.
      chunk: number of columns (or rows) converted to float64 at a time.
      seed: of the random test matrix of ``"randomized"``.

    Raises:
      ValueError: weights that are not finite or not a matrix of at least two models, an unknown
        method, or more components asked for than the population has directions.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    weights = weights if isinstance(weights, np.ndarray) else np.asarray(weights)
    if weights.ndim != 2 or weights.shape[0] < 2:
        raise ValueError(f"weights must be [N >= 2, D], got shape {weights.shape}")
    n, d = weights.shape
    mean, std = moments(weights, std_floor, chunk)
    limit = min(n - 1, int(np.count_nonzero(std)))
    k = limit if k is None else k
    if not 1 <= k <= limit:
        raise ValueError(f"k = {k} components of {n} models with {d} entries; at most {limit}")

    data = Standardised(weights, mean, std, chunk)
    values, components = METHODS[method](data, k, seed)
    # Below this, eigenvectors of a Gram matrix in float64 are rounding errors.
    found = int(np.count_nonzero(values > 1e-12 * values[0]))
    if found < k:
        raise ValueError(f"k = {k} components, but the {n} models span only {found} directions")
    return assemble(mean, std, components, values / (n - 1), n)


def assemble(
    mean: np.ndarray, std: np.ndarray, components: np.ndarray, variances: np.ndarray, n: int
) -> Subspace:
    """The space of these host arrays; signs of ``components [k, D]`` are changed in place.

    In each component the entry of largest magnitude becomes positive.
    """
    for row in components:
        row *= np.sign(row[np.abs(row).argmax()])
    return Subspace(
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        components=jnp.asarray(components, jnp.float32),
        variances=jnp.asarray(variances, jnp.float32),
        n=n,
    )


def project(space: Subspace, weights: jax.Array) -> jax.Array:
    """Coefficients ``[..., k]`` of adapter vectors ``[..., D]``."""
    inverse = jnp.where(space.std == 0, 0, 1 / jnp.where(space.std == 0, 1, space.std))
    shape = (1,) * (weights.ndim - 1) + space.mean.shape
    standard = (weights - space.mean.reshape(shape)) * inverse.reshape(shape)
    return correlate(standard, space.components)


def unproject(space: Subspace, coefficients: jax.Array) -> jax.Array:
    """Adapter vectors ``[..., D]`` of coefficients ``[..., j]``, ``j <= k``.

    With fewer coefficients than components the missing ones are zero.
    """
    j = coefficients.shape[-1]
    if j > space.k:
        raise ValueError(f"{j} coefficients for a space of {space.k} components")
    shape = (1,) * (coefficients.ndim - 1) + space.mean.shape
    standard = combine(coefficients, space.components[:j])
    return standard * space.std.reshape(shape) + space.mean.reshape(shape)


def truncate(space: Subspace, k: int) -> Subspace:
    """The space of the first ``k`` components."""
    if not 1 <= k <= space.k:
        raise ValueError(f"k = {k} of a space of {space.k} components")
    return space.replace(components=space.components[:k], variances=space.variances[:k])


def narrow(space: Subspace, dtype: Any) -> Subspace:
    """The same space with its components held in ``dtype`` (``jnp.bfloat16``: half the memory).

    Each entry is rounded once; coefficients, mean and deviations stay float32, and so do all
    products (see :mod:`w2w.components`).
    """
    return space.replace(components=space.components.astype(dtype))


def widen(space: Subspace, k: int) -> Subspace:
    """The same space with ``k`` components, the added ones zero and without variance.

    Spaces of different sizes then run through one compiled program.
    """
    if k < space.k:
        raise ValueError(f"k = {k} is less than the space's {space.k} components")
    more = k - space.k
    return space.replace(
        components=jnp.pad(space.components, ((0, more), (0, 0))),
        variances=jnp.pad(space.variances, (0, more)),
    )


def explained_variance(space: Subspace) -> jax.Array:
    """Share of the standardised variance that each component explains, ``[k]``.

    The total variance is the number of entries that vary, as each has variance 1.
    """
    return space.variances / jnp.sum(space.std != 0).astype(space.variances.dtype)


def heldout_reconstruction(
    weights: Any,
    heldout: Any,
    counts: Sequence[int],
    ks: Sequence[int],
    method: str = "gram",
) -> np.ndarray:
    """Relative squared error of models that the space was not built from.

    The error is ``sum |theta - theta_hat|^2 / sum |theta - mean|^2`` with every entry in units of
    its standard deviation over all of ``weights``, and the mean over all of ``weights``: one
    yardstick for all entries of the table. 0 is perfect, 1 is as good as the mean model.

    Args:
      weights: ``[N, D]`` models, in random order: the first ``counts[i]`` build a space.
      heldout: ``[M, D]`` other models.
      counts: numbers of models.
      ks: numbers of components; where a count of ``n`` models gives fewer, ``n - 1`` are used.
      method: see :func:`fit`.

    Returns:
      ``[len(counts), len(ks)]``.
    """
    weights, heldout = np.asarray(weights), np.asarray(heldout)
    if max(counts) > len(weights):
        raise ValueError(f"counts up to {max(counts)} of {len(weights)} models")
    mean, std = moments(weights, 0.0, 8192)
    scale = np.divide(1, std, out=np.zeros_like(std), where=std != 0)
    total = np.sum(((heldout - mean) * scale) ** 2)
    errors = np.empty((len(counts), len(ks)))
    for i, count in enumerate(counts):
        # One fit for all ks: components do not depend on how many are kept.
        space = fit(weights[:count], min(max(ks), count - 1), method)
        coefficients = project(space, jnp.asarray(heldout))
        for j, k in enumerate(ks):
            estimate = unproject(space, coefficients[:, : min(k, space.k)])
            errors[i, j] = np.sum(((heldout - np.asarray(estimate)) * scale) ** 2) / total
    return errors


def sample(
    key: jax.Array,
    space: Subspace,
    n: int,
    factor: float = 1.0,
    mean: jax.Array | None = None,
    std: jax.Array | None = None,
) -> jax.Array:
    """Coefficients ``[n, k]`` of new models: an independent Gaussian for each component.

    Args:
      key: random key.
      space: the space.
      n: number of models.
      factor: multiplies the standard deviations; below 1 is closer to the mean model.
      mean: ``[k]`` means of the training coefficients; None for 0, their exact value.
      std: ``[k]`` their standard deviations; None for the square roots of the space's variances.
    """
    mean = jnp.zeros_like(space.variances) if mean is None else mean
    std = jnp.sqrt(space.variances) if std is None else std
    noise = jax.random.normal(key, (n, std.shape[0]), std.dtype)
    return mean[None] + factor * std[None] * noise


def nearest(
    coefficients: jax.Array, training: jax.Array, exclude_self: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Index ``[M]`` and cosine ``[M]`` of the most similar of ``training [N, k]``.

    With ``exclude_self``, row i of ``coefficients [M, k]`` is row i of ``training`` and is not
    compared with itself.
    """
    unit, others = (
        x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (coefficients, training)
    )
    cosines = jnp.matmul(unit, others.T, precision=_HIGHEST)
    if exclude_self:
        cosines = jnp.where(jnp.eye(len(cosines), dtype=bool), -jnp.inf, cosines)
    return jnp.argmax(cosines, axis=1), jnp.max(cosines, axis=1)


def save(
    path: str | os.PathLike[str], space: Subspace, header: Mapping[str, Any] | None = None
) -> pathlib.Path:
    """Writes the space to a ``.safetensors`` file with a JSON header."""
    arrays = {name: getattr(space, name) for name in ("mean", "std", "components", "variances")}
    return save_arrays(path, arrays, {**(header or {}), "n": space.n})


def load(path: str | os.PathLike[str]) -> tuple[Subspace, dict[str, Any]]:
    """Reads ``(space, header)`` from :func:`save`'s file."""
    arrays, header = load_arrays(path)
    n = header.pop("n")
    return Subspace(**{name: jnp.asarray(array) for name, array in arrays.items()}, n=n), header
