"""One self-contained HTML report of a run: text, tables and figures, readable without a network."""

import base64
import html
import math
import mimetypes
import numbers
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

from PIL import Image

from common.storage import write_whole

_STYLE = """
:root { --ink: #1d2026; --soft: #5b616c; --paper: #ffffff; --panel: #f5f6f8; --line: #dfe2e7;
  --accent: #0072b2; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ed; --soft: #a3a9b4; --paper: #16181d;
  --panel: #20232a; --line: #363b45; --accent: #5fb4e5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
.subtitle { color: var(--soft); margin: 0 0 24px; max-width: 46rem; }
h2 { font-size: 1.35rem; margin: 56px 0 12px; padding-top: 16px;
  border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: 0 0 12px; }
nav { margin: 24px 0 0; font-size: 0.95rem; }
nav a { color: var(--accent); text-decoration: none; margin-right: 18px; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
figure { margin: 24px 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px; }
figcaption, caption { color: var(--soft); font-size: 0.92rem; line-height: 1.5; }
figcaption { margin-top: 8px; max-width: 46rem; }
caption { caption-side: bottom; text-align: left; padding-top: 8px; }
.table { overflow-x: auto; margin: 20px 0; }
table { border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 16px 6px 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
tbody tr + tr td { border-top: 1px solid var(--line); }
.number { text-align: right; }
.note { background: var(--panel); border-left: 3px solid var(--accent); border-radius: 0 6px 6px 0;
  padding: 12px 16px; margin: 20px 0; max-width: 48rem; }
.note p:last-child { margin: 0; }
code { font: 0.88em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--panel); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --panel: #f4f4f4; --line: #ccc; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  figure, tr, .note { break-inside: avoid; } h2 { break-after: avoid; } }
"""


class Report:
    """Collects sections in order and writes them as one HTML file.

    Texts are plain; a blank line starts a paragraph, `code` is set as code and **this** is bold.
    Methods return the report, so calls can be chained.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        """Begins a report headed by `title` and a line below it."""
        self._title = title
        self._subtitle = subtitle
        self._parts: list[str] = []
        self._headings: list[str] = []

    def section(self, heading: str, text: str = "") -> "Report":
        """Begins a section; the contents at the top link to it."""
        self._headings.append(heading)
        self._parts.append(f'<h2 id="s{len(self._headings)}">{_inline(heading)}</h2>')
        return self._add(_paragraphs(text))

    def text(self, text: str) -> "Report":
        """Adds paragraphs."""
        return self._add(_paragraphs(text))

    def note(self, text: str) -> "Report":
        """Adds a set-off remark: a limit, a surprise, how a number was made."""
        return self._add(f'<div class="note">{_paragraphs(text)}</div>')

    def figure(self, path: str | os.PathLike[str], caption: str = "", alt: str = "") -> "Report":
        """Adds an image file, embedded.

        Args:
          path: PNG, JPEG, GIF or WebP file.
          caption: Text below it.
          alt: What it shows, for readers who do not see it; the caption if empty.

        Raises:
          FileNotFoundError: No such file.
          ValueError: Not an image format that browsers show.
        """
        path = pathlib.Path(path)
        kind = mimetypes.guess_type(path.name)[0]
        if kind not in ("image/png", "image/jpeg", "image/gif", "image/webp"):
            raise ValueError(f"{path}: {kind or 'unknown type'} is not an image for a report")
        with Image.open(path) as image:
            width, height = image.size
            dots = image.info.get("dpi", (96, 96))[0]
        # Plots are drawn at twice the density of a screen or more; images of pixels are not.
        shown = round(width * min(1.0, 120 / dots))
        data = base64.b64encode(path.read_bytes()).decode()
        size = f'width="{shown}" height="{round(shown * height / width)}"'
        source = f"data:{kind};base64,{data}"
        image_tag = f'<img src="{source}" alt="{html.escape(alt or caption)}" {size}>'
        below = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        return self._add(f"<figure>{image_tag}{below}</figure>")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = ""
    ) -> "Report":
        """Adds a table; numbers are rounded for reading and aligned right.

        Args:
          header: One text for each column.
          rows: Cells: text, numbers, None (shown as a dash), or (mean, error) pairs of numbers.
          caption: Text below it.

        Raises:
          ValueError: A row does not have as many cells as the header.
        """
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} cells for {len(header)} columns: {list(row)}")
        numeric = [all(_is_number(row[c]) for row in rows) for c in range(len(header))]
        kinds = [' class="number"' if right and rows else "" for right in numeric]
        lines = ['<div class="table"><table>']
        lines.append(f"<caption>{_inline(caption)}</caption>" if caption else "")
        for tag, cells in (("th", [header]), ("td", rows)):
            lines.append("<thead>" if tag == "th" else "<tbody>")
            for row in cells:
                texts = zip(row, kinds, strict=True)
                lines.append(
                    "<tr>" + "".join(f"<{tag}{k}>{_cell(x)}</{tag}>" for x, k in texts) + "</tr>"
                )
            lines.append("</thead>" if tag == "th" else "</tbody>")
        return self._add("\n".join([*lines, "</table></div>"]))

    def write(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the report; the file appears whole or not at all."""
        path = pathlib.Path(path)
        links = [
            f'<a href="#s{n}">{_inline(heading)}</a>' for n, heading in enumerate(self._headings, 1)
        ]
        page = [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(self._title)}</title>",
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>{_inline(self._title)}</h1>",
            f'<p class="subtitle">{_inline(self._subtitle)}</p>' if self._subtitle else "",
            f"<nav>{' '.join(links)}</nav>" if len(links) > 2 else "",
            *self._parts,
            "</main>\n</body>\n</html>\n",
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join(part for part in page if part).encode())
        return path

    def _add(self, part: str) -> "Report":
        self._parts.append(part)
        return self


def publish(
    workdir: pathlib.Path, *files: str, stages: Sequence[str] = ("report",)
) -> pathlib.Path:
    """Copies pages and figures of finished stages, and single files, to the top of a run's folder.

    Args:
        workdir: the run's folder.
        files: further files, as `STAGE/NAME`; they keep their names.
        stages: those whose `.png` and `.html` files are copied.

    Returns:
        The report.
    """
    root = workdir / "stages"
    pages = [p for stage in stages for p in sorted((root / stage).glob("*.*"))
             if p.suffix in (".png", ".html")]
    for path in [*pages, *(root / name for name in files)]:
        shutil.copyfile(path, workdir / path.name)
    return workdir / "report.html"


def _inline(text: str) -> str:
    """Escapes a text and sets `code` and **bold**."""
    text = html.escape(str(text), quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _paragraphs(text: str) -> str:
    parts = (part.strip() for part in re.split(r"\n\s*\n", text))
    return "\n".join(f"<p>{_inline(part)}</p>" for part in parts if part)


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and all(map(_is_number, value))
    return value is None or isinstance(value, int | float) or hasattr(value, "__float__")


def _cell(value: Any) -> str:
    """A cell's text: numbers to three digits or more, integers in full."""
    if isinstance(value, tuple) and _is_number(value):
        return f"{_cell(value[0])} ± {_cell(value[1])}"
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    if not _is_number(value):
        return _inline(value)
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    if number == 0 or 0.001 <= abs(number) < 1000:
        decimals = 3 if abs(number) < 1 else 2 if abs(number) < 100 else 1
        return f"{number:.{decimals}f}".replace("-", "\N{MINUS SIGN}")
    text = f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.2e}"
    return text.replace("-", "\N{MINUS SIGN}")
