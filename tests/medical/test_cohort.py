"""A user's own studies as the images of a run."""

import csv

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common import config as config_lib
from common import storage
from common.config import ConfigError
from medical.data.studies import PatientLeakError, StudyError
from medical.medxgan import cohort, experiment


def settings(table, **changes) -> ConfigDict:
    config = config_lib.load("configs/medxgan.py:folder")
    config.data.table = str(table)
    config.data.update(changes)
    return ConfigDict({"data": config.data, "net": {"size": 8}, "labels": "true", "seed": 0})


def write(folder, patients: int = 20):
    """Two images of each patient; every fourth patient is ill, which is a bright corner."""
    with open(folder / "studies.csv", "w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["file", "patient", "label"])
        for i in range(2 * patients):
            ill = i // 2 % 4 == 0
            image = np.full((16, 12), 40 + i, np.uint8)
            image[:4, :4] = 250 if ill else 0
            Image.fromarray(image).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", f"p{i // 2}", "pneumonia" if ill else "healthy"])
    return folder / "studies.csv"


def test_patients_stay_whole_and_classes_keep_their_order(tmp_path):
    table = write(tmp_path)
    cohort.draw(settings(table, classes=("healthy", "pneumonia")), {}, tmp_path)
    parts = {p: storage.load_arrays(tmp_path / f"{p}.safetensors")[0] for p in cohort.PARTS}
    assert [len(part["labels"]) for part in parts.values()] == [24, 6, 10]
    seen = []
    for part in parts.values():
        images, labels = part["images"], part["labels"]
        assert images.shape[1:] == (8, 8, 1) and not part["masks"].any()
        # The corner says the class; 40 + i, further down, says which image it is.
        np.testing.assert_array_equal(labels == 1, images[:, 1, 2, 0] > 0.5)
        seen.append({round((v + 1) * 127.5 - 40) // 2 for v in images[:, -1, 4, 0]})
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    shuffled = settings(table)
    shuffled.labels = "shuffled"
    cohort.draw(shuffled, {}, tmp_path)
    mixed, _ = storage.load_arrays(tmp_path / "train.safetensors")
    assert (mixed["labels"] != parts["train"]["labels"]).any()


def test_mistakes_are_named(tmp_path):
    table = write(tmp_path)
    with pytest.raises(StudyError, match="line 2: class 'pneumonia' is unknown; known: healthy"):
        cohort.draw(settings(table, classes=("healthy", "flu")), {}, tmp_path)
    with pytest.raises(StudyError, match="column 'file' has the classes .* two are needed"):
        cohort.draw(settings(table, label="file"), {}, tmp_path)
    few = tmp_path / "few"
    few.mkdir()
    with pytest.raises(StudyError, match="images of part 'train' are all"):
        cohort.draw(settings(write(few, 5), fractions=(0.2, 0.4, 0.4)), {}, few)
    config = config_lib.load("configs/medxgan.py")
    config.data.table = str(table)
    with pytest.raises(ConfigError, match="'shortcut' is drawn into phantoms only"):
        experiment.run(config, tmp_path / "run")


def test_parts_of_a_table(tmp_path):
    table = write(tmp_path)
    lines = table.read_text().splitlines()
    parts = [("train", "validation", "test")[i // 2 % 3] for i in range(40)]
    rows = [f"{line},{part}" for line, part in zip(lines[1:], parts, strict=True)]
    table.write_text("\n".join([f"{lines[0]},part", *rows]))
    cohort.draw(settings(table, part="part"), {}, tmp_path)
    found = {p: storage.load_arrays(tmp_path / f"{p}.safetensors")[0] for p in cohort.PARTS}
    assert [len(p["labels"]) for p in found.values()] == [14, 14, 12]
    assert not set(found["train"]["patients"]) & set(found["test"]["patients"])
    table.write_text(table.read_text().replace("1.png,p0,pneumonia,train",
                                               "1.png,p0,pneumonia,test"))
    with pytest.raises(PatientLeakError, match="1 patients are in both 'train' and 'test'"):
        cohort.draw(settings(table, part="part"), {}, tmp_path)
    table.write_text(table.read_text().replace("1.png,p0,pneumonia,test", "1.png,p0,pneumonia,x"))
    with pytest.raises(StudyError, match="line 3: 'part' is 'x'; known: train, validation, test"):
        cohort.draw(settings(table, part="part"), {}, tmp_path)
