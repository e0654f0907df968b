"""The report of a run: figures, tables and one self-contained page."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from common import storage
from common.report import Report
from ign import figures

CAPTIONS = {
    "samples.png": "Images drawn in one application.",
    "real.png": "Test images, for comparison.",
    "trajectory.png": "Noise, and one to four applications.",
    "projection.png": "No corruption was seen in training, unless `input_noise` is set.",
    "drift.png": "The drift is the score of the detection table.",
    "interpolation.png": "Every point of an arc has the distribution of the noise.",
    "arithmetic.png": "Sums are scaled to the distribution of the noise.",
    "losses.png": "Drift is the value of the idempotence and (before the clamp) tightness terms.",
    "idempotence.png": "Falling curves: repeated application comes to rest.",
    "gains.png": "Against the corrupted image; below 0 it costs more than it repairs.",
}


def report(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: all figures and `report.html`."""
    results = storage.load_json(inputs["measure"] / "results.json")
    shown, _ = storage.load_arrays(inputs["measure"] / "drawn.safetensors")
    names = figures.draw_all(shown, results, inputs["train"], out)
    page = Report(
        "Idempotent Generative Network",
        f"{config.source}: one network that generates, projects, refines and detects",
    )
    page.section("Collapse", collapse_text(results))
    page.section("Bounds").table(*bounds_table(results))
    page.section("Generation").table(*generation_table(results))
    page.note(judge_text(results))
    page.section("Idempotence").table(*idempotence_table(results))
    page.section("Projection").table(*restoration_table(results))
    page.section("Detection by drift").table(*detection_table(results))
    page.section("Figures")
    ordered = [*(n for n in CAPTIONS if n in names), *(n for n in names if n not in CAPTIONS)]
    for name in ordered:
        page.figure(out / name, CAPTIONS.get(name, ""), alt=name.removesuffix(".png"))
    page.write(out / "report.html")


def collapse_text(results: dict[str, Any]) -> str:
    """One sentence on how many members collapsed, and how."""
    members = results["members"]
    collapsed = [f"{m['name']} ({m['final']})" for m in members if m["final"]]
    if not collapsed:
        return f"None of {len(members)} trainings ended in a collapse."
    return f"{len(collapsed)} of {len(members)} trainings collapsed: {'; '.join(collapsed)}."


def bounds_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption: the value of each bound for each member, missed ones marked."""
    members = results["members"]
    rows = []
    for index, bound in enumerate(members[0]["bounds"]):
        own = [m["bounds"][index] for m in members]
        marks = [f"{b['value']:.3g}{'' if b['kept'] else ' (missed)'}" for b in own]
        rows.append([bound["name"], bound["bound"], *marks])
    accepted = sum(m["accepted"] for m in members)
    caption = f"{accepted} of {len(members)} trainings meet all bounds, see ign/acceptance.py."
    return ["", "bound", *(m["name"] for m in members)], rows, caption


def judge_text(results: dict[str, Any]) -> str:
    """Which network's features the distances are in."""
    judge = results["judge"]
    if judge["accuracy"] is None:
        return (
            "Distances are in features of AlexNet (last convolution, averaged): FD-alex, not FID."
        )
    return (
        "Distances are in features of a small classifier trained on the same data (FD-cnn, not FID)"
        f" with test accuracy {judge['accuracy']:.4f}. Both sets have {results['count']} images."
    )


def generation_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption: members with one and two applications, and baselines."""
    rows: list[tuple[str, dict[str, float]]] = []
    for member in results["members"]:
        rows += [(f"f(z), {member['name']}", member["f"])]
        rows += [(f"f(f(z)), {member['name']}", member["ff"])]
    rows += list(results["baselines"].items())
    keys = {
        "fid": "FID", "frechet": "FD", "kid": "KID", "precision": "precision", "recall": "recall",
        "duplicates": "duplicates", "coverage": "classes", "entropy": "entropy",
        "variation": "class TV", "confidence": "confidence",
    }  # fmt: skip
    keys = {key: name for key, name in keys.items() if key in rows[0][1]}
    table = [[name, *(numbers[key] for key in keys)] for name, numbers in rows]
    return ["images", *keys.values()], table, "Against test images."


def idempotence_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption."""
    rows = []
    for member in results["members"]:
        i, d = member["idempotence"], member["detection"]
        drifts = [d[name]["drift"] for name in ("real", "f(z)", "noise z")]
        rows.append([member["name"], i["median"], i["p95"], i["curve"][-1], *drifts])
    header = ["training", "ratio, median", "95 %", f"at k = {len(i['curve'])}"]
    header += ["drift of test images", "of f(z)", "of z"]
    return header, rows, "Ratio: |f(f(z)) - f(z)| / |f(z) - z|. Drift: mean absolute change."


def restoration_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption, of the first member."""
    table = results["members"][0]["restoration"]
    names = list(table["clean"])
    measures = [m for m in ("psnr", "ssim", "accuracy") if m in table["clean"]["f"]]
    header = ["images", *(f"{m}, {name}" for m in measures for name in names)]
    rows = [[kind, *(table[kind][n][m] for m in measures for n in names)] for kind in table]
    return header, rows, "PSNR in dB; accuracy of the judge. First training."


def detection_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Header, rows and caption: AUROC of the drift for each kind of input and member."""
    members = results["members"]
    kinds = [kind for kind in members[0]["detection"] if kind != "real"]
    rows = [[kind, *(m["detection"][kind]["auroc"] for m in members)] for kind in kinds]
    header = ["against test images", *(m["name"] for m in members)]
    return header, rows, "AUROC of the drift: 0.5 is chance, 1 a perfect detector."
