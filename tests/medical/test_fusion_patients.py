"""Patients of DeepCOVID-Fuse: a user's own table, and SUPPORT2 with phantoms."""

import csv

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common import config as config_lib
from common import storage
from common.config import ConfigError
from medical.data.studies import PatientLeakError, StudyError
from medical.data.variables import VariableError
from medical.fusion import cohort, experiment, table

LEVELS = ("low", "intermediate", "high")


def write(folder, rows: int = 60, change=None):
    """One image of each patient; every tenth has none, every seventh no variables."""
    lines = []
    for i in range(rows):
        image = np.full((12, 10), 40 + 3 * i, np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
        line = {"file": "" if i % 10 == 3 else f"{i}.png", "patient": f"p{i}",
                "level": LEVELS[i % 3], "age": str(40 + i), "sex": "fm"[i % 2],
                "part": ("train", "validation", "test")[i // 20]}
        if i % 7 == 5 and i % 10 != 3:
            line |= {"age": "", "sex": "NA"}
        lines.append(line)
    if change:
        change(lines)
    with open(folder / "patients.csv", "w", newline="") as opened:
        sheet = csv.DictWriter(opened, lines[0])
        sheet.writeheader()
        sheet.writerows(lines)
    return folder / "patients.csv"


def settings(path="", **changes) -> ConfigDict:
    config = config_lib.load("configs/deepcovid_fuse.py:smoke")
    config.data.table = str(path)
    config.data.update(changes)
    config.net.size = 8
    return config


def test_a_table_is_read(tmp_path):
    found = table.read(write(tmp_path), 8, LEVELS, part="part")
    assert found.images.shape == (60, 8, 8, 1) and found.image.sum() == 54
    np.testing.assert_allclose(found.images[1, 4, 4, 0], 43 / 127.5 - 1, atol=1e-5)
    assert (found.images[3] == -1).all()
    assert list(found.columns) == ["age", "sex"]
    assert found.columns["age"][1] == 41 and np.isnan(found.columns["age"][5])
    assert found.columns["sex"].tolist()[4:6] == ["f", None]
    assert found.clinical.tolist() == [i % 7 != 5 or i == 33 for i in range(60)]
    assert found.labels.tolist() == [i % 3 for i in range(60)]


def test_parts_of_a_table(tmp_path):
    cohort.draw(settings(write(tmp_path), part="part"), {}, tmp_path)
    parts = {name: storage.load_arrays(tmp_path / f"{name}.safetensors")[0]
             for name in cohort.PARTS}
    assert [len(p["labels"]) for p in parts.values()] == [20, 20, 20]
    train = parts["train"]
    assert train["complete"].tolist() == (train["has_image"] & train["has_clinical"]).tolist()
    # Standardised with the training patients who have variables.
    ages = [40 + i for i in range(20) if i % 7 != 5]
    scaled = (40 - np.mean(ages)) / np.std(ages)
    np.testing.assert_allclose(train["clinical"][0, 0], scaled, rtol=1e-5)
    record = storage.load_json(tmp_path / "cohort.json")
    assert record["counts"]["test"] == [6, 7, 7] and record["unreadable"] == []
    assert not (tmp_path / "pretrain.safetensors").exists()


def test_patients_are_split_where_the_table_has_no_parts(tmp_path):
    chosen = settings(write(tmp_path), fractions=(0.6, 0.2, 0.2), names=("age",))
    parts, columns, _ = cohort.own(chosen, np.random.default_rng(0))
    assert [len(p["labels"]) for p in parts.values()] == [36, 12, 12]
    assert list(columns["test"]) == ["age"]


def broken(row, **cells):
    def change(lines):
        lines[row].update(cells)
    return change


def test_an_unreadable_image_is_counted(tmp_path, capsys):
    write(tmp_path, change=broken(6, file="none.png"))
    found = table.read(tmp_path / "patients.csv", 8, LEVELS)
    assert not found.image[6] and found.bad[0][0] == "none.png"


@pytest.mark.parametrize(("change", "options", "error", "message"), [
    (broken(1, level="grave"), {}, StudyError, "line 3: 'level' is 'grave'; known: low"),
    (broken(1, level="nan"), {}, StudyError, "line 3: column 'level' is 'nan'"),
    (broken(2, patient=""), {}, StudyError, "line 4: column 'patient' is ''"),
    (broken(5, file=""), {"names": ("age", "sex")}, StudyError,
     "line 7: neither an image nor clinical variables"),
    (broken(5, file="no.png"), {"names": ("age", "sex")}, StudyError,
     "unreadable image: .*no.png"),
    (None, {"names": ("age", "weight")}, StudyError, "no column 'weight', it has file"),
    (broken(1, part="exam"), {"part": "part"}, StudyError, "'part' is 'exam'; known: train"),
    (broken(45, patient="p1"), {"part": "part"}, PatientLeakError, "1 patients are in both"),
    (broken(45, patient="p1 "), {"part": "part"}, PatientLeakError, "1 patients are in both"),
    (broken(45, file="2.png"), {}, StudyError,
     "line 47: file '2.png' belongs to the patients 'p2' and 'p45'"),
    (lambda lines: [line.update(age="", sex="", file=f"{line['patient'][1:]}.png")
                    for line in lines[41::3]], {"part": "part"},
     StudyError, "nobody with image and variables of part 'test' has level 'high'"),
    (broken(45, sex="x"), {"part": "part"}, VariableError, "'sex': category 'x' does not occur"),
    (lambda lines: [line.update(level="low") for line in lines[40:]], {"part": "part"},
     StudyError, "nobody of part 'test' has level 'intermediate'"),
])
def test_bad_tables_are_refused(change, options, error, message, tmp_path):
    path = write(tmp_path, change=change)
    with pytest.raises(error, match=message):
        cohort.draw(settings(path, **{"unseen": "error", **options}), {}, tmp_path)


def test_support2_gets_phantoms_by_level(tmp_path):
    config = settings()
    config.net.size = 16
    config.counts.update(train=300, validation=30, test=30)
    config.absent.update(clinical=(0.0, 0.2, 0.6), image=(0.1, 0.1, 0.1))
    cohort.draw(config, {}, tmp_path)
    train, _ = storage.load_arrays(tmp_path / "train.safetensors")
    assert train["images"].shape == (300, 16, 16, 1) and train["complete"].all()
    covered = [train["masks"][train["labels"] == c].mean() for c in range(3)]
    # Binomial with shares 0.15, 0.4, 0.65: 4.3 times as many opacities (2.1 times as many
    # patients with any) at the highest level as at the lowest.
    assert covered[0] < covered[1] < covered[2] and covered[2] > 2.8 * covered[0]
    lacking = [1 - train["has_clinical"][train["labels"] == c].mean() for c in range(3)]
    np.testing.assert_allclose(lacking, [0, 0.2, 0.6], atol=0.15)
    assert (train["has_image"] | train["has_clinical"]).all()
    record = storage.load_json(tmp_path / "cohort.json")
    assert record["absence"]["clinical"]["p"] < 0.01 < record["absence"]["image"]["p"]
    with pytest.raises(ValueError, match="99999 patients wanted, support2 has 9105"):
        config.counts.update(train=99999 - 60)
        cohort.draw(config, {}, tmp_path)


def test_breast_cancer_patients_get_phantoms(tmp_path):
    config = config_lib.load("configs/deepcovid_fuse.py:breast_cancer")
    config.net.size = 16
    config.pretrain.count = 4
    config.data.names = ("mean texture", "mean smoothness")
    cohort.draw(config, {}, tmp_path)
    parts = {name: storage.load_arrays(tmp_path / f"{name}.safetensors")[0]
             for name in cohort.PARTS}
    assert sum(len(part["labels"]) for part in parts.values()) == 569
    assert len(np.unique(np.concatenate([p["patients"] for p in parts.values()]))) == 569
    train = parts["train"]
    assert train["clinical"].shape == (275, 2)
    covered = [train["masks"][train["labels"] == c].any(axis=(1, 2)).mean() for c in (0, 1)]
    np.testing.assert_allclose(covered, [1 - 0.85**4, 1 - 0.55**4], atol=0.1)  # of four at most
    record = storage.load_json(tmp_path / "cohort.json")
    assert [v["name"] for v in record["variables"]] == ["mean texture", "mean smoothness"]


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"data": {"names": ("mean texture", "age")}}, VariableError,
     "no variable 'age' in breast_cancer"),
    ({"data": {"classes": LEVELS}}, ValueError, r"config\.data\.classes: .* are \('benign', 'mal"),
    # names in another order would be given to the wrong patients
    ({"data": {"classes": ("malignant", "benign")}}, ValueError, r"config\.data\.classes"),
    ({"opacities": {"share": (0.1, 0.2, 0.3)}}, ValueError,
     r"config\.opacities\.share: 3 numbers for the 2 levels"),
    ({"data": {"source": "adni"}}, ValueError, r"config\.data\.source: 'adni'; known: support2"),
])
def test_tables_of_real_patients_are_checked(changes, error, message, tmp_path):
    config = config_lib.load("configs/deepcovid_fuse.py:breast_cancer")
    config.update(changes)
    with pytest.raises(error, match=message):
        cohort.draw(config, {}, tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"methods": ("image", "fuse")}, r"config\.methods: 'fuse' is unknown"),
    ({"methods": ("clinical",)}, "at least one network with an image"),
    ({"baselines": ("svm",)}, r"config\.baselines: 'svm' is unknown"),
    ({"seeds": (1, 1)}, r"config\.seeds"),
    ({"data": {"source": "adni"}}, r"config\.data\.source: 'adni' is unknown"),
    ({"fill": "learned"}, r"config\.fill: 'learned'; known: mean, zeros"),
])
def test_settings_of_no_use_are_refused(changes, message, tmp_path):
    config = settings()
    config.update(changes)
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path)
