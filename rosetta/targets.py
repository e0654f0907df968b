"""Maps that a generator's units shall have, and how well they agree with those it makes.

The agreement of a unit's map g with a wanted map m is their cosine <g, m> / (|g| |m|), both
standardised by their statistics over the mined images and the smaller enlarged to the size of the
larger. No map of the generator is enlarged: a larger target is brought down by the adjoint, and
|U g|^2 = <g, U^T U g> (`rosetta.resize`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rosetta.resize import matrix
from rosetta.units import Layout, MapError
from rosetta.zoo.tapped import Maps

__all__ = [
    "EPSILON", "Statistics", "Target", "agreement", "make_targets", "repeat", "rows_of",
]

EPSILON = 1e-5  # added to deviations, as in the published code
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each unit of a model over the mined images, `[units]`."""

    mean: np.ndarray
    deviation: np.ndarray

    def standardise(self, maps: np.ndarray, unit: int) -> np.ndarray:
        """Maps `[images, s, s]` of one unit, less its mean, over its deviation."""
        return (maps - self.mean[unit]) / (self.deviation[unit] + EPSILON)


class Target(struct.PyTreeNode):
    """What the maps of one tap of the generator shall be like, for P pairs.

    Attributes:
      maps: `[images, s, s, P]`, the wanted maps, standardised, on the generator's grid.
      norms: `[images, P]` of the wanted maps on the common grid.
      grams: `[P, s, s]`, `M^T M` of the enlargement of the generator's map to the common grid.
      weights: `[images, P]` of the pairs.
      channels: `[P]` of the tap.
      means, deviations: `[P]` of the generator's units.
      tap: name.
    """

    maps: jax.Array
    norms: jax.Array
    grams: jax.Array
    weights: jax.Array
    channels: jax.Array
    means: jax.Array
    deviations: jax.Array
    tap: str = struct.field(pytree_node=False)


def make_targets(
    layout: Layout,
    statistics: Statistics,
    units: Sequence[int] | np.ndarray,
    maps: Sequence[np.ndarray],
    weights: Sequence[float] | np.ndarray | None = None,
) -> tuple[Target, ...]:
    """Wanted maps of units of a generator, grouped by its taps.

    Args:
      layout: of the generator.
      statistics: of the generator's units.
      units: `[P]` numbers of the generator's units; the same may occur more than once.
      maps: for each of them the wanted map `[images, t, t]` of any size, standardised.
      weights: `[P]` of the pairs; 1 by default.

    Raises:
      MapError: no pairs, maps that are not square or not finite, or different numbers of images.
    """
    if len(units) == 0 or len(units) != len(maps):
        raise MapError(f"{len(maps)} wanted maps for {len(units)} units of {layout.name!r}")
    for unit, wanted in zip(units, maps, strict=True):
        shape = np.shape(wanted)
        if len(shape) != 3 or shape[1] != shape[2] or shape[0] != len(maps[0]):
            raise MapError(
                f"unit {unit} of {layout.name!r}: wanted map of shape {shape}, expected "
                f"[{len(maps[0])}, size, size]"
            )
        if not np.isfinite(wanted).all():
            raise MapError(f"unit {unit} of {layout.name!r}: the wanted map is not finite")
    weights = np.ones(len(units)) if weights is None else np.asarray(weights, np.float64)
    groups: dict[int, list[int]] = {}
    for place, unit in enumerate(units):
        groups.setdefault(layout.find(int(unit))[0], []).append(place)
    result = []
    for tap, places in sorted(groups.items()):
        size = layout.sizes[tap]
        moved, norms, grams = zip(*(_on_grid(np.asarray(maps[p]), size) for p in places),
                                  strict=True)
        numbers = np.array([int(units[p]) for p in places])
        result.append(
            Target(
                maps=jnp.asarray(np.stack(moved, -1), jnp.float32),
                norms=jnp.asarray(np.stack(norms, -1), jnp.float32),
                grams=jnp.asarray(np.stack(grams), jnp.float32),
                weights=jnp.asarray(np.tile(weights[places], (len(maps[0]), 1)), jnp.float32),
                channels=jnp.asarray(numbers - layout.offsets[tap], jnp.int32),
                means=jnp.asarray(statistics.mean[numbers], jnp.float32),
                deviations=jnp.asarray(statistics.deviation[numbers], jnp.float32),
                tap=layout.taps[tap],
            )
        )
    return tuple(result)


def repeat(targets: tuple[Target, ...], times: int) -> tuple[Target, ...]:
    """The targets of a batch that holds every image `times` times, one copy after another."""

    def tiled(x: jax.Array) -> jax.Array:
        return jnp.tile(x, (times, *(1,) * (x.ndim - 1)))

    return tuple(
        t.replace(maps=tiled(t.maps), norms=tiled(t.norms), weights=tiled(t.weights))
        for t in targets
    )


def rows_of(targets: Sequence[Target], rows: np.ndarray) -> tuple[Target, ...]:
    """The targets of some of the images of a batch, `rows` their places."""
    return tuple(
        t.replace(maps=t.maps[rows], norms=t.norms[rows], weights=t.weights[rows]) for t in targets
    )


def agreement(targets: Sequence[Target], maps: Maps) -> jax.Array:
    """Weighted mean over pairs of the cosine of standardised maps, `[images]`, in [-1, 1].

    A pair whose wanted map is zero, or whose generator map is at its mean everywhere, counts 0.
    """
    total: Any = 0.0
    weight: Any = 0.0
    for target in targets:
        cosine = _cosine(target, maps[target.tap])
        total = total + jnp.sum(cosine * target.weights, 1)
        weight = weight + jnp.sum(target.weights, 1)
    return total / jnp.where(weight > 0, weight, 1)


def _cosine(target: Target, maps: jax.Array) -> jax.Array:
    """Cosines `[images, P]`; `maps [images, s, s, channels]`, or of one image for all."""
    # A product with a 0-1 matrix: the gradient of a gather is a scatter, slow on CPUs.
    chosen = jax.nn.one_hot(target.channels, maps.shape[3], axis=0, dtype=jnp.float32)
    found = jnp.einsum("bijc,cp->bijp", maps, chosen, precision=_HIGHEST)
    found = found - target.means.reshape(1, 1, 1, -1)
    found = found / (target.deviations + EPSILON).reshape(1, 1, 1, -1)
    rows = jnp.einsum("pxi,bijp->bxjp", target.grams, found, precision=_HIGHEST)
    smoothed = jnp.einsum("pyj,bxjp->bxyp", target.grams, rows, precision=_HIGHEST)
    square = jnp.sum(found * smoothed, (1, 2))
    valid = (square > 1e-12) & (target.norms > 1e-6)
    scale = jnp.sqrt(jnp.where(valid, square, 1)) * jnp.where(valid, target.norms, 1)
    return jnp.where(valid, jnp.sum(found * target.maps, (1, 2)) / scale, 0)


def _on_grid(wanted: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A wanted map `[images, t, t]` on the generator's grid, its norm, and the Gram matrix."""
    other = wanted.shape[1]
    if other <= size:
        m = matrix(other, size)
        moved = np.einsum("oi,bij,pj->bop", m, wanted, m, optimize=True)
        return moved, np.sqrt(np.square(moved).sum((1, 2))), np.eye(size)
    m = matrix(size, other)
    moved = np.einsum("oi,boq,qj->bij", m, wanted, m, optimize=True)
    return moved, np.sqrt(np.square(np.float64(wanted)).sum((1, 2))), m.T @ m
