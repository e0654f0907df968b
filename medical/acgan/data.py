"""The low-data protocol: n labelled images of each class, a validation set and a test set."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common import datasets
from medical.acgan import files
from medical.data import studies

FASHION = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
PATIENT_SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Shares of the patients of a user's table; its images have no official split."""


class TooFewImagesError(ValueError):
    """A class has fewer images than the protocol asks for."""


class Part(NamedTuple):
    """Images ``[count, size, size, channels]``, uint8 or float32 in [-1, 1], and labels int32
    ``[count]``."""

    images: np.ndarray
    labels: np.ndarray


class Trial(NamedTuple):
    """One training: images of each class, and the seed of their choice and of everything else."""

    per_class: int
    seed: int


class Protocol(NamedTuple):
    """Images of a run.

    Attributes:
      pool: training images, of which every trial sees its own few.
      validation: images for the choice of the step at which a trial is kept.
      test: images that nothing is chosen by.
      classes: names.
      medical: the images are a user's studies.
      bad: (file, reason) of a user's images that cannot be read and are left out.
    """

    pool: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    medical: bool
    bad: tuple[tuple[str, str], ...] = ()


def load(
    source: str, validation_per_class: int, test_per_class: int, size: int = 28, seed: int = 0
) -> Protocol:
    """Loads a data set and splits it.

    Args:
      source: "fashion" (official test set), "mnist" (10,000 digits without an official split), the
        path of a CSV table of studies (columns `file`, `patient`, `label`), split by patient, or of
        a `.npz` or of CIFAR-10's folder (see `files`; official test sets).
      validation_per_class: validation images of each class; of a table at most so many.
      test_per_class: test images of each class, 0 for all that are not used otherwise (of MNIST
        a fifth of each class); of a table at most so many.
      size: side of a table's images in pixels; what the others must have.
      seed: of the split; the same for all trials.

    Raises:
      TooFewImagesError: a class has too few images for the parts.
      DataFileError, FileNotFoundError: see `files`.
      ValueError: unknown source, one test image, or a size other than that of the data set.
    """
    if test_per_class == 1:
        raise ValueError("test_per_class is 1; the diversity of a class needs 2 images or more")
    rng = np.random.default_rng(seed)
    if source.endswith(".csv"):
        return _studies(source, validation_per_class, test_per_class, size, rng)
    if source.endswith(".npz") or pathlib.Path(source).is_dir():
        return _files(source, validation_per_class, test_per_class, size, rng)
    if source not in ("fashion", "mnist"):
        raise ValueError(f"source {source!r}; known: fashion, mnist, the path of a .csv table or a "
                         ".npz, or an existing folder of CIFAR-10's binary files")
    if size != 28:
        raise ValueError(f"{source} has images of 28 pixels, asked for {size}")
    if source == "fashion":
        train, test = datasets.fashion_mnist()
        names: tuple[str, ...] = FASHION
        count = len(names)
        held_out = Part(test.images[..., None], test.labels)
        whole = Part(train.images[..., None], train.labels)
        if test_per_class:
            held_out = take(held_out, _first(held_out.labels, test_per_class, count, rng, "test"))
    else:
        digits = datasets.mnist()
        names, count = tuple("0123456789"), 10
        whole = Part(digits.images[..., None], digits.labels)
        fifth = int(np.bincount(whole.labels).min()) // 5
        rows = _first(whole.labels, test_per_class or fifth, count, rng, "test")
        held_out, whole = take(whole, rows), _without(whole, rows)
    rows = _first(whole.labels, validation_per_class, count, rng, "validation")
    return Protocol(_without(whole, rows), take(whole, rows), held_out, names, False)


def subset(labels: np.ndarray, per_class: int, classes: int, seed: int) -> np.ndarray:
    """Rows of a trial's images: of each class the first of one permutation, so that the images of
    a smaller ``per_class`` are among those of a larger one with the same seed.

    Raises:
      TooFewImagesError: a class has fewer images.
    """
    return _first(labels, per_class, classes, np.random.default_rng(seed), "training")


