"""The low-data protocol: nested subsets, disjoint parts, a user's table, named mistakes."""

import csv

import numpy as np
import pytest
from PIL import Image

from common import datasets
from medical.acgan import data
from medical.acgan.data import TooFewImagesError, Trial

LABELS = np.repeat(np.arange(3), 8)[np.random.default_rng(0).permutation(24)]


def test_smaller_subsets_lie_in_larger_ones():
    for seed in range(3):
        small, large = (data.subset(LABELS, n, 3, seed) for n in (2, 5))
        assert set(small) < set(large)
        np.testing.assert_array_equal(np.bincount(LABELS[large]), [5, 5, 5])
    other = data.subset(LABELS, 2, 3, 7)
    assert set(other) != set(data.subset(LABELS, 2, 3, 0))
    np.testing.assert_array_equal(other, data.subset(LABELS, 2, 3, 7))


def test_tables_lead_to_each_trials_own_images():
    trials = [Trial(1, 0), Trial(4, 0), Trial(4, 1)]
    used, places, counts = data.tables(LABELS, trials, 3)
    assert counts.tolist() == [3, 12, 12] and places.shape == (3, 12)
    for trial, row, count in zip(trials, places, counts, strict=True):
        np.testing.assert_array_equal(
            used[row[:count]], data.subset(LABELS, trial.per_class, 3, trial.seed))
    assert (places[0, 3:] == places[0, 0]).all()  # padding


def numbered(per_class: int) -> datasets.Split:
    """Images of 10 classes of which no two are equal."""
    count = 10 * per_class
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return datasets.Split(images, np.arange(count, dtype=np.int32) % 10)


def ids(part: data.Part) -> set[int]:
    corner = part.images[:, 0, :2, 0].astype(int)
    return set(corner[:, 0] + 256 * corner[:, 1])


def test_parts_share_no_image(monkeypatch):
    monkeypatch.setattr(datasets, "mnist", lambda: numbered(40))
    found = data.load("mnist", 5, 0)
    assert [len(part.labels) for part in found[:3]] == [10 * 27, 50, 80]
    assert not ids(found.pool) & ids(found.validation) | ids(found.test) & ids(found.validation)
    assert len(ids(found.pool) | ids(found.validation) | ids(found.test)) == 400
    assert found.pool.images.shape[1:] == (28, 28, 1) and not found.medical


def test_fashion_keeps_its_official_test_set(monkeypatch):
    train, test = numbered(40), numbered(12)
    monkeypatch.setattr(datasets, "fashion_mnist", lambda: (train, test))
    found = data.load("fashion", 5, 0)
    np.testing.assert_array_equal(found.test.images[..., 0], test.images)
    assert len(found.pool.labels) == 350
    few = data.load("fashion", 5, 3)
    np.testing.assert_array_equal(np.bincount(few.test.labels), 3)


def test_too_few_images_are_named(monkeypatch):
    monkeypatch.setattr(datasets, "mnist", lambda: numbered(40))
    with pytest.raises(TooFewImagesError, match="class 0 has 8 images for training, asked for 9"):
        data.subset(LABELS, 9, 3, 0)
    with pytest.raises(ValueError, match="0 training images of each class"):
        data.subset(LABELS, 0, 3, 0)
    with pytest.raises(TooFewImagesError, match="class 0 has 32 images for validation, .* 33"):
        data.load("mnist", 33, 0)
    with pytest.raises(ValueError, match="test_per_class is 1"):
        data.load("mnist", 5, 1)
    with pytest.raises(ValueError, match="source 'cifar'; known: fashion, mnist"):
        data.load("cifar", 5, 0)
    with pytest.raises(ValueError, match="28 pixels, asked for 32"):
        data.load("mnist", 5, 0, size=32)


def write(folder, patients: int = 15):
    """Two images of each patient; every other patient is ill; the last file is no image."""
    with open(folder / "table.csv", "w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["file", "patient", "label"])
        for i in range(2 * patients):
            image = np.full((28, 28), 5 * i + 50, np.uint8)
            image[0, 0] = 0
            Image.fromarray(image).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", f"p{i // 2}", "ill" if i // 2 % 2 == 0 else "well"])
        (folder / "broken.png").write_bytes(b"no image")
        table.writerow(["broken.png", "p0", "ill"])
    return str(folder / "table.csv")


def test_patients_of_a_table_stay_in_one_part(tmp_path):
    found = data.load(write(tmp_path), 100, 100)
    assert found.medical and found.classes == ("ill", "well")
    assert [file for file, _ in found.bad] == ["broken.png"]
    seen = []
    for part in found[:3]:
        number = np.rint(((part.images[:, 9, 9, 0] + 1) * 127.5 - 50) / 5).astype(int)
        np.testing.assert_array_equal(part.labels == 0, number // 2 % 2 == 0)
        seen.append(set(number // 2))
    assert [len(patients) for patients in seen] == [9, 3, 3]
    assert len(seen[0] | seen[1] | seen[2]) == 15
    with pytest.raises(TooFewImagesError, match="asked for 200"):
        data.tables(found.pool.labels, [Trial(200, 0)], 2)


def test_a_class_that_no_patient_of_a_part_has(tmp_path):
    with pytest.raises(TooFewImagesError, match="class .* has 0 images in part 'validation'"):
        data.load(write(tmp_path, 5), 10, 10)
