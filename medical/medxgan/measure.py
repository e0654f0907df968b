"""Stage that turns the maps' scores into tables: means, paired differences, guards, controls."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import storage
from medical.medxgan import evaluate, maps, noise

COMPARED = ("grad_cam", "ig_black", "prior")
"""Maps that each generative map is compared with, image by image."""


def measure(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: ``results.json``."""
    random = np.random.default_rng(config.seed)
    cases = [name.removeprefix("explain-") for name in inputs if name.startswith("explain-")]
    scores, checks = {}, {}
    for case in cases:
        folder = inputs[f"explain-{case}"]
        scores[case] = read_scores(folder)
        judge = storage.load_json(inputs[f"classifier-{case}"] / "classifier.json")
        checks[case] = {**storage.load_json(folder / "guards.json"), **judge}
    true = [case for case in cases if case.startswith("true-")]
    pooled = {
        name: {metric: np.concatenate([scores[case][name][metric] for case in true])
               for metric in table}
        for name, table in scores[true[0]].items()
    }
    # Images of one patient are not independent, nor are those of two seeds of one patient.
    groups = np.concatenate([read_part(inputs[f"explain-{case}"], "patients") for case in true])
    names = [name for name in maps.TITLES if name in pooled]
    # Of a user's images no lesion is known, and all of those metrics are NaN.
    metrics = [m for m in evaluate.METRICS if np.isfinite(pooled["random"][m]).any()]
    paired = [m for m in ("iou", "pointing", "mass", "auc") if m in metrics] or metrics
    storage.save_json(out / "results.json", {
        "localisation": {
            name: {metric: evaluate.mean_interval(pooled[name][metric], random, groups)
                   for metric in metrics}
            for name in names
        },
        "by_seed": {
            case: {name: {metric: float(np.nanmean(scores[case][name][metric]))
                          for metric in metrics} for name in names}
            for case in true
        },
        "differences": {
            name: {other: {metric: evaluate.mean_interval(
                pooled[name][metric] - pooled[other][metric], random, groups)
                for metric in paired} for other in COMPARED if other in names}
            for name in maps.GENERATIVE
        },
        "controls": {
            case: {name: {metric: float(np.nanmean(table[metric]))
                          for metric in (*paired, "marker") if metric in table}
                   for name, table in scores[case].items()}
            for case in cases if case not in true
        },
        "noise": noise_table([inputs[f"explain-{case}"] for case in true], random),
        "guards": checks,
        "reliable": not any(checks[case]["failed"] for case in true),
        "images": len(pooled["random"]["iou"]), "patients": len(np.unique(groups)),
    })


def noise_table(
    folders: list[Path], random: np.random.Generator
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Map to deviation of the noise to "area" and "rank" with their intervals; see `noise`."""
    found = [storage.load_arrays(folder / "explained.safetensors")[0] for folder in folders]
    groups = np.concatenate([arrays["patients"] for arrays in found])
    counts = [len(arrays["patients"]) for arrays in found]
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for key in found[0]:
        if not key.startswith("noise."):
            continue
        name, rest = key.removeprefix("noise.").split(".", 1)
        level, metric = rest.rsplit(".", 1)
        values = np.concatenate([arrays[key] for arrays in found])
        whose = np.concatenate([part[: len(arrays[key])] for part, arrays in zip(
            np.split(groups, np.cumsum(counts)[:-1]), found, strict=True)])
        row = table.setdefault(name, {}).setdefault(level, {})
        row[metric] = evaluate.mean_interval(values, random, whose)
    return {name: table[name] for name in noise.MAPS if name in table}


def read_part(folder: Path, name: str) -> np.ndarray:
    """One array of what stage `explain` left."""
    return storage.load_arrays(folder / "explained.safetensors")[0][name]


def read_scores(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Scores of each map and metric, ``[images]``, as stage `explain` left them."""
    arrays, _ = storage.load_arrays(folder / "explained.safetensors")
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, values in arrays.items():
        kind, _, rest = key.partition(".")
        if kind == "score":
            name, metric = rest.split(".")
            found.setdefault(name, {})[metric] = values
    return found
