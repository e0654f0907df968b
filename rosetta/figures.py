"""Pictures of matched units: maps over images, panels across models, concepts, depths.

A map is drawn as a colour overlay on the image it belongs to: enlarged bilinearly, scaled from its
lowest value (transparent) to its highest. Panels say model, tap and channel of every unit.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from common import figures, image_grids
from rosetta.resize import matrix
from rosetta.units import Layout

__all__ = [
    "concept_sheet", "depths", "match_counts", "overlay", "pair_panel", "rosetta_panel",
    "enlarged", "standardised",
]

Path = str | os.PathLike[str]
_COLOURS = matplotlib.colormaps["turbo"]


def overlay(image: np.ndarray, activation: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """A map as colours over an image.

    Args:
      image: `[height, width, 3]` in [0, 1].
      activation: `[s, s]`; larger maps than the image are averaged down to it where they are a
        multiple of its size, and sampled otherwise.
      strength: opacity of the highest value.

    Returns:
      `[height, width, 3]` in [0, 1].
    """
    heat = np.stack([_resized(row, image.shape[1]) for row in np.asarray(activation, float)])
    heat = np.stack([_resized(column, image.shape[0]) for column in heat.T], axis=1)
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    colour = _COLOURS(scaled)[..., :3]
    opacity = (strength * scaled)[..., None]
    return np.clip((1 - opacity) * np.clip(image, 0, 1) + opacity * colour, 0, 1)


def label(layout: Layout, unit: int) -> str:
    """Tap and channel of a unit."""
    tap, channel = layout.find(int(unit))
    return f"{layout.taps[tap]} #{channel}"


def pair_panel(
    path: Path,
    layouts: tuple[Layout, Layout],
    pairs: Sequence[tuple[int, int, float]],
    images: np.ndarray,
    maps: Sequence[tuple[np.ndarray, np.ndarray]],
    columns: int = 4,
) -> pathlib.Path:
    """Matches of two models: one row each, images with the one and the other map side by side.

    Args:
      path: PNG file.
      layouts: of the row and the column model.
      pairs: (row unit, column unit, correlation) of each match.
      images: `[images, height, width, 3]` in [0, 1].
      maps: for each match the maps of both units on all images, `[images, s, s]`.
      columns: images for each match: those on which both units respond most together.
    """
    rows, names = [], []
    for (u, v, score), (first, second) in zip(pairs, maps, strict=True):
        row = []
        for index in together(first, second)[:columns]:
            row += [images[index], overlay(images[index], first[index])]
            row.append(overlay(images[index], second[index]))
        rows.append(row)
        names.append(f"r = {score:.2f}: {label(layouts[0], u)}, {label(layouts[1], v)}")
    tops = ["image", layouts[0].name, layouts[1].name] * columns
    title = f"Matched units of {layouts[0].name} and {layouts[1].name}"
    separators = tuple(range(3, 3 * columns, 3))
    return image_grids.grid(
        rows, path, row_labels=names, column_labels=tops, title=title, separators=separators
    )


def rosetta_panel(
    path: Path,
    layouts: Mapping[str, Layout],
    entries: Sequence[Mapping[str, int]],
    scores: Sequence[float],
    images: np.ndarray,
    maps: Sequence[Mapping[str, np.ndarray]],
) -> pathlib.Path:
    """Units common to all models: one row each, one image with the map of every model.

    Args:
      path: PNG file.
      layouts: of the anchor (first) and the other models.
      entries: for each row, model -> unit.
      scores: mean correlation of each row.
      images: `[images, height, width, 3]` in [0, 1].
      maps: for each row, model -> maps `[images, s, s]`.
    """
    anchor = next(iter(layouts))
    rows, below = [], []
    for entry, found in zip(entries, maps, strict=True):
        others = [found[name] for name in layouts if name != anchor]
        best = int(np.sum([_joint(found[anchor], other) for other in others], axis=0).argmax())
        rows.append([images[best], *(overlay(images[best], found[name][best]) for name in layouts)])
        below.append([None, *(label(layouts[name], entry[name]) for name in layouts)])
    return image_grids.grid(
        rows,
        path,
        row_labels=[f"mean r = {score:.2f}" for score in scores],
        column_labels=["image", *layouts],
        labels=below,
        title="Units common to all models",
        separators=(1, 2),
        scale=2,
    )


def concept_sheet(
    path: Path,
    layout: Layout,
    concepts: Sequence[Sequence[int]],
    images: np.ndarray,
    maps: Sequence[np.ndarray],
    columns: int = 8,
) -> pathlib.Path:
    """One row for each concept: its units' mean map on the images on which it is most local.

    Args:
      path: PNG file.
      layout: of the anchor.
      concepts: anchor units of each concept.
      images: `[images, height, width, 3]` in [0, 1].
      maps: for each concept the mean over its units of the standardised maps, `[images, s, s]`.
      columns: images in a row.
    """
    rows, names = [], []
    for units, found in zip(concepts, maps, strict=True):
        flat = found.reshape(len(found), -1)
        order = np.argsort(flat.mean(1) - flat.max(1))[:columns]
        rows.append([overlay(images[i], found[i]) for i in order])
        shown = ", ".join(label(layout, unit) for unit in units[:3])
        more = f" and {len(units) - 3} more" if len(units) > 3 else ""
        count = "1 unit" if len(units) == 1 else f"{len(units)} units"
        names.append(f"{count}: {shown}{more}")
    return image_grids.grid(rows, path, row_labels=names, title=f"Concepts of {layout.name}")


def depths(
    path: Path, layouts: tuple[Layout, Layout], rows: np.ndarray, columns: np.ndarray
) -> pathlib.Path:
    """Number of matches between each tap of one model and each tap of another."""
    counts = np.zeros((len(layouts[0].taps), len(layouts[1].taps)))
    np.add.at(counts, (layouts[0].depth(rows), layouts[1].depth(columns)), 1)
    title = f"{len(rows)} matches by depth: {layouts[0].name} and {layouts[1].name}"
    return figures.heatmap(
        path, counts, list(layouts[0].taps), list(layouts[1].taps), title, "matches"
    )


def match_counts(
    path: Path, name: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> pathlib.Path:
    """Matches with at least a correlation, for the trained network and its nulls."""
    return figures.curves(
        path,
        {kind: (x, np.maximum(y, 0.1)) for kind, (x, y) in curves.items()},
        xlabel="correlation of at least",
        ylabel="matches",
        title=f"Best buddies of the generator and {name}",
        logy=True,
        markers=False,
    )


def together(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Places of images, those on which two units respond most together first.

    The order is by the mean over positions of the product of the standardised maps.
    """
    return np.argsort(-_joint(first, second), kind="stable")


def _joint(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean over positions of the product of standardised maps of two units, `[images]`."""
    size = max(first.shape[1], second.shape[1])
    a, b = (enlarged(standardised(x), size) for x in (first, second))
    return (a * b).mean((1, 2))


def standardised(maps: np.ndarray) -> np.ndarray:
    """Maps `[images, s, s]` less their mean, over their deviation (0 where constant)."""
    moved = maps - maps.mean()
    deviation = moved.std()
    return moved / deviation if deviation > 0 else moved


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps `[images, s, s]` enlarged bilinearly to `[images, size, size]`."""
    m = matrix(maps.shape[1], size)
    return np.einsum("oi,bij,pj->bop", m, maps, m, optimize=True)


def _resized(line: np.ndarray, size: int) -> np.ndarray:
    """One line of values with another number of samples."""
    if len(line) <= size:
        return matrix(len(line), size) @ line
    if len(line) % size == 0:
        return line.reshape(size, -1).mean(1)
    return np.interp((np.arange(size) + 0.5) * len(line) / size - 0.5, np.arange(len(line)), line)
