"""Duplicates among images that are not a network's: real ones, means of similar ones, projections.

    python benchmarks/ign_duplicates.py runs/ign

The rate of `ign.evaluate.duplicate_rate` beside the test images of a run of `configs/ign.py`, in
the features of its judge. It tells how much averaging a rate that a network has amounts to.
"""

import pathlib
import sys

import numpy as np

from ign import evaluate, settings

NEAREST, COMPONENTS = (2, 3, 5, 10), (30, 60, 128, 256)


def means(images: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Mean of each row and the others of its `count` nearest `images` (all flat), in pixels."""
    squares = np.square(images).sum(axis=1)
    distances = np.square(rows).sum(axis=1)[:, None] + squares[None] - 2 * rows @ images.T
    return images[np.argpartition(distances, count, axis=1)[:, :count]].mean(axis=1)


def projections(images: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Rows on the first `count` principal components of `images`, clipped to [-1, 1]."""
    mean = images.mean(axis=0)
    axes = np.linalg.eigh(np.cov((images - mean).T))[1][:, -count:].astype(np.float32)
    return np.clip((rows - mean) @ axes @ axes.T + mean, -1.0, 1.0)


def main(run: str) -> None:
    stages = pathlib.Path(run) / "stages"
    sets, judge = settings.load_images(stages / "data"), settings.load_judge(stages / "judge")
    test = settings.signed(sets.test)
    reference = judge(test).features
    train = settings.signed(sets.train)
    if len(train) < len(test):
        sys.exit(f"{run}: {len(train)} training images beside {len(test)} of the test")
    flat = train.reshape(len(train), -1)
    few = flat[: len(test)]
    rows = {"training images": few}
    rows |= {f"mean of the {n} nearest": means(flat, few, n) for n in NEAREST}
    rows |= {f"{n} principal components": projections(flat, few, n) for n in COMPONENTS}
    for name, images in rows.items():
        features = judge(images.reshape(test.shape)).features
        print(f"{name:28s} {evaluate.duplicate_rate(features, reference):.3f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
