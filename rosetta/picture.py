"""Stages that show a run: panels of matched units on fresh images, and one HTML report."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import storage
from common.report import Report
from common.report import publish as publish_stages
from rosetta import context, figures, significance, stream
from rosetta.units import Layout
from rosetta.zoo.tapped import forward, parameters

__all__ = ["pictures", "publish", "report"]

Inputs = dict[str, pathlib.Path]
Wanted = Mapping[str, np.ndarray]  # model -> units

_PICTURES = 1 << 21  # number of the first batch of images that are only shown


def pictures(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: panels, concept sheet and histograms, on images that were not mined."""
    plan = context.load_mined(inputs["mine"]).plan
    matches, _ = storage.load_arrays(inputs["dictionary"] / "matches.safetensors")
    found, header = storage.load_arrays(inputs["dictionary"] / "dictionary.safetensors")
    anchor = plan.layout(plan.pairs[0][0])
    layouts = {name: plan.layout(name) for name in (anchor.name, *header["models"])}
    chosen = {
        name: _distinct(matches[f"{name}/columns"], matches[f"{name}/scores"])[: config.matches]
        for name in header["models"]
    }
    entries = range(min(config.entries, len(found["anchors"])))
    labels = found["concepts"]
    concepts = [found["anchors"][labels == c] for c in range(labels.max(initial=-1) + 1)]
    concepts = sorted(concepts, key=len, reverse=True)[: config.concepts]
    wanted: dict[str, Any] = {name: [] for name in layouts}
    for column, name in enumerate(header["models"]):
        wanted[name] += [matches[f"{name}/columns"][chosen[name]]]
        wanted[name] += [found["partners"][list(entries), column]]
        wanted[anchor.name] += [matches[f"{name}/rows"][chosen[name]]]
    wanted[anchor.name] += [found["anchors"][list(entries)], *concepts]
    units = {name: np.unique(np.concatenate(parts)) for name, parts in wanted.items()}
    images, maps = shown(config, inputs, layouts, units)

    for name in header["models"]:
        rows, columns = (matches[f"{name}/{part}"] for part in ("rows", "columns"))
        pair = (anchor, layouts[name])
        figures.depths(out / f"depths_{name}.png", pair, rows, columns)
        best = chosen[name]
        if len(best):
            figures.pair_panel(
                out / f"pairs_{name}.png",
                pair,
                [(rows[i], columns[i], matches[f"{name}/scores"][i]) for i in best],
                images,
                [(maps[anchor.name, rows[i]], maps[name, columns[i]]) for i in best],
            )
    if len(entries):
        partners = [
            {anchor.name: found["anchors"][i], **dict(zip(header["models"], row, strict=True))}
            for i, row in enumerate(found["partners"][list(entries)])
        ]
        figures.rosetta_panel(
            out / "rosetta.png",
            layouts,
            partners,
            found["scores"][list(entries)].mean(1),
            images,
            [{name: maps[name, unit] for name, unit in entry.items()} for entry in partners],
        )
        figures.concept_sheet(
            out / "concepts.png",
            anchor,
            concepts,
            images,
            [concept_map([maps[anchor.name, unit] for unit in units]) for units in concepts],
        )


