"""Grids of images as PNG: contact sheets and labelled tables of images, drawn with PIL.

Images are float `[height, width, channels]` in [0, 1] or uint8 in [0, 255], with 1 or 3 channels.
They are enlarged by an integer factor with a Lanczos filter, so that small faces stay legible and
nothing is resampled twice.
"""

import functools
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, SOFT_INK, PAPER = (26, 28, 33), (98, 104, 115), (255, 255, 255)
_CELL = 128  # pixels that a small image is enlarged to
_MAX_WIDTH = 2000  # pixels, of the whole grid


def contact_sheet(
    images: Any,
    columns: int,
    path: str | os.PathLike[str],
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int | None = None,
    title: str | None = None,
) -> pathlib.Path:
    """Draws images in reading order.

    Args:
      images: `[count, height, width, channels]`.
      columns: Images in a row; the last row may be shorter.
      path: PNG file to write.
      labels: One text below each image.
      row_labels: One text left of each row.
      column_labels: One text above each column.
      scale: Integer enlargement; chosen by the size of the image if None.
      title: Text above everything.

    Returns:
      `path`.
    """
    cells = list(images)
    if columns < 1:
        raise ValueError(f"a contact sheet needs at least 1 column, got {columns}")
    if labels is not None and len(labels) != len(cells):
        raise ValueError(f"{len(labels)} labels for {len(cells)} images")
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    texts = None
    if labels is not None:
        texts = [labels[start : start + columns] for start in range(0, len(cells), columns)]
    return grid(rows, path, row_labels, column_labels, title, scale, labels=texts)


def grid(
    images: Any,
    path: str | os.PathLike[str],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    scale: int | None = None,
    highlight: Mapping[tuple[int, int], str] | None = None,
    labels: Sequence[Sequence[str | None]] | None = None,
    separators: Sequence[int] = (),
) -> pathlib.Path:
    """Draws a table of images.

    Args:
      images: `[rows, columns, height, width, channels]`, or rows of images in which None leaves a
        cell empty and rows may be shorter than others.
      path: PNG file to write.
      row_labels: One text left of each row.
      column_labels: One text above each column.
      title: Text above everything.
      scale: Integer enlargement; chosen by the size of the image if None.
      highlight: Colour (any name matplotlib knows) of a frame around the cell (row, column).
      labels: Texts below the cells, by row and column; None leaves one out.
      separators: Columns before which a wider gap is left.

    Returns:
      `path`.

    Raises:
      ValueError: No images, images of several sizes, values that are not in [0, 1] or not finite,
        or numbers of labels that do not fit.
    """
    table = [[None if cell is None else _to_pixels(cell) for cell in row] for row in images]
    sizes = {cell.shape[:2] for row in table for cell in row if cell is not None}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs images of one size, got {sorted(sizes) or 'no images'}")
    height, width = sizes.pop()
    columns = max(len(row) for row in table)
    for name, texts, count in (
        ("row labels for {} rows", row_labels, len(table)),
        ("column labels for {} columns", column_labels, columns),
        ("rows of labels for {} rows", labels, len(table)),
    ):
        if texts is not None and len(texts) != count:
            raise ValueError(f"{len(texts)} {name.format(count)}")
    if scale is None:
        scale = max(1, min(round(_CELL / max(height, width)), _MAX_WIDTH // (columns * width)))
    return _draw(
        table,
        pathlib.Path(path),
        (height * scale, width * scale),
        list(row_labels or []),
        list(column_labels or []),
        title,
        dict(highlight or {}),
        labels,
        set(separators),
    )


def _draw(
    table: list[list[np.ndarray | None]],
    path: pathlib.Path,
    cell: tuple[int, int],
    row_labels: list[str],
    column_labels: list[str],
    title: str | None,
    highlight: dict[tuple[int, int], str],
    labels: Sequence[Sequence[str | None]] | None,
    separators: set[int],
) -> pathlib.Path:
    """Lays out and paints the grid; `cell` is (height, width) in pixels."""
    height, width = cell
    columns = max(len(row) for row in table)
    size = int(np.clip(height * 0.125, 13, 20))
    line, gap, margin = round(size * 1.3), max(3, size // 4), size
    fonts = {name: _font(name, size) for name in ("body", "bold")}

    def wrap(text: str, limit: int) -> list[str]:
        advance = fonts["body"].getlength("abcdefghij") / 10
        width = max(4, int(limit / advance))
        return textwrap.wrap(str(text), width, break_long_words=False) or [""]

    tops = [wrap(text, width) for text in column_labels]
    sides = [wrap(text, 11 * size) for text in row_labels]
    below = [
        [wrap(text, width) if text else [] for text in row] for row in (labels or [[]] * len(table))
    ]
    side = max((fonts["body"].getlength(t) for lines in sides for t in lines), default=0)
    left = margin + (int(side) + size if side else 0)
    top = margin + (round(2.2 * size) if title else 0)
    top += max((len(lines) for lines in tops), default=0) * line + (gap if tops else 0)

    lefts = [
        left + column * (width + gap) + 3 * gap * sum(s <= column for s in separators)
        for column in range(columns)
    ]
    heights = [
        height + max((len(lines) for lines in row), default=0) * line + gap * (1 + any(row))
        for row in below
    ]
    right = lefts[-1] + width
    if title:
        right = max(right, margin + int(_font("bold", round(1.2 * size)).getlength(title)))
    canvas = Image.new("RGB", (right + margin, top + sum(heights) - gap + margin), PAPER)
    pen = ImageDraw.Draw(canvas)
    if title:
        pen.text((margin, margin), title, INK, _font("bold", round(1.2 * size)))
    for lines, x in zip(tops, lefts, strict=True) if tops else ():
        for index, text in enumerate(reversed(lines)):
            pen.text((x + width / 2, top - gap - index * line), text, INK, fonts["body"], "md")

    y = top
    for r, row in enumerate(table):
        if sides:
            for index, text in enumerate(sides[r]):
                middle = y + height / 2 + (index - (len(sides[r]) - 1) / 2) * line
                pen.text((left - size * 0.7, middle), text, INK, fonts["body"], "rm")
        for c, pixels in enumerate(row):
            if pixels is None:
                continue
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
            canvas.paste(picture, (lefts[c], y))
            if (r, c) in highlight:
                corner = (lefts[c] - gap + 1, y - gap + 1)
                other = (lefts[c] + width + gap - 2, y + height + gap - 2)
                pen.rectangle((corner, other), outline=_colour(highlight[r, c]), width=gap - 1)
            for index, text in enumerate(below[r][c] if c < len(below[r]) else ()):
                place = (lefts[c] + width / 2, y + height + gap + index * line)
                pen.text(place, text, SOFT_INK, fonts["body"], "ma")
        y += heights[r]
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)
    return path


def _to_pixels(image: Any) -> np.ndarray:
    """An image as uint8 `[height, width, 3]`."""
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"an image has shape [height, width, 1 or 3], got {array.shape}")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        low, high = float(array.min()), float(array.max())
        if not (low >= -0.5 and high <= 1.5):  # also catches NaN
            raise ValueError(f"image values must be in [0, 1], got {low:.3g} to {high:.3g}")
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(array, (*array.shape[:2], 3)).copy()


def _colour(name: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in matplotlib.colors.to_rgb(name))
    return red, green, blue


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships."""
    file = {"body": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}[name]
    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path(), "fonts/ttf", file), size)
