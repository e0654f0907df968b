"""Maps drawn on the brain: lateral and medial views of both sides, with a colour bar.

Orthographic, from far to near, with the faces' own shading; no graphics hardware is needed.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from meshgcn.templates import Template

__all__ = ["VIEWS", "four_views", "maps"]

# (structure, name, direction from which it is seen: -1 from the left, 1 from the right)
VIEWS = (
    ("lh", "left, lateral", -1),
    ("lh", "left, medial", 1),
    ("rh", "right, medial", -1),
    ("rh", "right, lateral", 1),
)
_GREY = np.array([0.80, 0.80, 0.80])
_DARK = np.array([0.62, 0.62, 0.62])


def maps(
    path: str | os.PathLike[str],
    rows: Mapping[str, np.ndarray],
    template: Template,
    surface: str = "inflated",
    title: str = "",
    label: str = "",
    threshold: float = 0.0,
    outline: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Several maps below each other, four views each, one colour scale for each row.

    Args:
      path: PNG file to write.
      rows: name -> values `[vertices]`, not negative.
      template: whose hemispheres or subcortical bodies are drawn.
      surface: "inflated" or "pial" for the cortex, "bodies" for the subcortical bodies.
      title: text above.
      label: quantity of the colour bars.
      threshold: share of a row's scale below which the sulci show instead.
      outline: bool `[vertices]`, whose border is drawn.
      limits: ends of the scale, for all rows; each row's own largest value if None.
    """
    height = 1.75 * len(rows) + (0.4 if title else 0.1)
    figure = Figure(figsize=(9.6, height))
    FigureCanvasAgg(figure)
    top = 1 - (0.38 / height if title else 0.0)
    if title:
        figure.text(0.01, 1 - 0.12 / height, title, va="top", weight="bold", size=11)
    for index, (name, values) in enumerate(rows.items()):
        low, high = limits or (0.0, float(np.max(values)) or 1.0)
        norm = colors.Normalize(low, high)
        bottom = top * (1 - (index + 1) / len(rows))
        size = top / len(rows)
        figure.text(0.008, bottom + 0.46 * size, name, rotation=90, va="center", size=9)
        for column, (structure, view, side) in enumerate(VIEWS):
            axes = figure.add_axes((0.055 + 0.21 * column, bottom, 0.21, 0.92 * size))
            draw = (values, norm, low + threshold * (high - low), outline)
            _hemisphere(axes, template, structure, side, surface, *draw)
            if index == 0:
                axes.set_title(view, size=9, color="#33363d")
        bar = figure.add_axes((0.905, bottom + 0.2 * size, 0.012, 0.55 * size))
        figure.colorbar(ScalarMappable(norm, _colours()), cax=bar, label=label)
        bar.tick_params(labelsize=8)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")
    return pathlib.Path(path)


def four_views(
    path: str | os.PathLike[str], values: np.ndarray, template: Template, **settings: Any
) -> pathlib.Path:
    """One map; `settings` as for `maps`."""
    return maps(path, {"": values}, template, **settings)


def _drawn(template: Template, structure: str, bodies: bool) -> tuple[np.ndarray, np.ndarray]:
    """(vertices of the template, faces among them) of a hemisphere or of the bodies beside it."""
    names = [n for n in template.bodies if n.startswith(f"{structure}.")] if bodies else [structure]
    own = [part for part in template.mesh.split() if part.structures[0][0] in names]
    starts = np.cumsum([0, *(len(part) for part in own)])
    wheres = [template.mesh.part(part.structures[0][0]) for part in own]
    vertices = np.concatenate([np.arange(where.start, where.stop) for where in wheres])
    faces = [part.faces + start for part, start in zip(own, starts, strict=False)]
    return vertices, np.concatenate(faces)


def _colours() -> colors.Colormap:
    return matplotlib.colormaps["inferno"]


def _hemisphere(
    axes: Axes,
    template: Template,
    structure: str,
    side: int,
    surface: str,
    values: np.ndarray,
    norm: colors.Normalize,
    threshold: float,
    outline: np.ndarray | None,
) -> None:
    """Draws one hemisphere, or the bodies of that side, seen along x."""
    part, faces = _drawn(template, structure, surface == "bodies")
    vertices = template.surfaces["pial" if surface == "bodies" else surface][part]
    # x towards the viewer, y (to the front of the head) to the left or right, z up
    flat = np.stack([side * vertices[:, 1], vertices[:, 2]], axis=1)
    depth = side * vertices[:, 0]
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    facing = side * normal[:, 0]
    seen = facing > 0
    order = np.argsort(depth[faces[seen]].mean(axis=1))
    shown = faces[seen][order]
    value = values[part][shown].mean(axis=1)
    sulcus = template.sulcal[part][shown].mean(axis=1) > 0
    base = np.where(sulcus[:, None], _DARK, _GREY)
    colour = np.where((value > threshold)[:, None], _colours()(norm(value))[:, :3], base)
    shade = 0.65 + 0.35 * facing[seen][order]
    patches = PolyCollection(list(flat[shown]), facecolors=colour * shade[:, None], linewidths=0.3)
    patches.set_edgecolor("face")
    axes.add_collection(patches)
    if outline is not None:
        inside = outline[part]
        border = shown[inside[shown].any(axis=1) & ~inside[shown].all(axis=1)]
        # Through the middles of the two edges that join the odd corner to the others.
        rows = np.arange(len(border))
        corners = inside[border]
        odd = np.argmax(corners == (corners.sum(axis=1) == 1)[:, None], axis=1)
        ends = [flat[border[rows, odd]] + flat[border[rows, (odd + i) % 3]] for i in (1, 2)]
        lines = LineCollection(list(np.stack(ends, axis=1) / 2), colors="#00b7eb", linewidths=1.3)
        axes.add_collection(lines)
    axes.set_xlim(flat[:, 0].min() - 2, flat[:, 0].max() + 2)
    axes.set_ylim(flat[:, 1].min() - 2, flat[:, 1].max() + 2)
    axes.set_aspect("equal")
    axes.axis("off")
