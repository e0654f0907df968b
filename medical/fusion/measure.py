"""Stage that turns probabilities into the tables of the paper, with intervals and paired tests."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common import storage
from medical.fusion import alarms, methods
from medical.statistics import bootstrap, calibration, delong, mcnemar, multiclass

COMPARISONS = (
    (("fusion", "both"), ("image", "image")),
    (("fusion", "both"), ("clinical", "clinical")),
    (("fusion_dropout", "both"), ("image", "image")),
    (("fusion_dropout", "both"), ("clinical", "clinical")),
    (("fusion_dropout", "image"), ("image", "image")),
    (("fusion_dropout", "clinical"), ("clinical", "clinical")),
    (("fusion_learned", "image"), ("image", "image")),
    (("fusion_learned", "clinical"), ("clinical", "clinical")),
)
"""(method, what it is given) first and second."""
MARGIN = 0.02  # that a fusion network with one modality may lose to the network of that modality


def measure(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: ``results.json``."""
    random = np.random.default_rng(config.seed)
    test, _ = storage.load_arrays(inputs["cohort"] / "test.safetensors")
    cohort = storage.load_json(inputs["cohort"] / "cohort.json")
    found = read(inputs, config.fill)
    rows = []
    for (name, view, policy), probabilities in found.items():
        keep = kept(test, view)
        rows.append({"method": name, "view": view, "policy": policy, "patients": int(keep.sum()),
                     **scores(test["labels"][keep], probabilities[:, keep], random,
                              config.resamples, test["patients"][keep])})
    table = {(row["method"], row["view"], row["policy"]): row for row in rows}
    chosen = {(n, v): p for (n, v, p) in found if p in ("", config.fill)}
    tests = []
    for first, second in COMPARISONS:
        if first in chosen and second in chosen:
            keep = kept(test, "both")
            a, b = (found[*key, chosen[key]][:, keep] for key in (first, second))
            tests.append({"first": list(first), "second": list(second),
                          **compare(test["labels"][keep], a, b, random, config.resamples,
                                    test["patients"][keep])})
    main = {key: table[*key, policy] for key, policy in chosen.items()}
    storage.save_json(out / "results.json", {
        "classes": cohort["classes"], "counts": cohort["counts"], "absence": cohort["absence"],
        "unreadable": len(cohort["unreadable"]), "repeated": repeated(test["patients"]),
        "seeds": list(config.seeds), "fill": config.fill,
        "rows": rows, "tests": tests, "checks": checks(main, tests, cohort["absence"]),
        "majority": float(np.bincount(test["labels"]).max() / len(test["labels"])),
        "training": {name.removeprefix("train-"): storage.load_json(path / "log.json")
                     for name, path in inputs.items() if name.startswith("train-")},
        "maps": storage.load_json(inputs["explain"] / "scores.json"),
        "trunk": storage.load_arrays(inputs["trunk"] / "trunk.safetensors")[1],
    })


def read(inputs: dict[str, Path], fill: str) -> dict[tuple[str, str, str], np.ndarray]:
    """(method, view, policy of the absent modality) to probabilities ``[seeds, n, classes]``."""
    found: dict[tuple[str, str, str], np.ndarray] = {}
    for stage, path in inputs.items():
        if stage == "baselines":
            arrays, _ = storage.load_arrays(path / "probabilities.safetensors")
            found |= {(name, "clinical", ""): values for name, values in arrays.items()}
        elif stage.startswith("train-"):
            arrays, _ = storage.load_arrays(path / "probabilities.safetensors")
            for key, values in arrays.items():
                view, _, policy = key.partition(".")
                found[stage.removeprefix("train-"), view, policy] = values
    return found


def repeated(patients: np.ndarray) -> int:
    """Rows ``[n]`` beyond the first of their patient."""
    return len(patients) - len(np.unique(patients))


def kept(test: dict[str, np.ndarray], view: str) -> np.ndarray:
    """Test patients of a view: whoever has both modalities; of "found" everyone."""
    return np.ones(len(test["labels"]), bool) if view == "found" else test["complete"]


