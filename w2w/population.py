"""Stacks of adapters and their division into groups that are trained at once.

A population is a pytree whose leaves have a leading axis of models, ``[N, ...]``, ready for
``jax.vmap``. All groups of one population have the same size, so one compiled step serves them all;
the last is filled up with copies of its last model, which are dropped when results are collected.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from w2w.lora_layout import Adapter, Layout, flatten, unflatten


def stack(trees: Sequence[Any]) -> Any:
    """One pytree of leaves ``[N, ...]`` from N pytrees of equal structure."""
    if not trees:
        raise ValueError("no trees to stack")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any) -> list[Any]:
    """The inverse of :func:`stack`."""
    return [take(tree, i) for i in range(count(tree))]


def take(tree: Any, indices: Any) -> Any:
    """Model ``indices`` (an integer, or an array or slice of them) of a population."""
    return jax.tree.map(lambda leaf: leaf[indices], tree)


def count(tree: Any) -> int:
    """Number of models of a population.

    Raises:
      ValueError: leaves disagree about it, or one has no leading axis.
    """
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"leaves of a population have different leading axes: {sorted(sizes)}")
    return sizes.pop()[0]


def flatten_population(adapters: Adapter, layout: Layout) -> jax.Array:
    """Flat vectors ``[N, D]`` of a population of adapters."""
    return jax.vmap(lambda adapter: flatten(adapter, layout))(adapters)


def unflatten_population(vectors: jax.Array, layout: Layout) -> Adapter:
    """The inverse of :func:`flatten_population`."""
    return jax.vmap(lambda vector: unflatten(vector, layout))(vectors)


@dataclasses.dataclass(frozen=True)
class Group:
    """Models that are processed together.

    Attributes:
      indices: ``[size]`` numbers of the models; the last one repeated beyond ``valid``.
      valid: how many of them count.
    """

    indices: np.ndarray
    valid: int


def groups(n: int, limit: int, devices: int = 1) -> list[Group]:
    """Divides ``n`` models into groups of one size, in order, with the least padding.

    Args:
      n: number of models.
      limit: most models that a device can hold at once.
      devices: devices over which a group's leading axis is sharded; divides the size.

    Raises:
      ValueError: an argument is not positive.
    """
    if min(n, limit, devices) < 1:
        raise ValueError(f"n = {n}, limit = {limit} and devices = {devices} must be positive")
    number = -(-n // (limit * devices))
    size = -(-n // (number * devices)) * devices
    starts = range(0, n, size)
    return [
        Group(np.minimum(np.arange(start, start + size), n - 1), min(size, n - start))
        for start in starts
    ]


def collect(parts: Sequence[Any], of: Sequence[Group]) -> Any:
    """Joins the results of all groups, pytrees of leaves ``[size, ...]``, without the padding.

    Returns:
      A pytree of numpy leaves ``[n, ...]`` on the host.
    """
    kept = [
        jax.tree.map(lambda leaf, valid=group.valid: np.asarray(leaf)[:valid], part)
        for part, group in zip(parts, of, strict=True)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)
