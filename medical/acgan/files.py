"""Image data sets in files of a user: CIFAR-10's binary version, and MedMNIST's `.npz` layout.

Neither is shipped. CIFAR-10's Python version is pickled, and pickles run programs: take the binary
version (`cifar-10-binary.tar.gz`, unpacked).
"""

import pathlib
from typing import NamedTuple

import numpy as np

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ROW = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue
_PARTS = ("train", "val", "test")


class DataFileError(ValueError):
    """A file is not such a data set; the message names it and what is wrong."""


class Split(NamedTuple):
    """Images uint8 ``[count, size, size, channels]`` and labels int32 ``[count]`` of a part."""

    images: np.ndarray
    labels: np.ndarray


def cifar(folder: str) -> dict[str, Split]:
    """Parts "train" (five files) and "test" of the folder of CIFAR-10's binary version.

    Raises:
      FileNotFoundError: a file is missing.
      DataFileError: a file's length is no multiple of 3,073 bytes, or a label is not 0 to 9.
    """
    root = pathlib.Path(folder)
    names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    parts = {}
    for part, files in names.items():
        rows = []
        for name in files:
            data = np.frombuffer((root / name).read_bytes(), np.uint8)
            if not data.size or data.size % _ROW:
                raise DataFileError(f"{root / name}: {data.size} bytes, no multiple of {_ROW}")
            rows.append(data.reshape(-1, _ROW))
            if rows[-1][:, 0].max() > 9:
                raise DataFileError(f"{root / name}: label {rows[-1][:, 0].max()}, expected 0 to 9")
        table = np.concatenate(rows)
        images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts[part] = Split(np.ascontiguousarray(images), table[:, 0].astype(np.int32))
    return parts


def npz(path: str) -> dict[str, Split]:
    """Parts of a file of MedMNIST's layout: `train_images`, `train_labels`, and so on for `val`
    (which may be missing) and `test`.

    Images are uint8 ``[n, size, size]`` or ``[n, size, size, 1 or 3]``, labels whole numbers
    ``[n]`` or ``[n, 1]`` from 0 without gaps.

    Raises:
      FileNotFoundError: there is no such file.
      DataFileError: an array is missing or not of that form, or the parts do not fit together.
    """
    parts = {}
    with np.load(path, allow_pickle=False) as file:
        for part in _PARTS:
            keys = f"{part}_images", f"{part}_labels"
            absent = [key for key in keys if key not in file]
            if part == "val" and len(absent) == 2:
                continue
            if absent:
                raise DataFileError(f"{path}: no array {absent[0]!r}, it has "
                                    f"{', '.join(file.files)}")
            parts[part] = _checked(path, part, file[keys[0]], file[keys[1]])
    shapes = {part.images.shape[1:] for part in parts.values()}
    if len(shapes) > 1:
        raise DataFileError(f"{path}: images of different shapes: {sorted(shapes)}")
    seen = sorted(set(parts["train"].labels.tolist()))
    if seen != list(range(len(seen))) or len(seen) < 2:
        raise DataFileError(f"{path}: training labels {seen}, expected 0, 1, ... without gaps")
    for part, split in parts.items():
        strange = sorted(set(split.labels.tolist()) - set(seen))
        if strange:
            raise DataFileError(
                f"{path}: class {strange[0]} of {part!r} does not occur in training")
    return parts


def _checked(path: str, part: str, images: np.ndarray, labels: np.ndarray) -> Split:
    images = images[..., None] if images.ndim == 3 else images
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] in (1, 3)
    if images.dtype != np.uint8 or not square:
        raise DataFileError(f"{path}: {part}_images are {images.dtype} {images.shape}, expected "
                            "uint8 [n, size, size] or [n, size, size, 1 or 3]")
    flat = labels.reshape(-1) if labels.shape in ((len(images),), (len(images), 1)) else None
    if flat is None or flat.dtype.kind not in "iu":
        raise DataFileError(f"{path}: {part}_labels are {labels.dtype} {labels.shape}, expected a "
                            f"whole number for each of {len(images)} images")
    return Split(images, flat.astype(np.int32))
