"""Edits of activation maps: moved, enlarged, pasted and exchanged maps, and single units.

Two ways to use them. **By the latent** (Dravid et al., section on edits): the maps of matched units
for an image are transformed, and the latent is optimised until the generator's maps agree with them
(`rosetta.inversion`). **By the unit**: the maps of a unit are changed inside the generator's own
pass and what follows is computed from them (`Generator.apply_edited`).

Distances are shares of a map's side, so that one edit fits maps of all sizes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rosetta.units import Layout

__all__ = [
    "affine", "centroid", "change_units", "paste", "shift", "unit_vectors", "warp", "warped_image",
    "zoom",
]

# (tap's name, maps [batch, s, s, channels]) -> maps of the same shape
MapEdit = Callable[[str, jax.Array], jax.Array]


def warp(
    maps: np.ndarray, right: float = 0.0, down: float = 0.0, factor: float = 1.0
) -> np.ndarray:
    """Moves and enlarges maps about their centre, bilinearly.

    Args:
      maps: `[images, s, s]`.
      right, down: how far the content moves, in shares of the side.
      factor: enlargement; below 1 the content shrinks.

    Returns:
      `[images, s, s]`; cells that no content reaches are 0, which in standardised maps is the
      unit's mean (the published code fills with 0 as well).

    Raises:
      ValueError: a factor that is not positive.
    """
    if factor <= 0:
        raise ValueError(f"enlargement by {factor}")
    rows = _sampling(maps.shape[1], down, factor)
    columns = _sampling(maps.shape[2], right, factor)
    return np.einsum("oi,bij,pj->bop", rows, maps, columns, optimize=True)


def shift(maps: np.ndarray, right: float = 0.0, down: float = 0.0) -> np.ndarray:
    """Moves maps `[images, s, s]` by whole cells, `int(share * s)` as published; fills with 0."""
    return warp(
        maps,
        right=int(right * maps.shape[2]) / maps.shape[2],
        down=int(down * maps.shape[1]) / maps.shape[1],
    )


def zoom(maps: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges maps `[images, s, s]` about their centre."""
    return warp(maps, factor=factor)


def paste(left: np.ndarray, right: np.ndarray, share: float = 0.5) -> np.ndarray:
    """The left part of one set of maps and the rest of another, both `[images, s, s]`.

    Raises:
      ValueError: maps of different shapes.
    """
    if left.shape != right.shape:
        raise ValueError(f"maps of {left.shape} and {right.shape}")
    border = round(share * left.shape[2])
    return np.concatenate([left[:, :, :border], right[:, :, border:]], axis=2)


def warped_image(
    image: np.ndarray, right: float = 0.0, down: float = 0.0, factor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """An image moved in pixels, and where its content reaches.

    Args:
      image: `[images, h, w, 3]`.
      right, down, factor: see `warp`.

    Returns:
      The images, and `[h, w]`: True where all of a pixel comes from the image.
    """
    channels = [warp(image[..., c], right, down, factor) for c in range(image.shape[3])]
    reached = warp(np.ones((1, *image.shape[1:3])), right, down, factor)[0]
    return np.stack(channels, -1), reached > 1 - 1e-6


def change_units(
    layout: Layout, factors: Mapping[int, float], values: Mapping[int, float] | None = None
) -> MapEdit:
    """The edit `x -> factor x + value` of some units, for `Generator.apply_edited`.

    A factor of 0 removes a unit, above 1 strengthens it.

    Args:
      layout: of the generator.
      factors: unit -> factor.
      values: unit -> value that is added; 0 by default.

    Raises:
      IndexError: the generator has no such unit.
    """
    return affine(unit_vectors(layout, factors, 1.0), unit_vectors(layout, values or {}, 0.0))


def unit_vectors(
    layout: Layout, numbers: Mapping[int, float], other: float
) -> dict[str, np.ndarray]:
    """Numbers by unit as a vector of each tap, float32 `[channels]`, filled with `other`."""
    result = {
        tap: np.full(channels, other, np.float32)
        for tap, channels in zip(layout.taps, layout.channels, strict=True)
    }
    for unit, number in numbers.items():
        tap, channel = layout.find(unit)
        result[layout.taps[tap]][channel] = number
    return result


def affine(factors: Mapping[str, Any], values: Mapping[str, Any]) -> MapEdit:
    """The edit `x -> factor x + value` with a factor and a value of each channel of each tap."""

    def edit(tap: str, maps: jax.Array) -> jax.Array:
        factor, value = (jnp.reshape(x[tap], (1, 1, 1, -1)) for x in (factors, values))
        return maps * factor + value

    return edit


def centroid(maps: Any) -> np.ndarray:
    """Centre of mass of the positive part of maps `[images, s, s]`: `[images, 2]`, (row, column).

    In shares of the side, 0.5 in the middle, also for maps without positive values.
    """
    positive = np.maximum(np.asarray(maps, np.float64), 0)
    total = positive.sum((1, 2))
    places = (np.arange(maps.shape[1]) + 0.5) / maps.shape[1]
    rows = (positive.sum(2) * places).sum(1)
    columns = (positive.sum(1) * places).sum(1)
    safe = np.where(total > 0, total, 1)
    found = np.stack([rows / safe, columns / safe], 1)
    return np.where(total.reshape(-1, 1) > 0, found, 0.5)


@functools.lru_cache(maxsize=256)
def _sampling(size: int, moved: float, factor: float) -> np.ndarray:
    """The matrix `[size, size]` of linear interpolation along one axis; 0 outside the map."""
    cells = np.arange(size)
    middle = (size - 1) / 2
    position = (cells - moved * size - middle) / factor + middle
    position = np.round(position, 9)  # whole cells stay whole
    low = np.floor(position).astype(int)
    result = np.zeros((size, size))
    for place, share in ((low, 1 - (position - low)), (low + 1, position - low)):
        inside = (place >= 0) & (place < size)
        np.add.at(result, (cells[inside], place[inside]), share[inside])
    return result
