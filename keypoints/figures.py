"""Pictures of discovered keypoints: video strips, skeletons in space, the learned graph."""

import os
import pathlib

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from common import image_grids

Path = str | os.PathLike[str]


def colours(count: int) -> np.ndarray:
    """One colour for each keypoint, uint8 `[count, 3]`."""
    return (colormaps["turbo"](np.linspace(0.05, 0.95, count))[:, :3] * 255).astype(np.uint8)


def overlay(
    image: np.ndarray,
    pixels: np.ndarray,
    edges: list[tuple[int, int]],
    scale: int = 4,
) -> np.ndarray:
    """An image enlarged, with keypoints and the edges between them.

    Args:
        image: uint8 `[height, width, 3]`.
        pixels: `[keypoints, 2]`, integer pixel centres; NaN where a keypoint cannot be seen.
        edges: pairs to join.
        scale: enlargement.

    Returns:
        uint8 `[height * scale, width * scale, 3]`.
    """
    height, width, _ = image.shape
    picture = Image.fromarray(image).resize((width * scale, height * scale), 2)
    pen = ImageDraw.Draw(picture)
    places = (np.asarray(pixels) + 0.5) * scale
    seen = np.asarray(np.isfinite(places).all(axis=1))
    for i, j in edges:
        if not (seen[i] and seen[j]):
            continue
        pen.line([tuple(places[i]), tuple(places[j])], fill=(255, 255, 255), width=1)
    radius = max(2, round(0.6 * scale))
    for place, colour, shown in zip(places, colours(len(places)), seen, strict=True):
        if not shown:
            continue
        box = (*(place - radius), *(place + radius))
        pen.ellipse(box, fill=tuple(int(c) for c in colour), outline=(20, 20, 20))
    return np.asarray(picture)


def strip(
    path: Path,
    images: np.ndarray,
    pixels: np.ndarray,
    edges: list[tuple[int, int]],
    names: tuple[str, ...],
    title: str = "",
) -> pathlib.Path:
    """Frames from left to right, one row for each view.

    Args:
        path: PNG file.
        images: uint8 `[frames, views, height, width, 3]`.
        pixels: `[frames, views, keypoints, 2]`.
        edges: pairs to join.
        names: of the views.
        title: text above.
    """
    scale = max(1, round(160 / images.shape[2]))
    rows = [
        [overlay(images[t, v], pixels[t, v], edges, scale) for t in range(len(images))]
        for v in range(images.shape[1])
    ]
    return image_grids.grid(rows, path, row_labels=list(names), title=title or None, scale=1)


def skeletons(
    path: Path,
    points: np.ndarray,
    edges: list[tuple[int, int]],
    truth: np.ndarray | None = None,
    bones: np.ndarray | None = None,
    unit: str = "",
) -> pathlib.Path:
    """Poses in space, one panel for each frame.

    Args:
        path: PNG file.
        points: `[frames, keypoints, 3]`.
        edges: pairs to join.
        truth: `[frames, joints, 3]`, drawn thin and grey.
        bones: pairs of joints.
        unit: of the axes.
    """
    count = len(points)
    figure = Figure(figsize=(3.4 * count, 3.6), dpi=150)
    FigureCanvasAgg(figure)
    shades = colours(points.shape[1]) / 255.0
    for index in range(count):
        axes = figure.add_subplot(1, count, index + 1, projection="3d")
        own = points[index]
        everything = own if truth is None else np.concatenate([own, truth[index]])
        if truth is not None and bones is not None:
            for i, j in bones:
                axes.plot(*truth[index][[i, j]].T, color="#9aa0aa", linewidth=1.2)
        for i, j in edges:
            axes.plot(*own[[i, j]].T, color="#0072B2", linewidth=0.9, alpha=0.6)
        axes.scatter(*own.T, c=shades, s=22, depthshade=False, edgecolors="#222222", linewidths=0.4)
        low, high = everything.min(axis=0), everything.max(axis=0)
        middle, half = (low + high) / 2, float((high - low).max()) / 2 * 1.05
        for name, centre in zip("xyz", middle, strict=True):
            getattr(axes, f"set_{name}lim")(centre - half, centre + half)
            getattr(axes, f"set_{name}label")(f"{name} / {unit}" if unit else name, fontsize=7)
        axes.tick_params(labelsize=6)
        axes.set_box_aspect((1, 1, 1))
    figure.tight_layout()
    figure.savefig(path)
    return pathlib.Path(path)


def graph(path: Path, points: np.ndarray, weights: np.ndarray, ends: np.ndarray) -> pathlib.Path:
    """The learned graph: edges as thick as their weights, keypoints in the plane of a pose.

    Args:
        path: PNG file.
        points: of the pose, `[keypoints, 3]`.
        weights: of the edges, `[edges]`.
        ends: `[edges, 2]`.
    """
    centred = points - points.mean(axis=0)
    flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    figure = Figure(figsize=(5.2, 4.4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    top = weights.max()
    for (i, j), weight in zip(ends, weights, strict=True):
        share = float(weight / top)
        axes.plot(*flat[[i, j]].T, color="#33363d", linewidth=3.5 * share**2, alpha=share**2)
    shades = colours(len(points)) / 255.0
    axes.scatter(flat[:, 0], flat[:, 1], c=shades, s=120, edgecolors="#222222", zorder=3)
    for index, place in enumerate(flat):
        axes.annotate(str(index), place, ha="center", va="center", fontsize=7, zorder=4)
    axes.set_aspect("equal")
    axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(path)
    return pathlib.Path(path)
