"""The last stages on made-up maps: tables, controls, the note of unreliable runs, figures."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from common import storage
from medical.medxgan import evaluate, maps, measure, noise, report

SIZE, COUNT = 8, 5


def write_case(root, case: str, failed: list[str], seed: int, known: bool = True) -> dict:
    """Leaves what the stages of one case would leave; returns its folders.

    Lesions that are not known: no masks, and nothing measured against them."""
    rng = np.random.default_rng(seed)
    shape = (COUNT, SIZE, SIZE)
    images = rng.uniform(-1, 1, (*shape, 1)).astype(np.float32)
    masks = np.zeros(shape, bool)
    masks[:, 2:4, 2:4] = known
    unknown = () if known else ("iou", "pointing", "mass", "auc")
    arrays = {
        "images": images, "positive": images, "negative": -images, "masks": masks,
        "real_negative": images, "sample_negative": images, "sample_positive": images,
        "path_images": np.stack([images] * 3), "path_scores": np.full((3, COUNT), 0.5),
        "patients": 10 * seed + np.arange(COUNT) // 2,
    }
    for name in noise.MAPS:
        arrays |= {f"noise.{name}.0.area": np.full(2, 0.1),
                   f"noise.{name}.0.05.area": np.full(2, 0.2),
                   f"noise.{name}.0.05.rank": np.array([0.5, 0.7]) + seed / 10}
    for i, name in enumerate(maps.TITLES):
        if not known and name in ("prior", "oracle"):
            continue
        arrays[f"map.{name}"] = rng.random(shape)
        for metric in (*evaluate.METRICS, *(["marker"] if known else [])):
            start = np.nan if metric in unknown else i / 20
            arrays[f"score.{name}.{metric}"] = np.full(COUNT, start) + 0.01 * np.arange(COUNT)
    explained, judge = root / f"explain-{case}", root / f"classifier-{case}"
    for folder in (explained, judge):
        folder.mkdir()
    storage.save_arrays(explained / "explained.safetensors", arrays)
    guards = {name: 1.0 for name in evaluate.GUARDS} | {"edited_flipped": 1.0}
    more = {name: 0.5 for name in ("inversion_mse", "outside_inside", "outside_similarity",
                                   "healthy_error") if known or name == "inversion_mse"}
    storage.save_json(explained / "guards.json", {
        **guards, **more, "failed": failed, "images": COUNT, "called_positive": COUNT})
    storage.save_json(judge / "classifier.json", {
        "validation_accuracy": 0.9, "test_accuracy": 0.9, "validation_margin_deviation": 1.0})
    return {explained.name: explained, judge.name: judge}


@pytest.mark.parametrize("failed", [[], ["diversity"]])
def test_tables_and_report(tmp_path, failed):
    inputs = {}
    for seed, case in enumerate(("true-0", "true-1", "shortcut-0")):
        inputs |= write_case(tmp_path, case, failed if case == "true-1" else [], seed)
    out = tmp_path / "measure"
    out.mkdir()
    measure.measure(ConfigDict({"seed": 0}), inputs, out)
    results = storage.load_json(out / "results.json")
    assert results["reliable"] is (not failed)
    assert results["images"] == 2 * COUNT  # of the two seeds; a control is not a seed
    names = list(maps.TITLES)
    lig, cam = names.index("lig"), names.index("grad_cam")
    row = results["localisation"]["lig"]["iou"]
    assert row["mean"] == pytest.approx(lig / 20 + 0.02)
    assert row["low"] < row["mean"] < row["high"]
    # Paired: the spread over images is the same in all maps and cancels.
    difference = results["differences"]["lig"]["grad_cam"]["iou"]
    for value in difference.values():
        assert value == pytest.approx((lig - cam) / 20)
    assert set(results["controls"]) == {"shortcut-0"}
    assert set(results["by_seed"]) == {"true-0", "true-1"}
    assert results["patients"] == 6
    shaken = results["noise"]["lig"]
    assert set(shaken) == {"0", "0.05"} and set(shaken["0"]) == {"area"}
    assert shaken["0.05"]["rank"]["mean"] == pytest.approx(0.65)

    page = tmp_path / "report"
    page.mkdir()
    inputs["measure"] = out
    report.report(ConfigDict({"source": "chest phantoms"}), inputs, page)
    text = (page / "report.html").read_text()
    assert "not for diagnosis" in text and "rank correlation" in text
    assert ("Unreliable explanations" in text) is bool(failed)
    for name in ("explanations", "explanations_shortcut_0", "interpolation", "samples"):
        assert (page / f"{name}.png").is_file()


def test_images_without_known_lesions(tmp_path):
    inputs = write_case(tmp_path, "true-0", [], 0, known=False)
    inputs |= write_case(tmp_path, "shuffled-0", [], 1, known=False)
    measure.measure(ConfigDict({"seed": 0}), inputs, tmp_path)
    results = storage.load_json(tmp_path / "results.json")
    assert set(results["localisation"]["lig"]) == {"deletion", "insertion", "sparsity"}
    assert "prior" not in results["localisation"]
    assert set(results["differences"]["lig"]) == {"grad_cam", "ig_black"}
    inputs["measure"] = tmp_path
    report.report(ConfigDict({"source": "Images of studies.csv."}), inputs, tmp_path)
    text = re.sub(r'src="data:[^"]*"', "", (tmp_path / "report.html").read_text())
    assert "Images of studies.csv." in text and "phantoms" not in text
    assert "nan" not in text and "IoU" not in text