def tables(
    labels: np.ndarray, trials: Sequence[Trial], classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of all trials in one array.

    Returns:
      Rows of the pool that some trial uses, ``[used]``; each trial's places in them, int32
      ``[trials, most]``, padded with its first; and how many are its own, int32 ``[trials]``.
    """
    chosen = [subset(labels, trial.per_class, classes, trial.seed) for trial in trials]
    used = np.unique(np.concatenate(chosen))
    counts = np.array([len(rows) for rows in chosen], np.int32)
    places = np.zeros((len(trials), counts.max()), np.int32)
    for row, rows in zip(places, chosen, strict=True):
        row[:] = np.searchsorted(used, rows[0])
        row[: len(rows)] = np.searchsorted(used, rows)
    return used, places, counts


def take(part: Part, rows: np.ndarray) -> Part:
    """The images of some rows."""
    return Part(part.images[rows], part.labels[rows])


def _without(part: Part, rows: np.ndarray) -> Part:
    kept = np.ones(len(part.labels), bool)
    kept[rows] = False
    return take(part, np.flatnonzero(kept))


def _first(
    labels: np.ndarray, per_class: int, classes: int, rng: np.random.Generator, what: str
) -> np.ndarray:
    """The first rows of each class in an order drawn once for each class."""
    if per_class < 1:
        raise ValueError(f"{per_class} {what} images of each class; at least 1 is needed")
    chosen = []
    for label in range(classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < per_class:
            raise TooFewImagesError(
                f"class {label} has {len(rows)} images for {what}, asked for {per_class}")
        chosen.append(rows[:per_class])
    return np.concatenate(chosen)


def _files(
    source: str, validation_per_class: int, test_per_class: int, size: int,
    rng: np.random.Generator,
) -> Protocol:
    """A user's `.npz` or CIFAR-10; validation is official where there is one."""
    parts = files.npz(source) if source.endswith(".npz") else files.cifar(source)
    if parts["train"].images.shape[1] != size:
        raise ValueError(f"{source} has images of {parts['train'].images.shape[1]} pixels, asked "
                         f"for {size}")
    count = int(parts["train"].labels.max()) + 1
    names = tuple(str(c) for c in range(count)) if source.endswith(".npz") else files.CIFAR
    pool, test = Part(*parts["train"]), Part(*parts["test"])
    if test_per_class:
        test = take(test, _first(test.labels, test_per_class, count, rng, "test"))
    elif np.bincount(test.labels, minlength=count).min() < 2:
        raise TooFewImagesError(f"{source}: a class has fewer than 2 test images")
    if "val" in parts:
        held = Part(*parts["val"])
        rows = _first(held.labels, validation_per_class, count, rng, "validation")
        return Protocol(pool, take(held, rows), test, names, False)
    rows = _first(pool.labels, validation_per_class, count, rng, "validation")
    return Protocol(_without(pool, rows), take(pool, rows), test, names, False)


def _studies(
    table: str, validation_per_class: int, test_per_class: int, size: int,
    rng: np.random.Generator,
) -> Protocol:
    """A user's studies, with every patient in one part."""
    found = studies.read(table, size)
    parts = studies.split(found.patients, PATIENT_SHARES, rng)
    studies.check_disjoint({name: found.patients[rows] for name, rows in parts.items()})
    whole = Part(found.images, found.labels)
    limits = {"train": 0, "validation": validation_per_class, "test": test_per_class}
    chosen = {}
    for name, rows in parts.items():
        part = take(whole, rows)
        kept = []
        for label, title in enumerate(found.classes):
            of_class = rng.permutation(np.flatnonzero(part.labels == label))
            needed = 2 if name == "test" else 1
            if len(of_class) < needed:
                raise TooFewImagesError(
                    f"{table}: class {title!r} has {len(of_class)} images in part {name!r}, "
                    f"needed: {needed}")
            kept.append(of_class[: limits[name] or None])
        chosen[name] = take(part, np.concatenate(kept))
    return Protocol(
        chosen["train"], chosen["validation"], chosen["test"], found.classes, True,
        found.bad)
