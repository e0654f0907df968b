"""Stage that draws a run: figures and one HTML report."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from common import storage
from common.report import Report
from medical.acgan import evaluate, figures, stages
from medical.acgan.measure import read
from medical.acgan.methods import METHODS

WARNING = "Research software. Not a medical device and not for diagnosis."
BASELINES = {"difference": ("differences.png", "CNN"),
             "difference_augmented": ("differences_augmented.png", "augmented CNN")}
"""Tables of differences: their figures, and what is compared with."""


def report(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: figures and ``report.html``."""
    results = storage.load_json(inputs["measure"] / "results.json")
    arrays, _ = storage.load_arrays(inputs["data"] / "images.safetensors")
    figures.draw_accuracy(results, out / "accuracy.png")
    for key, (file, baseline) in BASELINES.items():
        if results[key]:
            figures.draw_differences(results, out / file, key, baseline)
    test, trials = stages.part(arrays, "test"), stages.trials_of(config)
    first = [int(np.flatnonzero(test.labels == c)[0]) for c in range(len(results["classes"]))]
    reals = test.images[first]
    if reals.dtype != np.uint8:
        reals = np.rint((reals + 1) * 127.5).astype(np.uint8)
    largest = next(i for i, t in enumerate(trials) if t.per_class == results["sizes"][-1])
    for name in results["samples"]:
        title = (f"{METHODS[name].title}, {trials[largest].per_class} images of each class, "
                 f"seed {trials[largest].seed}")
        figures.draw_samples(read(inputs[f"train-{name}"])["samples"][largest], reals,
                             tuple(results["classes"]), title, out / f"samples_{name}.png")
    write(config, results, out)


def write(config: ConfigDict, results: dict, out: Path) -> None:
    """``report.html``."""
    sizes = [str(n) for n in results["sizes"]]
    seeds = len(results["seeds"])
    page = Report(
        "Is the discriminator of a GAN a better classifier when images are few?",
        f"{config.source}: {', '.join(sizes)} labelled images of each class, {seeds} seeds, "
        f"{results['test_images']} test images.")
    page.note(WARNING)
    if results["bad"]:
        page.note(f"{len(results['bad'])} images could not be read and are left out; the first: "
                  f"{': '.join(results['bad'][0])}")
    page.section("Accuracy", "Every method has the same trunk, images, steps and optimiser. Each "
                 "trial is kept at its best step on the validation set, of "
                 f"{results['validation_images']} images: more than some trials train on.")
    page.figure(out / "accuracy.png")
    heads = [f"{n} of each class" for n in sizes]
    for key, caption in (
        ("accuracy", "At the best validation: mean and standard deviation over seeds."),
        ("last_accuracy", "After the last step, without selection."),
    ):
        page.table(["", *heads], [
            [METHODS[name].title, *(cell(table[n]) for n in sizes)]
            for name, table in results[key].items()], caption)
    page.section("Differences", "Paired by seed. The t test over seeds asks about the "
                 "methods; McNemar's test asks about two trained networks on the same test images. "
                 "The bootstrap draws seeds and test images again; of few seeds it is too narrow. "
                 "Both are adjusted by Holm over all tests of their kind.")
    for key, (file, baseline) in BASELINES.items():
        if not results[key]:
            continue
        page.figure(out / file)
        page.table([f"less {baseline}", "of each class", "difference", "95 % interval, t",
                    "bootstrap", "p, t", "Holm", "seeds significantly better", "worse"], [
            [METHODS[name].title, n, signed(row["mean"]), interval(row["low"], row["high"]),
             interval(*row["bootstrap"]), row["p"], row["holm"], *significant(row)]
            for name, table in results[key].items() for n, row in table.items()],
            "Last columns: seeds whose McNemar test has an adjusted p below 0.05.")
    page.section("Checks", "Wanted of the class head of a GAN: at most "
                 f"{100 * evaluate.WITHIN:.0f} points below the CNN, and WAC-GAN-GPT at most "
                 f"{100 * evaluate.REPAIR:.1f} below AC-GAN; of its samples: agreement of "
                 f"{evaluate.AGREEMENT} and diversity of {evaluate.DIVERSITY}, or more (both as "
                 "said under Samples).")
    page.table(["", "", "of each class", "value", "holds"], [
        [METHODS[row["method"]].title, row["what"], row["n"], row["value"],
         "yes" if row["holds"] else "no"] for row in results["checks"]])
    page.section("Calibration", "Expected calibration error of the predicted class, mean over "
                 "seeds.")
    page.table(["", *heads], [
        [METHODS[name].title, *(mean(table[n]) for n in sizes)]
        for name, table in results["calibration_error"].items()])
    page.section("Samples", "Of the generators after the last step. Agreement: share of the "
                 "samples to which the CNN of the most images gives the class asked for. "
                 "Diversity: mean distance of two samples of a class, over that of two real test "
                 "images.")
    for name, found in results["samples"].items():
        page.table([METHODS[name].title, *heads], [
            [what, *(mean(found[what][n]) for n in sizes)] for what in ("agreement", "diversity")])
        page.figure(out / f"samples_{name}.png")
    page.section("Alarms", f"One class above {evaluate.DOMINANT:.0%} of the predictions, less than "
                 f"{evaluate.PREDICTED:.0%} of the classes predicted, or samples of a class less "
                 f"than {evaluate.DIVERSITY:.0%} as diverse as real images.")
    for name, alarms in results["alarms"].items():
        every = [*alarms, *results["samples"].get(name, {}).get("alarms", [])]
        if every:
            more = f"; and {len(every) - 8} more" if len(every) > 8 else ""
            page.note(f"**{METHODS[name].title}**: {'; '.join(every[:8])}{more}")
        else:
            page.text(f"{METHODS[name].title}: none.")
    page.write(out / "report.html")


def cell(row: dict) -> object:
    """Mean with standard deviation, where there is one."""
    return row["mean"] if row["sd"] is None else (row["mean"], row["sd"])


def mean(values: list) -> float | None:
    """Mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def signed(value: float) -> str:
    """A difference in points."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None) -> str:
    """The interval of a difference in points."""
    if low is None or high is None:
        return "\N{EN DASH}"
    return f"{signed(low)} to {signed(high)}"


def significant(row: dict) -> tuple[int, int]:
    """Seeds in which the method is significantly better and worse than the CNN."""
    pairs = list(zip(row["each"], row["mcnemar_holm"], strict=True))
    return (sum(each > 0 and p < 0.05 for each, p in pairs),
            sum(each < 0 and p < 0.05 for each, p in pairs))
