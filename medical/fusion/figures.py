"""Pictures of a comparison: scores with what each network is given, and class activation maps."""

from pathlib import Path

import numpy as np

from common import figures, image_grids
from medical.fusion import methods
from medical.medxgan.figures import colour_scale, factor_of, overlay

Arrays = dict[str, np.ndarray]


def draw_scores(rows: list[dict], fill: str, key: str, label: str, path: Path,
                reference: dict[str, float]) -> None:
    """Bars of a score: one group for what is given, one bar for each network that takes it."""
    chosen = {(r["method"], r["view"]): r for r in rows if r["policy"] in ("", fill)}
    views = [v for v in ("both", "image", "clinical") if any(view == v for _, view in chosen)]
    fusions = [m for m in methods.METHODS if methods.METHODS[m].kind == "fusion"
               and (m, "both") in chosen]
    series: dict[str, list[float]] = {"network of that modality": []}
    errors: dict[str, list[float]] = {"network of that modality": []}
    for view in views:
        row = chosen.get((view, view))
        series["network of that modality"].append(row[key]["mean"] if row else np.nan)
        errors["network of that modality"].append((row[key]["sd"] or 0) if row else 0)
    for name in fusions:
        title = methods.METHODS[name].title
        series[title] = [chosen[name, view][key]["mean"] for view in views]
        errors[title] = [chosen[name, view][key]["sd"] or 0 for view in views]
    names = [f"given: {methods.VIEWS[view]}" for view in views]
    figures.bars(path, names, series, errors, label, hlines=reference)


def draw_maps(found: Arrays, classes: list[str], names: list[str], path: Path) -> None:
    """One column a test patient, by level: the image, and a map of each network."""
    images, labels = found["images"], found["labels"]
    masks = found.get("masks")
    factor = factor_of(images.shape[1], 160)
    rows: list[list[np.ndarray | None]] = [
        [overlay(image, None, None if masks is None else masks[i], factor)
         for i, image in enumerate(images)]]
    for name in names:
        # One scale for all patients of a network: a low map stays dark.
        values = found[f"map.{name}"]
        rows.append([overlay(image, values[i], None if masks is None else masks[i], factor,
                             float(values.max())) for i, image in enumerate(images)])
    for row in rows:
        row.append(None)
    rows[-1][-1] = colour_scale(images.shape[1], factor)
    columns = [classes[label] for label in labels]
    image_grids.grid(
        rows, path, ["image", *(methods.METHODS[n].title for n in names)],
        [*columns, "0 to the largest value"], scale=1,
        title=f"What speaks for level {classes[-1]!r}: Grad-CAM, true opacities outlined"
        if masks is not None else f"What speaks for level {classes[-1]!r}: Grad-CAM")
