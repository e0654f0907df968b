"""Stage that draws a run: figures and one HTML report."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from common import storage
from common.report import Report
from medical.fusion import cohort, figures, methods

WARNING = "Research software. Not a medical device and not for diagnosis."
MADE = (" Outcomes and clinical variables are those of real patients ({}). The images are phantoms "
        "given to them by outcome: nothing here says how well X-rays tell it.")


PUBLISHED = {
    ("fusion", "both"): "image and clinical",
    ("image", "image"): "image",
    ("clinical", "clinical"): "clinical",
    ("fusion", "image"): "image and clinical",
    ("fusion", "clinical"): "image and clinical",
}
"""(method, what it is given) of the paper's table to what the network was trained on."""


def report(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: figures and ``report.html``."""
    results = storage.load_json(inputs["measure"] / "results.json")
    maps, _ = storage.load_arrays(inputs["explain"] / "maps.safetensors")
    rows, fill = results["rows"], results["fill"]
    figures.draw_scores(rows, fill, "accuracy", "accuracy", out / "accuracy.png",
                        {"commonest level": results["majority"]})
    figures.draw_scores(rows, fill, "auc", "area under the curve, one against one",
                        out / "auc.png", {"chance": 0.5})
    figures.draw_maps(maps, results["classes"], list(config.methods), out / "maps.png")
    write(config, results, out)


def write(config: ConfigDict, results: dict, out: Path) -> None:
    """``report.html``."""
    counts, fill = results["counts"], results["fill"]
    page = Report("DeepCOVID-Fuse: image and clinical variables in one network",
                  "; ".join(f"{name}: {sum(counts[name])} patients"
                            for name in ("train", "validation", "test")))
    made = "" if config.source == "own" else MADE.format(cohort.SOURCES[config.source])
    page.note(WARNING + made)
    if results["unreadable"]:
        page.note(f"{results['unreadable']} images could not be read; their patients count as "
                  "without image.")
    if results["repeated"]:
        page.note(f"**Several rows of one patient:** {results['repeated']} test rows are of "
                  "patients who have another one. Intervals of accuracy, DeLong's and McNemar's "
                  "tests take rows as independent and are too sure; the bootstrap draws whole "
                  "patients.")
    page.section("Patients")
    page.table(["part", *results["classes"]],
               [[name, *counts[name]] for name in ("train", "validation", "test")])
    for kind, test in results["absence"].items():
        share = ", ".join(f"{results['classes'][int(c)]} {100 * value:.0f} %"
                          for c, value in test["share"].items())
        text = (f"Without {kind}, by level: {share}; permutation test of independence p = "
                f"{test['p']:.3g}, Cramer's V {test['strength']:.2f}.")
        if test["p"] < 0.05:
            page.note(f"**Absence is informative.** {text} That something is absent tells the "
                      "level: compare the rows that may use it (learned stand-ins) with those that "
                      "see the mean in its place, and expect neither where absence has other "
                      "causes.")
        else:
            page.text(text)
    seeds = len(results["seeds"])
    page.section("As in the paper", f"Mean over {seeds} seeds and its 95 % interval (bootstrap of "
                 "the patients). Area: one against one, weighted by prevalence. Answering the "
                 f"commonest level for everyone is right for {100 * results['majority']:.1f} %.")
    page.table(["trained on", "given", "accuracy", "95 %", "area", "95 %"],
               published_rows(results["rows"], fill))
    page.section("Scores", f"Mean over {seeds} seeds with standard deviation, and the 95 % "
                 "interval of the mean. Precision and F1 are weighted by prevalence.")
    page.table(["network", "given", "in place of what is absent", "accuracy", "95 %", "area",
                "95 %", "precision", "F1", "calibration error", "patients"],
               [table_row(row) for row in results["rows"]])
    page.figure(out / "accuracy.png").figure(out / "auc.png")
    page.section("Paired tests", "DeLong's test of each level against the rest, corrected by Holm "
                 "over the levels; McNemar's exact test of the accuracy; bootstrap of the area. "
                 "The p values of the seeds are listed one by one.")
    page.table(["first", "second", *(f"DeLong, {c}" for c in results["classes"]), "McNemar",
                "difference of areas", "95 %"],
               [test_row(test) for test in results["tests"]])
    page.section("Checks")
    page.table(["", "value", "holds"], [
        [row["what"], row["value"], "yes" if row["holds"] else "no"] for row in results["checks"]])
    for row in results["rows"]:
        if row["collapsed"]:
            page.note(f"**Collapsed:** {title(row['method'])}, given {row['view']}: "
                      f"{row['collapsed']} seeds answer one level for more than 95 % of the "
                      "patients.")
    page.section("Class activation maps").figure(out / "maps.png")
    if results["maps"]:
        page.table(["Grad-CAM against the true opacities", "pixel AUC", "pointing game", "IoU"],
                   [[title(name), row["auc"], row["pointing"], row["iou"]]
                    for name, row in results["maps"].items()])
    page.section("Training", "Seed by seed: best epoch, epochs done, accuracy on the validation "
                 f"set. First weights of the trunk: {results['trunk']['source']}.")
    page.table(["", "stage", "best epoch", "epochs", "accuracy"], [
        [title(name), stage, several(log["best_epoch"]), several(log["epochs"]),
         several([f"{a:.3f}" for a in log["validation_accuracy"]])]
        for name, stages in results["training"].items() for stage, log in stages.items()])
    page.write(out / "report.html")


def title(name: str) -> str:
    """Title of a method or baseline."""
    if name in methods.METHODS:
        return methods.METHODS[name].title
    return f"{methods.BASELINES[name]} on the variables"


def table_row(row: dict) -> list[Any]:
    """One network and what it is given."""

    def cell(key: str) -> Any:
        found = row[key]
        return found["mean"] if found["sd"] is None else (found["mean"], found["sd"])

    return [title(row["method"]), methods.VIEWS[row["view"]], row["policy"], cell("accuracy"),
            span(row["accuracy"]), cell("auc"), span(row["auc"]), cell("precision"), cell("f1"),
            cell("calibration_error"), row["patients"]]


def published_rows(rows: list[dict], fill: str) -> list[list[Any]]:
    """The five comparisons of the paper, as far as their networks were trained."""
    found = {(row["method"], row["view"]): row for row in rows if row["policy"] in ("", fill)}
    return [[trained, methods.VIEWS[view], row["accuracy"]["mean"], span(row["accuracy"]),
             row["auc"]["mean"], span(row["auc"])]
            for (name, view), trained in PUBLISHED.items() if (row := found.get((name, view)))]


def span(score: dict) -> str:
    """The interval of a score."""
    return f"{score['low']:.3f} to {score['high']:.3f}"


def test_row(test: dict) -> list[Any]:
    """One comparison."""
    classes = len(test["delong"][0]["p"])
    area = test["auc"]
    interval = f"{area['low']:+.3f} to {area['high']:+.3f}".replace("-", "\N{MINUS SIGN}")
    return [*(f"{title(name)}, {view}" for name, view in (test["first"], test["second"])),
            *(several([f"{seed['p'][c]:.2g}" for seed in test["delong"]]) for c in range(classes)),
            several([f"{p:.2g}" for p in test["mcnemar"]]),
            f"{area['estimate']:+.3f}".replace("-", "\N{MINUS SIGN}"), interval]


def several(values: list) -> str:
    """One value for each seed."""
    return ", ".join(str(value) for value in values)
