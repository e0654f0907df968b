"""Data sets: order and orientation of the real ones; errors of the readers for users' files."""

import gzip
import json
import struct

import numpy as np
import pytest
from PIL import Image

from common import datasets, registry


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def symmetry(images: np.ndarray, axis: int) -> float:
    """Correlation of the mean image with its mirror image."""
    mean = images.mean(0)
    return float(np.corrcoef(mean.ravel(), np.flip(mean, axis).ravel())[0, 1])


def test_olivetti_is_in_order_of_person_and_upright():
    images, person = datasets.olivetti()
    assert images.shape == (400, 64, 64) and images.dtype == np.uint8
    assert person.dtype == np.int32 and (np.bincount(person) == 10).all()
    assert (np.diff(person) >= 0).all()
    # Accuracy of the nearest neighbour in pixels: 0.945; labels shifted by one image give 0.72.
    flat = images.reshape(400, -1).astype(np.float64)
    square = (flat**2).sum(1)
    distance = square[:, None] + square[None] - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    assert (person[distance.argmin(1)] == person).mean() > 0.93
    # Faces are symmetric from left to right only: neither transposed nor scrambled.
    assert symmetry(images, 1) > 0.9 > 0.6 > symmetry(images, 0)
    # Foreheads are brighter than mouths and chins: not upside down.
    assert images[:, 8:16, 20:44].mean() > images[:, 44:56, 20:44].mean()
    assert images.std(axis=(1, 2)).min() > 10 and images.flags.c_contiguous


def test_celeba_photos_are_upright_colour_photographs():
    images = datasets.celeba_photos()
    assert images.shape == (999, 218, 178, 3) and images.dtype == np.uint8
    # The eyes of the aligned version are darker than the cheeks below them, and it is symmetric.
    assert symmetry(images[..., 1], 1) > 0.95 > symmetry(images[..., 1], 0)
    eyes, cheeks = (
        images[:, 107:115, [*range(62, 76), *range(102, 116)]],
        images[:, 125:140, 62:116],
    )
    assert eyes.mean() < cheeks.mean()
    assert cheeks[..., 0].mean() > cheeks[..., 2].mean() + 20  # skin: more red than blue, so RGB


def write_idx(path, array: np.ndarray, compress: bool = True) -> None:
    data = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)


def test_fashion_mnist_reads_its_four_files(tmp_path, monkeypatch):
    parts = {}
    for seed, part in enumerate(("train", "t10k")):
        parts[part] = noise(28, 28, seed).transpose(2, 0, 1), np.array([7, 0, 255], np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", parts[part][0])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", parts[part][1])
    monkeypatch.setattr(
        registry, "fetch", lambda name: tmp_path if name == "fashion-mnist" else None
    )
    for split, part in zip(datasets.fashion_mnist(), ("train", "t10k"), strict=True):
        np.testing.assert_array_equal(split.images, parts[part][0])
        np.testing.assert_array_equal(split.labels, parts[part][1])
        assert split.labels.dtype == np.int32


def test_mnist_undoes_the_division_by_255(tmp_path, monkeypatch):
    grey = np.random.default_rng(0).integers(0, 256, (10, 2, 28, 28), np.uint8)
    for digit in range(10):
        values = [round(float(v) / 255, 3) for v in grey[digit].ravel()]
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": values}))
    monkeypatch.setattr(registry, "fetch", lambda name: tmp_path if name == "mnist" else None)
    split = datasets.mnist()
    np.testing.assert_array_equal(split.images, grey.reshape(20, 28, 28))
    np.testing.assert_array_equal(split.labels, np.repeat(np.arange(10), 2))
    (tmp_path / "3.json").write_text(json.dumps({"data": values[:-1]}))
    with pytest.raises(ValueError, match="3.json: 1567 values"):
        datasets.mnist()


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files(tmp_path, compress):
    path, array = tmp_path / "a.idx", noise(3, 5)
    write_idx(path, array, compress)
    np.testing.assert_array_equal(datasets.read_idx(path), array)
    if compress:
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(ValueError, match="a.idx: damaged gzip"):
            datasets.read_idx(path)
    else:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(
            ValueError, match=r"a.idx: 44 bytes of values, but \(3, 5, 3\) needs 45"
        ):
            datasets.read_idx(path)
        path.write_bytes(b"PK\x03\x04")
        with pytest.raises(ValueError, match="not an idx file"):
            datasets.read_idx(path)


def test_image_folder_with_classes(tmp_path):
    expected = []
    for label, name in enumerate(("ann", "bob")):
        (tmp_path / name).mkdir()
        for seed in range(2):
            image = noise(6, 8, 10 * label + seed)
            Image.fromarray(image).save(tmp_path / name / f"{seed}.PNG", format="png")
            expected.append(image)
    (tmp_path / "ann" / "notes.txt").write_text("not an image")
    found = datasets.image_folder(tmp_path)
    np.testing.assert_array_equal(found.images, expected)
    assert found.labels.tolist() == [0, 0, 1, 1] and found.class_names == ("ann", "bob")
    assert found.files == ("ann/0.PNG", "ann/1.PNG", "bob/0.PNG", "bob/1.PNG") and found.bad == ()


def test_image_folder_reports_and_counts_bad_files(tmp_path, caplog):
    Image.fromarray(noise(6, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "c.jpg").write_text("<html>")
    Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(tmp_path / "d.png")
    found = datasets.image_folder(tmp_path)
    assert found.files == ("a.png",) and found.class_names == ("",)
    assert [name for name, _ in found.bad] == ["b.png", "c.jpg", "d.png"]
    assert "3 of 4 image files left out" in caplog.text and "b.png" in caplog.text
    assert "more than 8 bits" in found.bad[2][1]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="none of 3 image files"):
        datasets.image_folder(tmp_path)


def test_image_folder_resizes_after_a_central_crop(tmp_path):
    # Left and right quarters are black: a central square crop of [8, 16] must not contain them.
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(noise(5, 5)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png: \(5, 5\) pixels, but .*a.png has \(8, 16\)"):
        datasets.image_folder(tmp_path)
    found = datasets.image_folder(tmp_path, size=(4, 4), channels=1)
    assert found.images.shape == (2, 4, 4, 1) and (found.images[0] == 200).all()


def test_image_folder_needs_a_folder_with_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image files"):
        datasets.image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        datasets.image_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="channels is 4"):
        datasets.image_folder(tmp_path, channels=4)


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"images": noise(4, 4), "labels": np.arange(4)}
    np.savez(path, **arrays)
    found = datasets.npz(path)
    assert set(found) == {"images", "labels"}
    np.testing.assert_array_equal(found["images"], arrays["images"])


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": np.zeros(3), "y": np.zeros(4)}, "a.npz: array 'y' has 4 rows, but 'x' has 3"),
        ({"x": np.zeros(3), "y": np.float32(1)}, "array 'y' is a scalar"),
        ({"x": np.array([{}, None])}, "array 'x': Object arrays cannot be loaded"),
        ({}, "no arrays"),
    ],
)
def test_npz_refuses(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.npz(path)


def test_npz_refuses_other_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="a.npz: "):
        datasets.npz(path)
    np.save(tmp_path / "b.npy", np.arange(3))
    with pytest.raises(ValueError, match="b.npy: a single array, not an npz file"):
        datasets.npz(tmp_path / "b.npy")
    with pytest.raises(FileNotFoundError):
        datasets.npz(tmp_path / "absent.npz")