def scores(
    labels: np.ndarray, probabilities: np.ndarray, random: np.random.Generator, resamples: int,
    patients: np.ndarray,
) -> dict[str, Any]:
    """Scores of ``[seeds, n, classes]``: means and deviations over seeds, and the intervals of the
    means of accuracy and area by a bootstrap of the patients ``[n]``."""
    classes = probabilities.shape[-1]
    each: dict[str, list[float]] = {name: [] for name in (
        "accuracy", "auc", "precision", "recall", "f1", "calibration_error")}
    alarmed = []
    for values in probabilities:
        predicted = values.argmax(axis=-1)
        each["accuracy"].append(float(np.mean(predicted == labels)))
        each["auc"].append(multiclass.multiclass_auc(labels, values))
        averages = multiclass.weighted_averages(labels, predicted, classes)._asdict()
        for name, value in averages.items():
            each[name].append(value)
        top = np.clip(values.max(axis=-1), 0, 1)
        each["calibration_error"].append(
            calibration.reliability((predicted == labels).astype(int), top).error)
        alarmed.append(alarms.collapse(labels, predicted)._asdict())
    deviations = {name: float(np.std(v, ddof=1)) if len(v) > 1 else None
                  for name, v in each.items()}
    found = {name: {"mean": float(np.mean(v)), "sd": deviations[name], "each": v}
             for name, v in each.items()}
    by_patient = np.moveaxis(probabilities, 0, 1)
    groups = patients if repeated(patients) else None
    for name, statistic in (("accuracy", mean_accuracy), ("auc", mean_area)):
        drawn = bootstrap.interval(statistic, labels, by_patient, random, resamples, groups=groups)
        found[name] |= {"low": drawn.low, "high": drawn.high}
    return {**found, "collapsed": sum(a["collapsed"] for a in alarmed),
            "dominant": max(a["share"] for a in alarmed)}


def mean_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Accuracy, mean over the seeds of ``[n, seeds, classes]``."""
    return float(np.mean(probabilities.argmax(axis=-1) == labels[:, None]))


def mean_area(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area, one against one, mean over the seeds of ``[n, seeds, classes]``."""
    return float(np.mean([multiclass.multiclass_auc(labels, probabilities[:, i])
                          for i in range(probabilities.shape[1])]))


def compare(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, random: np.random.Generator,
    resamples: int, patients: np.ndarray,
) -> dict[str, Any]:
    """Paired tests of two models ``[seeds, n, classes]``, for each seed; bootstrap of the means.

    DeLong's test is of each class against the rest, corrected by Holm over the classes. It and
    McNemar's take the rows as independent; the bootstrap draws patients ``[n]``.
    """
    of_classes, of_accuracy = [], []
    for a, b in zip(first, second, strict=True):
        found, holm = delong.per_class(labels, a, b)
        of_classes.append({"difference": [t.difference for t in found], "p": holm.tolist()})
        of_accuracy.append(mcnemar.compare(a.argmax(-1) == labels, b.argmax(-1) == labels).p)
    area = bootstrap.paired(
        mean_area, labels, np.moveaxis(first, 0, 1), np.moveaxis(second, 0, 1), random, resamples,
        groups=patients if repeated(patients) else None)
    return {"delong": of_classes, "mcnemar": of_accuracy, "auc": area._asdict()}


def checks(main: dict, tests: list[dict], absence: dict) -> list[dict[str, Any]]:
    """What is expected of fusion, whichever way it falls.

    Args:
      main: (method, view) to its row.
      tests: see `compare`.
      absence: modality to the test of its absence against the level.
    """
    found = []

    def add(what: str, value: Any, holds: bool) -> None:
        found.append({"what": what, "value": value, "holds": bool(holds)})

    for name in ("fusion", "fusion_dropout", "fusion_learned"):
        singles = [main[v, v]["auc"]["mean"] for v in ("image", "clinical") if (v, v) in main]
        if (name, "both") not in main or not singles:
            continue
        title = methods.METHODS[name].title
        gain = main[name, "both"]["auc"]["mean"] - max(singles)
        add(f"{title}: area above that of the better single modality", gain, gain > 0)
        for view in ("image", "clinical"):
            if (view, view) in main:
                loss = main[name, view]["accuracy"]["mean"] - main[view, view]["accuracy"]["mean"]
                add(f"{title}, given the {view} only: accuracy less that of the {view} network "
                    f"(wanted: at least \N{MINUS SIGN}{100 * MARGIN:.0f} points)", loss,
                    loss >= -MARGIN - 1e-9)
    for test in tests:
        if test["first"] == ["fusion", "both"]:
            p = max(min(seed["p"]) for seed in test["delong"])
            add(f"fusion against {test['second'][0]} only: least p of DeLong's tests, in the "
                "worst seed (wanted: below 0.05)", p, p < 0.05)
    for (name, view), row in main.items():
        if row["collapsed"]:
            add(f"{name}, {view}: seeds that answer one class for more than 95 % of the patients",
                row["collapsed"], False)
    for kind, test in absence.items():
        add(f"absence of the {kind} does not depend on the level (p above 0.05)", test["p"],
            test["p"] > 0.05)
    return found
