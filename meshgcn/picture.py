"""Stage that shows a run: curves of AUC against effect, maps on the cortex, one HTML report."""

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import figures, storage
from common.report import Report
from meshgcn import context, evaluate, surface_figures

__all__ = ["report"]

Inputs = dict[str, pathlib.Path]
_TITLES = {
    "additive": "additive plant: region A thin in every patient",
    "either": "either plant: region A or region B thin",
    "xor": "XOR plant: exactly one of two regions thin",
}
_SHOWN = (
    "ridge vertices",
    "svm vertices",
    "logistic parcels",
    "perceptron vertices",
    "perceptron parcels",
)


def report(config: ConfigDict, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: figures and ``report.html``."""
    results = storage.load_json(inputs["score"] / "results.json")
    found, _ = storage.load_arrays(inputs["explain"] / "maps.safetensors")
    brain = context.template_of(config)
    shown = {
        f"HiResCAM,\nlevel {config.maps.levels[0]}": found[f"hirescam {config.maps.levels[0]}"],
        f"Grad-CAM,\nlevel {config.maps.levels[0]}": found[f"gradcam {config.maps.levels[0]}"],
        "random\nweights": found["hirescam random"],
        "ridge\nweights": found["ridge weights"],
        "t map": found["t map"],
    }
    rows = {name: np.asarray(values.mean(axis=0)) for name, values in shown.items()}
    truth = found.get("truth")
    settings: dict[str, Any] = {"threshold": 0.15}
    title = "Where the classifiers look"
    surface_figures.maps(out / "maps_pial.png", rows, brain, "pial", title, **settings)
    if brain.bodies:
        surface_figures.maps(out / "maps_bodies.png", rows, brain, "bodies", title, **settings)
    if truth is not None:  # on the inflated surface, where folds do not hide the line
        settings["outline"], title = truth, title + " (outline: planted region)"
    surface_figures.maps(out / "maps_inflated.png", rows, brain, "inflated", title, **settings)
    networks = list(config.networks)
    if not config.data.folder:
        _draw_curves(config, results, out)
    page = _page(config, results, networks, out)
    if config.data.folder:
        _left_out(page, storage.load_json(inputs["classify"] / "excluded.json"))
    page.write(out / "report.html")


def _draw_curves(config: ConfigDict, results: dict[str, Any], out: pathlib.Path) -> None:
    """One figure for each plant: AUC against effect with corrected intervals."""
    for plant in config.cohort.plants:
        # People without any effect are the same for every plant.
        found = [c for c in results["conditions"].values() if not c["shuffled"]]
        own = [c for c in found if c["plant"] == plant or c["effect"] == 0]
        own = sorted(own, key=lambda c: c["effect"])
        names = [*config.networks, *(n for n in _SHOWN if n in own[0]["classifiers"])]
        series: dict[str, tuple[np.ndarray, ...]] = {}
        for name in names:
            values = [c["classifiers"][name]["auc"] for c in own]
            mean = np.array([v["mean"] for v in values])
            x = 100 * np.array([c["effect"] for c in own])
            series[name] = (x, mean)
            if name == names[0] and results["trials"] > 1:  # one trial has no interval
                half = np.array([v["half_width"] for v in values])
                series[name] += (np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1))
        figures.curves(
            out / f"auc_{plant}.png",
            series,
            "thinning at the centre of a region, percent",
            "AUC on test people",
            _TITLES[plant],
            hlines={"chance": 0.5},
        )


def _page(
    config: ConfigDict, results: dict[str, Any], networks: list[str], out: pathlib.Path
) -> Report:
    first = next(iter(results["conditions"].values()))
    real = bool(config.data.folder)
    kind = "your scans" if real else "synthetic subjects with planted atrophy"
    page = Report(
        "Mesh graph convolutions on the cortex",
        f"{first['scans']} {kind} on {results['template']}, "
        + (
            "split as the table says."
            if config.data.folder and config.data.columns.split
            else f"{results['trials']} Monte Carlo trials."
        ),
    )
    page.section(
        "Classification",
        "AUC on the test people of each trial. People are never in two parts of a split; every "
        "statistic is fitted on the training scans. The band is the 95 percent interval of Nadeau "
        "and Bengio, which allows for training sets that overlap; one trial has none.",
    )
    if not real:
        page.text("An additive plant is linearly separable, so a ridge should win it.")
        for plant in config.cohort.plants:
            page.figure(out / f"auc_{plant}.png", alt=_TITLES[plant])
    for name, condition in results["conditions"].items():
        page.table(*_metrics(condition), caption=_caption(name, condition))
    page.section(
        "Maps",
        "Class-specific gradient maps of correctly found patients of the test scans, each divided "
        "by its largest value, averaged. Random weights are the sanity check of the maps: they "
        "should not find the region.",
    )
    page.figure(out / "maps_inflated.png", "Inflated surface.")
    page.figure(out / "maps_pial.png", "Pial surface.")
    if (out / "maps_bodies.png").exists():
        page.figure(out / "maps_bodies.png", "Subcortical bodies.")
    located = results["localisation"]
    if "means" in located:
        rows = [
            [key, value["dice"], value["auc"], value["pointing"], value["peak_inside"]]
            for key, value in located["means"].items()
        ]
        header = ["map", "Dice", "vertex AUC", "pointing, scans", "pointing, mean map"]
        runs = located["runs"]
        page.table(
            header,
            rows,
            f"Mean over {len(runs)} cohorts ({config.maps.plant}, {config.maps.effect:.0%}); Dice "
            f"of as many vertices as the region has; by chance {located['chance']:.3f}. The number "
            "after a map's name is the level of the network, 0 the finest.",
        )
    page.table(
        ["region", "mean", "largest", "share of the map", "vertices"],
        [[r["region"], r["mean"], r["max"], r["share"], r["vertices"]] for r in located["regions"]],
        "The ten regions with the largest mean.",
    )
    return page


def _left_out(page: Report, excluded: dict[str, Any]) -> None:
    """Which scans were not used, and why."""
    page.section("Scans left out", excluded["summary"])
    rows = [[item["scan"], item["kind"], item["reason"]] for item in excluded["scans"]]
    if rows:
        page.table(["scan", "kind", "reason"], rows)


def _metrics(condition: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    header = ["classifier", *(m.replace("_", " ") for m in evaluate.METRICS), "parameters"]
    rows = []
    for name, found in condition["classifiers"].items():
        cells = [(found[m]["mean"], found[m]["half_width"]) for m in evaluate.METRICS]
        rows.append([name, *cells, found.get("parameters")])
    return header, rows


def _caption(name: str, condition: dict[str, Any]) -> str:
    text = f"{condition['plant']}, effect {condition['effect']:.0%}"
    if condition["plant"] == "real":
        text = "your scans"
    return text + (", shuffled labels" if condition["shuffled"] else "") + f" (`{name}`)."
