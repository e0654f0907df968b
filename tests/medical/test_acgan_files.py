"""A user's image files: CIFAR-10's binary version and MedMNIST's layout."""

import numpy as np
import pytest

from medical.acgan import data, files

RNG = np.random.default_rng(0)


def arrays(size: int = 28, channels: int = 3, val: bool = True) -> dict[str, np.ndarray]:
    """12 training images of each of two classes, 4 of the other parts."""
    found = {}
    for part, count in (("train", 24), ("val", 8), ("test", 8)):
        if part == "val" and not val:
            continue
        shape = (count, size, size, channels)[: 3 if channels == 1 else 4]
        found[f"{part}_images"] = RNG.integers(0, 256, shape, np.uint8)
        found[f"{part}_labels"] = (np.arange(count) % 2)[:, None]
    return found


def test_an_npz_keeps_its_parts(tmp_path):
    made = arrays()
    np.savez(tmp_path / "a.npz", **made)
    found = data.load(str(tmp_path / "a.npz"), 3, 0)
    np.testing.assert_array_equal(found.pool.images, made["train_images"])
    np.testing.assert_array_equal(found.test.images, made["test_images"])
    assert found.classes == ("0", "1") and found.pool.labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(found.validation.labels), 3)
    kept = {image.tobytes() for image in found.validation.images}
    assert kept <= {image.tobytes() for image in made["val_images"]}
    with pytest.raises(ValueError, match="has images of 28 pixels, asked for 32"):
        data.load(str(tmp_path / "a.npz"), 3, 0, size=32)


def test_without_official_validation_it_comes_from_training(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(channels=1, val=False))
    found = data.load(str(tmp_path / "a.npz"), 3, 2)
    assert found.pool.images.shape == (18, 28, 28, 1)
    assert [len(part.labels) for part in (found.validation, found.test)] == [6, 4]
    kept = {image.tobytes() for image in found.validation.images}
    assert not kept & {image.tobytes() for image in found.pool.images}


def broken(**changes):
    made = arrays() | changes
    return {name: value for name, value in made.items() if value is not None}


@pytest.mark.parametrize(("made", "message"), [
    (broken(test_labels=None), "no array 'test_labels', it has train_images"),
    (broken(train_images=np.zeros((24, 28, 28, 3))), "train_images are float64"),
    (broken(val_images=np.zeros((8, 28, 20), np.uint8)), r"val_images are uint8 \(8, 28, 20, 1\)"),
    (broken(test_images=np.zeros((8, 28, 28), np.uint8)), "images of different shapes"),
    (broken(train_labels=np.full(24, np.nan)), "train_labels are float64"),
    (broken(train_labels=np.arange(24) % 2 * 2), r"training labels \[0, 2\], expected 0, 1"),
    (broken(test_labels=np.full(8, 5)), "class 5 of 'test' does not occur in training"),
    (broken(train_labels=np.zeros(24, int)), r"training labels \[0\]"),
])
def test_bad_npz_files_are_named(made, message, tmp_path):
    np.savez(tmp_path / "a.npz", **made)
    with pytest.raises(files.DataFileError, match=message):
        files.npz(str(tmp_path / "a.npz"))


def write_cifar(folder, rows: int = 20) -> dict[str, np.ndarray]:
    """Rows of a label and 3,072 bytes, five files and one."""
    written = {}
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        table = RNG.integers(0, 256, (rows, 3073), np.uint8)
        table[:, 0] = np.arange(rows) % 10
        (folder / name).write_bytes(table.tobytes())
        written[name] = table
    return written


def test_cifar_is_read(tmp_path):
    written = write_cifar(tmp_path)
    found = data.load(str(tmp_path), 1, 0, size=32)
    assert found.classes[3] == "cat" and found.pool.images.shape == (90, 32, 32, 3)
    third = written["test_batch.bin"][2]
    np.testing.assert_array_equal(found.test.images[2, :, :, 1].ravel(), third[1025:2049])
    assert found.test.labels[2] == third[0]


def test_damaged_cifar_is_named(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(files.DataFileError, match="data_batch_3.bin: 61459 bytes, no multiple"):
        files.cifar(str(tmp_path))
    path.write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(files.DataFileError, match="label 11, expected 0 to 9"):
        files.cifar(str(tmp_path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3.bin"):
        files.cifar(str(tmp_path))
