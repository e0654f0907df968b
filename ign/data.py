"""Image sets for idempotent networks: MNIST, Fashion-MNIST, faces, any folder or .npz of images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import datasets

FASHION = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
CELEBA_FACE = (46.4, 89.6, 130.4, 173.6)
"""Crop of an aligned 178 x 218 CelebA photograph that frames the face as Olivetti does."""
CELEBA_SQUARE = (19.0, 50.0, 159.0, 190.0)
"""Crop of 140 x 140 pixels around the face, with hair and background."""
_TEST_SHARE = 5  # one of five examples is for testing where there is no official split


class ImageSet(NamedTuple):
    """Images with their split.

    Attributes:
        train, test: uint8 `[count, size, size, channels]`.
        train_labels, test_labels: int32 `[count]`, or None for a set without classes.
        class_names: names of the classes, `()` without.
    """

    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    class_names: tuple[str, ...]


def load(source: str, size: int = 28, channels: int = 1, limit: int = 0) -> ImageSet:
    """Loads an image set.

    Args:
        source: "mnist" (10,000 digits; a stratified fifth is for testing), "fashion" (60,000 and
            10,000, official split), "faces" (400 Olivetti and 999 CelebA photographs, grey, faces
            only, no classes; test: every fifth Olivetti person and CelebA photograph), "celeba"
            (999 colour photographs, no classes), or the path of a folder of images (subfolders are
            classes) or of an .npz file with `image` and optionally `label`.
        size: height and width to which images are brought: digits and clothing of 28 pixels are
            padded to 32 or enlarged to 64.
        channels: 1 (grey) or 3.
        limit: at most so many training images (the first of a shuffled order); 0 takes all.

    Raises:
        ValueError: bad shapes or dtype in an .npz file.
        FileNotFoundError: no such source.
    """
    if source in ("mnist", "fashion"):
        found = _mnist() if source == "mnist" else _fashion()
    elif source == "faces":
        found = _faces(size)
    elif source == "celeba":
        found = _split(_cropped(datasets.celeba_photos(), CELEBA_SQUARE, size), None, ())
    elif source.endswith(".npz"):
        found = _npz(source)
    elif Path(source).is_dir():
        folder = datasets.image_folder(source, (size, size), channels)
        labelled = len(folder.class_names) > 1
        names = folder.class_names if labelled else ()
        found = _split(folder.images, folder.labels if labelled else None, names)
    else:
        raise FileNotFoundError(
            f"data source {source!r} is neither mnist, fashion, faces or celeba nor a folder or an"
            " .npz file"
        )
    count = limit or len(found.train)
    labels = found.train_labels
    return found._replace(
        train=_fit(found.train[:count], size, channels),
        test=_fit(found.test, size, channels),
        train_labels=None if labels is None else labels[:count],
    )


def _mnist() -> ImageSet:
    split = datasets.mnist()
    return _split(split.images[..., None], split.labels, tuple("0123456789"))


def _fashion() -> ImageSet:
    train, test = datasets.fashion_mnist()
    order = np.random.default_rng(0).permutation(len(train.images))
    return ImageSet(
        train.images[order][..., None], test.images[..., None], train.labels[order], test.labels,
        FASHION,
    )


def _faces(size: int) -> ImageSet:
    olivetti = datasets.olivetti()
    people = _resized(olivetti.images[..., None], size)
    grey = datasets.celeba_photos().astype(np.float64) @ (0.299, 0.587, 0.114)
    photos = _cropped(np.rint(grey).astype(np.uint8)[..., None], CELEBA_FACE, size)
    # By person, so that nobody of the test images was trained on (CelebA has no identities).
    held_out = np.concatenate([olivetti.person % 5 == 1, np.arange(len(photos)) % 5 == 1])
    images = np.concatenate([people, photos])
    # Shuffled, so that the first images of either part are of different people.
    rng = np.random.default_rng(0)
    train, test = (rng.permutation(np.flatnonzero(rows)) for rows in (~held_out, held_out))
    return ImageSet(images[train], images[test], None, None, ())


def _npz(path: str) -> ImageSet:
    arrays = datasets.npz(path)
    if "image" not in arrays:
        raise ValueError(f"{path}: no array 'image', it has {sorted(arrays)}")
    images = arrays["image"]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"{path}: 'image' must be uint8 [count, size, size] or [count, size, size, 1 or 3], got"
            f" {images.dtype} {images.shape}"
        )
    if "label" not in arrays:
        return _split(images, None, ())
    values, labels = np.unique(arrays["label"], return_inverse=True)
    return _split(images, labels.astype(np.int32), tuple(str(value) for value in values))


def _split(images: np.ndarray, labels: np.ndarray | None, names: tuple[str, ...]) -> ImageSet:
    """A fixed shuffled split of four to one, within each class where there are classes."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    groups = np.zeros(len(images), int) if labels is None else labels[order]
    # Rank of each example within its class in the shuffled order.
    rank = np.empty(len(images), int)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        rank[rows] = np.arange(len(rows))
    test = rank % _TEST_SHARE == _TEST_SHARE - 1
    if not test.any():
        raise ValueError(f"{len(images)} images are too few to hold a fifth out for testing")
    train_rows, test_rows = order[~test], order[test]
    if labels is None:
        return ImageSet(images[train_rows], images[test_rows], None, None, names)
    return ImageSet(
        images[train_rows], images[test_rows], labels[train_rows], labels[test_rows], names
    )


def _fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Brings uint8 images to a size and number of channels."""
    if images.shape[-1] != channels:
        if channels == 3:
            images = np.repeat(images, 3, axis=-1)
        else:
            grey = images.astype(np.float64) @ (0.299, 0.587, 0.114)
            images = np.rint(grey).astype(np.uint8)[..., None]
    if images.shape[1] == size:
        return images
    if images.shape[1] == 28 and size == 32:
        return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return _resized(images, size)


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    return _cropped(images, (0.0, 0.0, images.shape[2], images.shape[1]), size)


def _cropped(
    images: np.ndarray, box: tuple[float, float, float, float], size: int
) -> np.ndarray:
    """Crops a box (left, top, right, bottom) and resizes it, bicubic with antialiasing."""
    result = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
    grey = images.shape[-1] == 1
    for image, out in zip(images, result, strict=True):
        picture = Image.fromarray(image[..., 0] if grey else image)
        resized = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box))
        out[...] = resized[..., None] if grey else resized
    return result
