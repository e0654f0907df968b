"""Splits and sizes of image sets; a folder and an .npz file; mistakes."""

import numpy as np
import pytest
from PIL import Image

from common import datasets
from ign import data


@pytest.fixture
def digits(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 20).astype(np.int32)
    split = datasets.Split(rng.integers(0, 256, (200, 28, 28)).astype(np.uint8), labels)
    monkeypatch.setattr(datasets, "mnist", lambda: split)
    return split


def test_split_is_stratified_disjoint_and_complete(digits):
    found = data.load("mnist")
    assert found.train.shape == (160, 28, 28, 1) and found.test.shape == (40, 28, 28, 1)
    assert (np.bincount(found.train_labels) == 16).all()
    assert (np.bincount(found.test_labels) == 4).all()
    everything = np.concatenate([found.train, found.test])[..., 0].reshape(200, -1)
    order = np.lexsort(everything.T), np.lexsort(digits.images.reshape(200, -1).T)
    np.testing.assert_array_equal(everything[order[0]], digits.images.reshape(200, -1)[order[1]])
    labels = np.concatenate([found.train_labels, found.test_labels])
    np.testing.assert_array_equal(labels[order[0]], digits.labels[order[1]])
    assert len(set(found.train_labels[:16].tolist())) > 3, "shuffled"


def test_sizes_channels_and_limit(digits):
    found = data.load("mnist", size=32, channels=3, limit=7)
    assert found.train.shape == (7, 32, 32, 3) and len(found.train_labels) == 7
    assert (found.train[:, :2] == 0).all() and (found.train[..., 0] == found.train[..., 2]).all()
    assert data.load("mnist", size=64).test.shape == (40, 64, 64, 1)


def test_people_of_the_test_faces_are_not_trained_on(monkeypatch):
    person = np.repeat(np.arange(40, dtype=np.int32), 10)
    faces = np.broadcast_to(person.astype(np.uint8)[:, None, None], (400, 64, 64))
    monkeypatch.setattr(datasets, "olivetti", lambda: datasets.Faces(faces, person))
    photos = np.full((999, 218, 178, 3), 200, np.uint8)
    monkeypatch.setattr(datasets, "celeba_photos", lambda: photos)
    found = data.load("faces", 64)
    assert len(found.train) + len(found.test) == 1399 and found.train_labels is None
    who = [set(np.unique(part[..., 32, 32, 0]).tolist()) - {200} for part in found[:2]]
    assert not who[0] & who[1] and len(who[0] | who[1]) == 40
    assert data.load("celeba", 32, 3).train.shape == (800, 32, 32, 3)


def test_folder_and_npz(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    for index, image in enumerate(images):
        folder = tmp_path / "images" / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    found = data.load(str(tmp_path / "images"), size=8, channels=3)
    assert found.class_names == ("cat", "dog") and len(found.train) == 16
    assert {image.tobytes() for image in images} == {
        image.tobytes() for part in found[:2] for image in part}
    np.savez(tmp_path / "a.npz", image=images[..., 0], label=np.repeat(["b", "a"], 10))
    found = data.load(str(tmp_path / "a.npz"), size=8)
    assert found.class_names == ("a", "b") and found.test.shape == (4, 8, 8, 1)
    np.savez(tmp_path / "plain.npz", image=images)
    assert data.load(str(tmp_path / "plain.npz"), size=8, channels=3).test_labels is None
    np.savez(tmp_path / "bad.npz", image=images / 255)
    with pytest.raises(ValueError, match=r"bad.npz: 'image' must be uint8 .* got float64"):
        data.load(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "named.npz", pictures=images)
    with pytest.raises(ValueError, match="no array 'image', it has"):
        data.load(str(tmp_path / "named.npz"))
    with pytest.raises(FileNotFoundError, match="'nothing' is neither"):
        data.load("nothing")
    np.savez(tmp_path / "few.npz", image=images[:3])
    with pytest.raises(ValueError, match="3 images are too few"):
        data.load(str(tmp_path / "few.npz"), size=8, channels=3)