def shown(
    config: Any, inputs: Inputs, layouts: Mapping[str, Layout], units: Wanted
) -> tuple[np.ndarray, dict[tuple[str, int], np.ndarray]]:
    """Images `[images, h, w, 3]` in [0, 1], and (model, unit) -> maps `[images, s, s]`."""
    networks = config.networks
    zoo = context.zoo(ConfigDict({**networks, "twins": 0}), inputs.get("train"))
    params = parameters(zoo.generator, zoo.models)
    run = jax.jit(forward(zoo.generator, zoo.models))
    images: list[np.ndarray] = []
    maps: dict[tuple[str, int], list[np.ndarray]] = {}
    for index in range(-(-config.pool // networks.batch)):
        z = stream.latents(zoo.generator, networks.seed, _PICTURES + index, networks.batch)
        pixels, found = run(params, z)
        images.append(np.clip(np.asarray(pixels), 0, 1))
        for name, wanted in units.items():
            for unit in wanted.tolist():
                tap, channel = layouts[name].find(unit)
                map_ = found[name][layouts[name].taps[tap]][..., channel]
                maps.setdefault((name, unit), []).append(np.asarray(map_))
    return np.concatenate(images), {key: np.concatenate(parts) for key, parts in maps.items()}


def concept_map(maps: list[np.ndarray]) -> np.ndarray:
    """Mean of the standardised maps of several units, at the largest of their sizes."""
    size = max(found.shape[1] for found in maps)
    enlarged = [figures.enlarged(figures.standardised(found), size) for found in maps]
    return np.mean(enlarged, axis=0)


def report(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: ``report.html`` with all figures and counts."""
    del config
    results = storage.load_json(inputs["dictionary"] / "results.json")
    scores, _ = storage.load_arrays(inputs["significance"] / "scores.safetensors")
    names = list(results["networks"])
    total = results["dictionary"]
    page = Report(
        "Rosetta neurons",
        f"{results['images']} generated images, {len(names)} networks, "
        f"{sum(results['units'][n] for n in names):,} units against the generator's "
        f"{results['units'][_anchor(results)]:,}.",
    )
    exchanged = ", ".join(map(str, total["exchanged_images"]))
    untrained = ", ".join(map(str, total["untrained"])) or "not mined"
    page.section(
        "Units common to all networks",
        f"**{total['units']} units of the generator** are matched in every network and significant "
        f"at a false-discovery rate of {results['rate']} ({total['before_test']} before the test), "
        f"in {total['concepts']} concepts. The same rule without test finds {exchanged} when the "
        f"images of generator and network are exchanged, and {untrained} with untrained networks.",
    )
    for name, caption in (
        ("rosetta.png", "One image for each unit, with the map of every network."),
        ("concepts.png", "Concepts: generator units linked as each other's nearest neighbours."),
    ):
        if (inputs["pictures"] / name).is_file():
            page.figure(inputs["pictures"] / name, caption)
    page.section(
        "Matches of each network",
        "Best buddies are strict; the other rules are described in the README. Nulls are means "
        "over permutations of the images, or over untrained twins. An untrained network is no zero "
        "control: it sees the same images, and its matches may have a higher r.",
    )
    if "train" in inputs:
        training = storage.load_json(inputs["train"] / "training.json")
        page.table(
            ["network", "loss at the end", "test accuracy"],
            [[name, v["loss"], v.get("test_accuracy")] for name, v in training.items()],
            "The networks were trained in this run.",
        )
    columns = ["network", "rule", "matches", "r > 0.5", "mean r", "max r", "images exchanged"]
    rows = [
        [name, rule.replace("_", " "), v["matches"], v["above_half"], _number(v["mean_r"]),
         _number(v["max_r"]), _number(v["exchanged_images"]), _number(v["untrained"]),
         _number(v["untrained_mean_r"])]
        for name in names
        for rule in ("best_buddies", "asymmetric", "symmetric")
        for v in [results["networks"][name][rule]]
    ]  # fmt: skip
    page.table([*columns, "untrained", "untrained: mean r"], rows)
    if "reference" in inputs:
        _published(page, storage.load_json(inputs["reference"] / "reference.json"))
    for name in names:
        row = results["networks"][name]
        page.section(
            name,
            f"{row['significant_units']} generator units have a significant partner; "
            f"{row['significant_matches']} matches of the run's rule are among them. "
            f"{_beyond(row['best_buddies'], results['rate'])} "
            f"{results['constant_units'][name]} of {results['units'][name]} units are constant.",
        )
        curve = out / f"counts_{name}.png"
        figures.match_counts(curve, name, counts(name, scores))
        page.figure(curve, "Best buddies with at least a correlation (0.1 stands for none).")
        for kind in ("depths", "pairs"):
            path = inputs["pictures"] / f"{kind}_{name}.png"
            if path.is_file():
                page.figure(path)
    _manipulation(page, inputs)
    page.write(out / "report.html")


def _published(page: Report, found: Mapping[str, Any]) -> None:
    """Section on the published code's score."""
    page.section(
        "The published score",
        "Matches of the same images by the published code's score, a mean over batches of a "
        "cosine, by Pearson's correlation over all images, and by both.",
    )
    page.table(
        ["network", "rule", "published", "exact", "both"],
        [
            [name, rule.replace("_", " "), *(v[key] for key in ("published", "exact", "both"))]
            for name, rules in found.items()
            for rule, v in rules.items()
        ],
    )


def _manipulation(page: Report, inputs: Inputs) -> None:
    """Sections on inversion and edits."""
    found = storage.load_json(inputs["invert"] / "inversion.json")
    counts_ = ", ".join(f"{number} {group}" for group, number in found["images"].items())
    page.section(
        "Inversion",
        f"Latents of images that were not mined ({counts_}), after {found['steps']} steps: the "
        f"generator's maps are to agree with those of {sum(found['pairs'].values())} matched units "
        f"of the networks (mean r {found['mean_r']:.2f}). Agreement is the mean cosine of the "
        "matched units' standardised maps, whatever the method optimised.",
    )
    keys = ("psnr", "ssim", "lpips", "agreement")
    page.table(
        ["images", "method", "PSNR (dB)", "SSIM", "LPIPS", "agreement"],
        [
            [group, name, *(values[group].get(key) for key in keys)]
            for group in found["images"]
            for name, values in found["methods"].items()
            if group in values
        ],
    )
    page.figure(inputs["invert"] / "inversion.png", "Inverted images; one row a method.")
    found = storage.load_json(inputs["edit"] / "edits.json")
    page.section(
        "Edits",
        f"Maps of {found['units']} matched units of the generator are moved, enlarged, pasted, or "
        "those of another image, and the latent follows. Random units: as many others. Pixels: "
        "the moved image itself is the target. Correlation is that of the picture with the moved "
        "picture where that has content.",
    )
    page.table(
        ["edit", "agreement before", "after", "correlation before", "after", "pixels moved",
         "wanted"],
        [
            [name, *(values.get(key) for key in
             ("agreement_before", "agreement_after", "correlation_before", "correlation_after",
              "pixels_moved", "pixels_wanted"))]
            for name, values in found["edits"].items()
        ],
    )  # fmt: skip
    page.figure(inputs["edit"] / "edits.png", "Edits by maps; one row an edit.")
    units = inputs["edit"] / "units.png"
    if units.is_file():
        page.figure(
            units,
            "One unit at a time is removed or strengthened inside the generator's pass; images on "
            "which its removal changes most.",
        )
    else:
        page.text("The generator has no pass with edited maps: no single units were changed.")


def counts(name: str, scores: Mapping[str, np.ndarray]) -> dict[str, tuple[Any, Any]]:
    """Curves of `figures.match_counts`: the network, exchanged images, untrained twins."""
    thresholds = np.linspace(0, 1, 51)
    curves = {}
    own = scores[f"{name}/best_buddies"]
    for title, mark in (("images exchanged", "!"), ("untrained", "~")):
        null = [v for k, v in scores.items() if k.startswith(name + mark) and "best_b" in k]
        if null:
            curve = significance.false_discovery_curve(
                own, np.concatenate(null), len(null), thresholds
            )
            curves["trained"] = (thresholds, curve["observed"])
            curves[title] = (thresholds, curve["null"])
    return curves


def publish(workdir: pathlib.Path, done: Collection[str]) -> pathlib.Path:
    """Copies report and figures to the top of the working directory; gathers the results there.

    Args:
      workdir: of the run.
      done: names of its stages; others may be left from a run with another configuration.
    """
    results = storage.load_json(workdir / "stages" / "dictionary" / "results.json")
    for stage, name in (("invert", "inversion"), ("edit", "edits")):
        results[name] = storage.load_json(workdir / "stages" / stage / f"{name}.json")
    for stage, name in (("train", "training"), ("reference", "reference")):
        path = workdir / "stages" / stage / f"{name}.json"
        if stage in done:
            results[name] = storage.load_json(path)
    storage.save_json(workdir / "results.json", results)
    return publish_stages(workdir, stages=("pictures", "invert", "edit", "report"))


def _distinct(columns: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Places of matches, best first, of those that share a column unit the best one only."""
    order = np.argsort(-scores, kind="stable")
    return order[np.sort(np.unique(columns[order], return_index=True)[1])]


def _anchor(results: Mapping[str, Any]) -> str:
    return next(iter(results["units"]))


def _beyond(counts_: Mapping[str, Any], rate: float) -> str:
    """What the scores of the best buddies say against both nulls."""
    text = (
        f"By score alone, {counts_['beyond_exchanged']} of {counts_['matches']} best buddies stand "
        f"out from those of exchanged images at a false-discovery rate of {rate}"
    )
    if counts_["beyond_untrained"] is not None:
        text += f", {counts_['beyond_untrained']} from those of untrained twins"
    return f"{text}."


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
