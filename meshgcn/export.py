"""Maps out of the package: GIFTI and FreeSurfer overlays, tables by region."""

import csv
import pathlib
from typing import Any

import numpy as np

from common.storage import save_json
from meshgcn import files
from meshgcn.meshes import VertexCountError
from meshgcn.templates import Template

__all__ = ["overlays", "region_table", "write_region_table"]


def overlays(
    folder: pathlib.Path, name: str, values: np.ndarray, template: Template, note: dict[str, Any]
) -> list[pathlib.Path]:
    """Writes one map as `<structure>.<name>.shape.gii` and as FreeSurfer `<structure>.<name>`.

    Args:
      folder: existing folder.
      name: for example "hirescam".
      values: `[vertices]`.
      template: whose structures get a file each.
      note: how the map was made (normalisation, subjects averaged); `<name>.json` beside it.

    Returns:
      The files.

    Raises:
      VertexCountError: not as many values as the template has vertices.
    """
    if np.shape(values) != (len(template.mesh),):
        raise VertexCountError(f"{name}: {np.shape(values)} values for {len(template.mesh)}")
    written = [save_json(folder / f"{name}.json", {"template": template.name, **note})]
    for structure, _ in template.mesh.structures:
        part = np.asarray(values)[template.mesh.part(structure)]
        written.append(files.write_values(folder / f"{structure}.{name}.shape.gii", part))
        written.append(files.write_values(folder / f"{structure}.{name}", part))
    return written


def region_table(values: np.ndarray, template: Template) -> list[dict[str, Any]]:
    """Mean and largest value, share of the map's sum, and vertices of each region, largest first.

    Args:
      values: `[vertices]`, not negative.
      template: with labels.
    """
    total = float(np.sum(values)) or 1.0
    rows = []
    for index, region in enumerate(template.regions):
        inside = np.asarray(values)[template.labels == index]
        if len(inside):
            rows.append(
                {
                    "region": region,
                    "mean": float(inside.mean()),
                    "max": float(inside.max()),
                    "share": float(inside.sum()) / total,
                    "vertices": len(inside),
                }
            )
    return sorted(rows, key=lambda row: -row["mean"])


def write_region_table(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    """Writes `region_table` as CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["region"])
        writer.writeheader()
        writer.writerows(rows)
    return path
