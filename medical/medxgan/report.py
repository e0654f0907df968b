"""Stage that draws a run: figures and one HTML report."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import figures, storage
from common.report import Report
from medical.medxgan import evaluate, maps
from medical.medxgan.figures import draw_explanations, draw_interpolation, draw_samples

WARNING = "Research software. Not a medical device and not for diagnosis."
PHANTOMS = " The images are phantoms: nothing here says how a method localises disease in patients."
HEADERS = {"iou": "IoU", "pointing": "pointing game", "mass": "mass in lesion", "auc": "pixel AUC",
           "deletion": "deletion (low)", "insertion": "insertion (high)", "sparsity": "area >= 0.1"}


def report(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: figures and ``report.html``."""
    results = storage.load_json(inputs["measure"] / "results.json")
    cases = [name for name in inputs if name.startswith("explain-")]
    for name in cases:
        found, _ = storage.load_arrays(inputs[name] / "explained.safetensors")
        tail = "" if name == cases[0] else f"_{name.removeprefix('explain-').replace('-', '_')}"
        draw_explanations(found, maps.TITLES, out / f"explanations{tail}.png")
        if name == cases[0]:
            draw_interpolation(found, out / "interpolation.png")
            draw_samples(found, out / "samples.png")
    draw_table(results, out / "localisation.png")
    write(config, results, cases, out)


def draw_table(results: dict, path: Path) -> None:
    """The localisation table as a heat map."""
    left_out = ("oracle", "random", "grad_cam_released")  # they are in the report's table
    found = results["localisation"]
    names = [n for n in found if n not in left_out]
    metrics = _metrics(results)
    table = [[found[n][m]["mean"] for m in metrics] for n in names]
    title = "Localisation" if "iou" in metrics else "How much the class depends on a map's pixels"
    figures.heatmap(path, np.array(table), [maps.TITLES[n] for n in names],
                    [HEADERS[m] for m in metrics], title=title, limits=(0.0, 1.0))


def _metrics(results: dict) -> list[str]:
    """What compares maps: against known lesions where there are some."""
    found = list(results["localisation"]["random"])
    return [m for m in ("iou", "pointing", "mass", "auc") if m in found] or found


def write(config: ConfigDict, results: dict, cases: list[str], out: Path) -> None:
    """``report.html``."""
    page = Report("medXGAN: which pixels does a classifier see the lesion in?",
                  config.source)
    known = "iou" in results["localisation"]["random"]
    page.note(WARNING + (PHANTOMS if known else ""))
    page.section("Guards", "A generator that has collapsed, or an inversion that misses the image, "
                 "explains nothing: these come first.")
    limits = {name: f"{sign} {limit}" for name, (sign, limit) in evaluate.GUARDS.items()}
    seeds = list(results["guards"])
    of_phantoms = (("outside_inside", "outside_similarity", "healthy_error") if known
                   else ())
    page.table(
        ["", "wanted", *seeds],
        [[name.replace("_", " "), limits.get(name, ""), *(results["guards"][s][name]
                                                          for s in seeds)]
         for name in (*evaluate.GUARDS, "edited_flipped", "inversion_mse", *of_phantoms,
                      "validation_accuracy", "test_accuracy", "validation_margin_deviation",
                      "images", "called_positive")])
    if not results["reliable"]:
        bad = {s: results["guards"][s]["failed"] for s in seeds if results["guards"][s]["failed"]}
        page.note("**Unreliable explanations.** Guards that do not hold: "
                  + "; ".join(f"{s}: {', '.join(names)}" for s, names in bad.items()))
    page.section("Explanations").figure(out / "explanations.png")
    page.figure(out / "interpolation.png").figure(out / "samples.png")
    rows, metrics = results["localisation"], _metrics(results)
    headers = {m: HEADERS[m] for m in rows["random"]}
    page.section("Localisation" if known else "Measures of the maps",
                 f"{results['images']} explained images of {results['patients']} patients over all "
                 "seeds; 95 % bootstrap intervals over patients.")
    page.figure(out / "localisation.png")
    page.table(["map", *headers.values()], [
        [maps.TITLES[name], *(_interval(row[m]) for m in headers)] for name, row in rows.items()])
    page.section("Paired differences", "Each generative map less another map on the same images.")
    for other in next(iter(results["differences"].values())):
        page.table([f"less {maps.TITLES[other]}", *(HEADERS[m] for m in metrics)], [
            [maps.TITLES[name], *(_interval(row[other][m]) for m in metrics)]
            for name, row in results["differences"].items()])
    if results["noise"]:
        noise_section(page, results["noise"])
    if results["controls"]:
        page.section("Controls", "With shuffled labels a map has nothing to find; with a corner "
                     "mark on every positive image the classifier needs no lesion, and a map that "
                     "follows the classifier points to the mark.")
        for case, table in results["controls"].items():
            columns = list(table["random"])
            titles = {**HEADERS, "marker": "pointing to the mark"}
            page.table([case, *(titles[m] for m in columns)],
                       [[maps.TITLES[name], *(table[name][m] for m in columns)]
                        for name in maps.TITLES if name in table])
    for name in cases[1:]:
        case = name.removeprefix("explain-")
        page.section(f"Case {case}").figure(out / f"explanations_{case.replace('-', '_')}.png")
    page.write(out / "report.html")


def noise_section(page: Report, table: dict) -> None:
    """Area and rank correlation of maps of noisy images."""
    levels = list(next(iter(table.values())))
    page.section("Noise", "Normal noise on the image, deviation in units of the pixels (-1 to 1). "
                 "Area: share of the pixels at or above a tenth of the map's maximum (the paper's "
                 "measure); rank: Spearman's correlation to the map of the clean image. Codes are "
                 "searched anew for each noisy image.")
    for metric, title in (("area", "area"), ("rank", "rank correlation")):
        shown = [level for level in levels if metric in next(iter(table.values()))[level]]
        page.table([title, *(f"noise {level}" for level in shown)], [
            [maps.TITLES[name], *(_interval(row[level][metric]) for level in shown)]
            for name, row in table.items()])


def _interval(value: dict) -> str:
    text = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return text.replace("-", "\N{MINUS SIGN}")
