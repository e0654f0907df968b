"""Figures as PNG in one style: curves, scatter plots, bars, histograms and heat maps.

Contact sheets and tables of images come from `common.image_grids` and are importable from here.
Figures are drawn off screen at 200 dots per inch on white, in colours (Okabe and Ito 2008) that
colour-blind readers can tell apart.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.image_grids import contact_sheet, grid

__all__ = ["bars", "contact_sheet", "curves", "grid", "heatmap", "histograms", "scatter"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D5D5D", "#B8A800")
_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": "#33363d",
    "axes.edgecolor": "#8b909a",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.8,
    "xtick.color": "#55585f",
    "ytick.color": "#55585f",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "white",
}
Path = str | os.PathLike[str]


def curves(
    path: Path,
    series: Mapping[str, Sequence[Any]],
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    logx: bool = False,
    logy: bool = False,
    hlines: Mapping[str, float] | None = None,
    markers: bool | None = None,
) -> pathlib.Path:
    """Lines, with a shaded band where bounds are given.

    Args:
      path: PNG file to write.
      series: Name to (x, y) or (x, y, low, high), each of shape `[points]`.
      xlabel: Quantity and unit.
      ylabel: Quantity and unit.
      title: Text above.
      logx: Logarithmic x axis.
      logy: Logarithmic y axis.
      hlines: Name to height of dashed reference lines (chance, ceiling, ...), named at the right.
      markers: Whether points are marked; by default if no series has more than 15.

    Returns:
      `path`.

    Raises:
      ValueError: Arrays of one series differ in length.
    """
    arrays = {name: [np.asarray(part, float) for part in parts] for name, parts in series.items()}
    for name, parts in arrays.items():
        shapes = [part.shape for part in parts]
        if len(parts) not in (2, 4) or len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ValueError(f"series {name!r} needs 2 or 4 arrays of one length, got {shapes}")
    if markers is None:
        markers = max((parts[0].size for parts in arrays.values()), default=0) <= 15
    with _axes(path, xlabel, ylabel, title) as axes:
        for (name, (x, y, *bounds)), colour in zip(arrays.items(), _colours(), strict=False):
            marker = "o" if markers else ""
            (line,) = axes.plot(x, y, color=colour, label=name, marker=marker)
            line.set(markersize=5, markeredgecolor="white")
            if bounds:
                low, high = bounds
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        if logx:
            axes.set_xscale("log")
            places = np.unique(np.concatenate([parts[0] for parts in arrays.values()]))
            if len(places) <= 8:  # these points and no others, as plain numbers
                axes.set_xticks(places, [f"{place:g}" for place in places])
                axes.minorticks_off()
        if logy:
            axes.set_yscale("log")
        _reference_lines(axes, hlines)
        _legend(axes, len(series))
    return pathlib.Path(path)


def scatter(
    path: Path,
    groups: Mapping[str, tuple[Any, Any]],
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    diagonal: bool = False,
) -> pathlib.Path:
    """Points of one or more groups: name to (x, y), each `[points]`; `diagonal` draws x = y."""
    with _axes(path, xlabel, ylabel, title, size=(5.2, 4.4)) as axes:
        most = max((np.size(x) for x, _ in groups.values()), default=0)
        area, alpha = (26, 0.8) if most <= 200 else (10, 0.5)
        for (name, (x, y)), colour in zip(groups.items(), _colours(), strict=False):
            axes.scatter(x, y, s=area, color=colour, alpha=alpha, linewidths=0, label=name)
        if diagonal:
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color="#8b909a", linewidth=1, linestyle="--")
        _legend(axes, len(groups))
    return pathlib.Path(path)


def bars(
    path: Path,
    names: Sequence[str],
    values: Any,
    errors: Any = None,
    ylabel: str = "",
    title: str = "",
    hlines: Mapping[str, float] | None = None,
) -> pathlib.Path:
    """Bars with their values written on them.

    Args:
      path: PNG file to write.
      names: One text below each bar or group of bars.
      values: `[names]`, or name of a series to `[names]` for bars side by side; NaN leaves a bar
        out.
      errors: Half-lengths of error bars, in the form of `values`, or None.
      ylabel: Quantity and unit.
      title: Text above.
      hlines: Name to height of dashed reference lines.

    Returns:
      `path`.

    Raises:
      ValueError: Numbers of names, values and errors differ.
    """
    series = dict(values) if isinstance(values, Mapping) else {"": values}
    spread = dict(errors) if isinstance(errors, Mapping) else {"": errors}
    width = 0.78 / len(series)
    inches = max(4.8, 1.1 * len(names) * max(1.0, 0.6 * len(series)) + 1.2)
    room = 0.8 * 72 * min(inches, 11) / len(names)  # points under one group
    shown = [_short(value) for heights in series.values() for value in np.ravel(heights)]
    letters = max(1, *map(len, shown))  # of the longest value, each 0.6 of its size wide
    size = min(8.5, max(5, width * room / letters / 0.6))
    with _axes(path, "", ylabel, title, size=(min(inches, 11), 4)) as axes:
        axes.grid(axis="x", visible=False)
        for index, ((name, heights), colour) in enumerate(
            zip(series.items(), _colours(), strict=False)
        ):
            heights, error = np.asarray(heights, float), spread.get(name)
            for what in (heights,) if error is None else (heights, np.asarray(error)):
                if what.shape != (len(names),):
                    raise ValueError(f"bars {name!r}: shape {what.shape} for {len(names)} names")
            x = np.arange(len(names)) + (index - (len(series) - 1) / 2) * width
            kwargs: dict[str, Any] = {"label": name, "ecolor": "#33363d", "capsize": 3}
            drawn = axes.bar(x, heights, 0.92 * width, color=colour, yerr=error, **kwargs)
            axes.bar_label(drawn, fmt=_short, padding=2, fontsize=size, color="#33363d")
        labels = [_wrap(name, min(14, max(8, int(room / 5.5)))) for name in names]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        axes.set_xticks(range(len(names)), labels, fontsize=min(10, max(6, room / longest / 0.55)))
        axes.tick_params(axis="x", length=0)
        axes.margins(y=0.12)
        if any(np.nanmin(heights) < 0 for heights in series.values()):
            axes.axhline(0, color="#8b909a", linewidth=0.8)
        _reference_lines(axes, hlines)
        _legend(axes, len(series))
    return pathlib.Path(path)


def histograms(
    path: Path,
    samples: Mapping[str, Any],
    xlabel: str = "",
    ylabel: str = "density",
    title: str = "",
    bins: int = 40,
    vlines: Mapping[str, float] | None = None,
) -> pathlib.Path:
    """Densities of one or more samples (name to `[points]`) over common bins."""
    arrays = {name: np.ravel(np.asarray(values, float)) for name, values in samples.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins).tolist()
    with _axes(path, xlabel, ylabel, title) as axes:
        for (name, values), colour in zip(arrays.items(), _colours(), strict=False):
            axes.hist(values, edges, density=True, color=colour, alpha=0.22, linewidth=0)
            axes.hist(values, edges, density=True, histtype="step", color=colour, linewidth=1.6)
            axes.plot([], [], color=colour, label=name)  # a line, not a box, in the legend
        for name, place in (vlines or {}).items():
            axes.axvline(place, color="#33363d", linewidth=1, linestyle="--")
            at = (place, 1.01)
            axes.annotate(name, at, xycoords=("data", "axes fraction"), ha="center", fontsize=8.5)
        _legend(axes, len(arrays))
    return pathlib.Path(path)


def heatmap(
    path: Path,
    matrix: Any,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str = "",
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> pathlib.Path:
    """A matrix `[rows, columns]` as colours; small ones with their values, signed ones around 0.

    A matrix of whole numbers is written without decimals, one of tenths to tens with two.

    Args:
      path: PNG file to write.
      matrix: `[rows, columns]`; NaN is left blank.
      row_labels: One text for each row.
      column_labels: One text for each column.
      title: Text above.
      label: Quantity and unit of the colours.
      limits: Values of the ends of the colour scale; of the data if None.

    Returns:
      `path`.
    """
    matrix = np.asarray(matrix, float)
    if matrix.ndim != 2:
        raise ValueError(f"a heat map needs [rows, columns], got shape {matrix.shape}")
    rows, columns = matrix.shape
    low, high = limits or (float(np.nanmin(matrix)), float(np.nanmax(matrix)))
    signed = low < 0 < high
    if signed and limits is None:
        high = max(-low, high)
        low = -high
    annotate = rows <= 14 and columns <= 14
    finite = matrix[np.isfinite(matrix)]
    counts = bool(np.all(finite % 1 == 0))
    largest = np.abs(finite).max(initial=0.0)

    def written(value: float) -> str:
        if counts or 0.1 <= largest < 10:  # an exponent would not fit into its cell
            return f"{value:,.{0 if counts else 2}f}".replace("-", "\N{MINUS SIGN}")
        return _short(value)

    size = (np.clip(0.62 * columns + 2.4, 4, 10), np.clip(0.5 * rows + 1.4, 3.2, 9))
    with _axes(path, "", "", title, size=size) as axes:
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        colours = "RdBu_r" if signed else "viridis"
        shown = axes.imshow(matrix, colours, vmin=low, vmax=high, aspect="auto")
        colour_bar = axes.figure.colorbar(shown, ax=axes, label=label, fraction=0.05, pad=0.02)
        colour_bar.outline.set_visible(False)
        for (r, c), value in np.ndenumerate(matrix) if annotate else ():
            if np.isfinite(value):
                brightness = np.dot(shown.cmap(shown.norm(value))[:3], (0.299, 0.587, 0.114))
                ink = "white" if brightness < 0.5 else "#1a1c21"
                axes.text(c, r, written(value), ha="center", va="center", color=ink, fontsize=8.5)
        if row_labels is not None:
            axes.set_yticks(range(rows), row_labels)
        if column_labels is not None:
            inches = (size[0] - 2.4) / max(columns, 1)  # of a column; a letter has about 0.08
            long = 0.08 * max(map(len, column_labels), default=0) > 0.9 * inches
            axes.set_xticks(range(columns), column_labels)
            for text in axes.get_xticklabels() if long else ():
                text.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")
        axes.tick_params(length=0)
    return pathlib.Path(path)


@contextmanager
def _axes(
    path: Path, xlabel: str, ylabel: str, title: str, size: tuple[float, float] = (6.4, 4)
) -> Iterator[Axes]:
    """Axes in the common style, saved to `path` at the end. No global pyplot state is touched."""
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
        yield axes
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)


def _reference_lines(axes: Axes, hlines: Mapping[str, float] | None) -> None:
    """Dashed horizontal lines with their names in the right margin."""
    for name, height in (hlines or {}).items():
        axes.axhline(height, color="#55585f", linewidth=1.1, linestyle=(0, (4, 3)))
        axes.annotate(
            name,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color="#55585f",
            fontsize=8.5,
        )


def _legend(axes: Axes, count: int) -> None:
    """Names of two or more series, outside the axes so that nothing is covered."""
    if count > 1:
        if count <= 4:
            axes.figure.legend(loc="outside lower center", ncols=count)
        else:
            axes.figure.legend(loc="outside right upper")


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _short(value: float) -> str:
    """Three significant digits at most, without an exponent where it reads better; NaN is empty."""
    if value != value:
        return ""
    size = abs(value)
    if value == 0 or 0.01 <= size < 1000:
        text = f"{value:.2f}" if size < 10 else f"{value:.3g}"
    else:
        text = f"{value:,.0f}" if 1000 <= size < 1e6 else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def _wrap(name: str, width: int = 14) -> str:
    """Breaks a long name at spaces."""
    lines = [""]
    for word in str(name).split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
