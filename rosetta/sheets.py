"""Sheets of inverted and edited images."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from common import image_grids
from rosetta import figures
from rosetta.units import Layout

__all__ = ["edit_sheet", "inversion_sheet", "unit_sheet"]

Path = str | os.PathLike[str]


def inversion_sheet(
    path: Path, images: np.ndarray, methods: Mapping[str, np.ndarray]
) -> pathlib.Path:
    """Images and what each method makes of them, one row a method.

    Args:
      path: PNG file.
      images: `[images, h, w, 3]` in [0, 1].
      methods: name -> images of the same shape.
    """
    return image_grids.grid(
        [images, *methods.values()],
        path,
        row_labels=["image", *methods],
        title="Inversion",
        scale=2,
    )


def edit_sheet(
    path: Path,
    images: np.ndarray,
    edited: Mapping[tuple[str, str], np.ndarray],
    exchanged: np.ndarray,
) -> pathlib.Path:
    """Images, and their edits by several kinds of targets, one row an edit.

    Args:
      path: PNG file.
      images: `[images, h, w, 3]` in [0, 1].
      edited: (kind of target, name of edit) -> images.
      exchanged: `[images]`, whose maps each image takes over in the edit "align".
    """
    rows, names = [images], ["image"]
    for name in ("left", "right", "zoom"):
        for kind in ("rosetta units", "random units", "pixels"):
            rows.append(edited[kind, name])
            names.append(f"{name}: {kind}")
    rows.append(edited["rosetta units", "paste"])
    names.append("left and right pasted: rosetta units")
    rows += [images[exchanged], edited["rosetta units", "align"]]
    names += ["another image", "with the other's maps: rosetta units"]
    return image_grids.grid(rows, path, row_labels=names, title="Edits of maps", scale=2)


def unit_sheet(
    path: Path,
    layout: Layout,
    rows: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    strength: float,
    columns: int = 3,
) -> pathlib.Path:
    """Single units removed and strengthened, one row a unit.

    Args:
      path: PNG file.
      layout: of the generator.
      rows: (unit, images `[n, h, w, 3]`, its maps `[n, s, s]`, images without it, images with it
        strengthened); shown are the images that its removal changes most.
      strength: factor of the strengthened unit.
      columns: images for each unit.
    """
    cells, names = [], []
    for unit, images, maps, without, stronger in rows:
        change = np.abs(without - images).mean((1, 2, 3))
        row = []
        for i in np.argsort(-change, kind="stable")[:columns]:
            row += [images[i], figures.overlay(images[i], maps[i]), without[i], stronger[i]]
        cells.append(row)
        names.append(figures.label(layout, unit))
    shown = min(columns, len(rows[0][1]))
    tops = ["image", "unit", "removed", f"times {strength:g}"] * shown
    return image_grids.grid(
        cells, path, row_labels=names, column_labels=tops, title="Single units changed",
        separators=tuple(range(4, 4 * shown, 4)), scale=2,
    )  # fmt: skip
