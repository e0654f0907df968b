"""Tables of DeepCOVID-Fuse from known probabilities, and their report."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from common import storage
from medical.fusion import measure, methods, report
from medical.statistics import multiclass

N = 240


def guesses(rng, labels, strength, seeds=2):
    """Probabilities that know the label as well as `strength` says."""
    logits = rng.normal(size=(seeds, len(labels), 3)) + strength * np.eye(3)[labels]
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("stages")
    labels = rng.integers(0, 3, N)
    complete = np.arange(N) % 6 != 0
    (root / "cohort").mkdir()
    storage.save_arrays(root / "cohort" / "test.safetensors",
                        {"labels": labels, "complete": complete, "patients": np.arange(N) // 2})
    absence = {"p": 0.001, "strength": 0.3, "share": {"0": 0.1, "1": 0.1, "2": 0.4}}
    storage.save_json(root / "cohort" / "cohort.json", {
        "classes": ["low", "intermediate", "high"], "unreadable": [["a.png", "no"]],
        "counts": {name: [5, 6, 7] for name in ("train", "validation", "test")},
        "absence": {"image": {**absence, "p": 0.4}, "clinical": absence}})
    tables = {
        "image": {"image": 1.0}, "clinical": {"clinical": 0.0},
        "fusion": {"both": 2.5, "image.mean": 0.3, "image.zeros": 0.1, "clinical.mean": 0.3,
                   "clinical.zeros": 0.1, "found.mean": 1.5, "found.zeros": 1.2},
        "fusion_learned": {"both": 2.0, "image": 1.0, "clinical": 0.5, "found": 1.5},
    }
    log = {"head": {"validation_accuracy": [0.5, 0.6], "best_epoch": [1, 2], "epochs": [3, 4]}}
    for name, views in tables.items():
        folder = root / f"train-{name}"
        folder.mkdir()
        found = {view: guesses(rng, labels, strength) for view, strength in views.items()}
        if name == "clinical":
            found["clinical"][:] = [0.2, 0.5, 0.3]  # the same for everyone
        storage.save_arrays(folder / "probabilities.safetensors", found)
        storage.save_json(folder / "log.json", log)
    for name in ("trunk", "explain", "baselines"):
        (root / name).mkdir()
    storage.save_tree(root / "trunk" / "trunk.safetensors", {"a": np.zeros(1)}, {"source": "x"})
    storage.save_arrays(root / "baselines" / "probabilities.safetensors",
                        {"logistic": guesses(rng, labels, 0.7)})
    scores = {"image": {"auc": 0.9, "pointing": 0.5, "iou": 0.2}}
    storage.save_json(root / "explain" / "scores.json", scores)
    maps = {"images": rng.uniform(-1, 1, (3, 8, 8, 1)), "labels": np.arange(3),
            "masks": rng.random((3, 8, 8)) < 0.1}
    maps |= {f"map.{name}": rng.random((3, 8, 8)) for name in ("image", "fusion")}
    storage.save_arrays(root / "explain" / "maps.safetensors", maps)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def results(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("measure")
    config = ConfigDict({"seed": 0, "seeds": (0, 1), "fill": "mean", "resamples": 60})
    measure.measure(config, inputs, out)
    return storage.load_json(out / "results.json"), out


def test_weighted_averages_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    for classes in (2, 3, 5):
        truth, said = rng.integers(0, classes, (2, 200))
        said = np.minimum(said, classes - 2)  # one class is never predicted
        found = multiclass.weighted_averages(truth, said, classes)
        expected = precision_recall_fscore_support(truth, said, average="weighted",
                                                   zero_division=0)
        np.testing.assert_allclose(found, expected[:3], rtol=1e-12)


def test_rows_are_of_the_right_patients(results, inputs):
    rows = {(r["method"], r["view"], r["policy"]): r for r in results[0]["rows"]}
    assert len(rows) == 1 + 1 + 7 + 4 + 1
    test, _ = storage.load_arrays(inputs["cohort"] / "test.safetensors")
    held, _ = storage.load_arrays(inputs["train-fusion"] / "probabilities.safetensors")
    keep = test["complete"]
    areas = [roc_auc_score(test["labels"][keep], p[keep], multi_class="ovo", average="weighted")
             for p in held["both"]]
    row = rows["fusion", "both", ""]
    assert row["patients"] == keep.sum() == 200
    np.testing.assert_allclose(row["auc"]["mean"], np.mean(areas), rtol=1e-9)
    np.testing.assert_allclose(row["auc"]["sd"], np.std(areas, ddof=1), rtol=1e-9)
    for name in ("accuracy", "auc"):
        assert row[name]["low"] < row[name]["mean"] < row[name]["high"]
        # 200 rows, two seeds.
        assert 0.005 < row[name]["high"] - row[name]["low"] < 0.15
    found = rows["fusion", "found", "zeros"]
    assert found["patients"] == N
    expected = np.mean(held["found.zeros"].argmax(-1) == test["labels"])
    np.testing.assert_allclose(found["accuracy"]["mean"], expected)


def test_intervals_are_of_the_mean_over_seeds():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 90)
    good, poor = guesses(rng, labels, 3.0, seeds=1)[0], guesses(rng, labels, 0.0, seeds=1)[0]
    both = np.stack([good, poor], axis=1)
    areas = [multiclass.multiclass_auc(labels, p) for p in (good, poor)]
    right = [np.mean(p.argmax(-1) == labels) for p in (good, poor)]
    assert measure.mean_area(labels, both) == pytest.approx(np.mean(areas)) and areas[0] > areas[1]
    assert measure.mean_accuracy(labels, both) == pytest.approx(np.mean(right))


def test_rows_of_one_patient_are_drawn_together():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 60)
    probabilities = guesses(rng, labels, 1.0, seeds=1)
    # Eight copies of each row are no more evidence than one.
    labels, probabilities = np.repeat(labels, 8), np.repeat(probabilities, 8, axis=1)
    widths = []
    for patients in (np.repeat(np.arange(60), 8), np.arange(480)):
        row = measure.scores(labels, probabilities, np.random.default_rng(0), 200, patients)
        widths.append([row[name]["high"] - row[name]["low"] for name in ("accuracy", "auc")])
    assert np.divide(*widths).min() > 2


def test_tests_and_checks_tell_what_was_planted(results):
    found = results[0]
    pairs = {(tuple(t["first"]), tuple(t["second"])): t for t in found["tests"]}
    strong = pairs[("fusion", "both"), ("image", "image")]
    assert max(min(seed["p"]) for seed in strong["delong"]) < 0.01
    assert max(strong["mcnemar"]) < 0.01
    assert 0 < strong["auc"]["low"] < strong["auc"]["estimate"] < strong["auc"]["high"]
    weak = pairs[("fusion_learned", "image"), ("image", "image")]
    assert weak["auc"]["low"] < 0 < weak["auc"]["high"]
    checks = {row["what"]: row for row in found["checks"]}

    def holds(part):
        (row,) = (row for what, row in checks.items() if what.startswith(part))
        return row["holds"]

    assert holds("fusion: area above")
    assert not holds("fusion, given the image only")  # 0.3 against 1.0
    assert holds("fusion, learned stand-ins, given the image only")
    assert not holds("absence of the clinical") and holds("absence of the image")
    assert not holds("clinical, clinical: seeds that answer one class")
    row = next(r for r in found["rows"] if r["method"] == "clinical")
    assert row["collapsed"] == 2 and row["dominant"] == 1.0
    assert row["auc"]["mean"] == pytest.approx(0.5)


def test_the_papers_table_has_its_five_rows(results):
    table = report.published_rows(results[0]["rows"], "mean")
    assert [row[:2] for row in table] == [
        ["image and clinical", "image and clinical"], ["image", "image"], ["clinical", "clinical"],
        ["image and clinical", "image"], ["image and clinical", "clinical"]]
    low, high = (float(end) for end in table[0][3].split(" to "))
    assert low < table[0][2] < high and table[0][2] > table[3][2]
    zeros = report.published_rows(results[0]["rows"], "zeros")
    assert zeros[:3] == table[:3] and zeros[3] != table[3]
    without = [row for row in results[0]["rows"] if row["method"] != "clinical"]
    assert len(report.published_rows(without, "mean")) == 4


def test_the_report_says_it(results, inputs, tmp_path):
    stages = {"measure": results[1], "explain": inputs["explain"]}
    config = ConfigDict({"source": "support2", "methods": ("image", "fusion")})
    report.report(config, stages, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in ("not for diagnosis", "SUPPORT2", "Absence is informative", "Collapsed",
                 "1 images could not be read", "Several rows of one patient",
                 "logistic regression on the variables", "As in the paper"):
        assert text in page
    assert {p.name for p in tmp_path.iterdir()} == {
        "report.html", "accuracy.png", "auc.png", "maps.png"}


def test_baselines_learn_and_are_named():
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    table = rng.normal(size=(150, 4)) + 2 * np.eye(4)[labels]
    for name in methods.BASELINES:
        model = methods.fit_baseline(name, table[:100], labels[:100], 0)
        assert np.mean(model.predict(table[100:]) == labels[100:]) > 0.6, name
        assert model.predict_proba(table).shape == (150, 3)
    with pytest.raises(ValueError, match="unknown baseline 'svm'"):
        methods.fit_baseline("svm", table, labels, 0)
