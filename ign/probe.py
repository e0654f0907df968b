"""The collapse probe: the same noise drawn again and again during training, and what came of it.

The losses do not show a collapse: a network that maps all noise to one digit and that digit to
itself has small ones. So a fixed probe is drawn at intervals and its classes, duplicates and spread
are compared with those of real images, logged, and a collapse is called by its name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.writer import read_jsonl
from ign import evaluate, project
from ign.evaluate import Judge
from ign.project import Model

# Bounds of a verdict. Real images have spread 1, few duplicates (5 %) and all classes.
CONSTANT, DUPLICATES, CLASSES = 0.2, 0.5, 0.7

_apply = jax.jit(lambda model, *arrays: model(*arrays))


class Probe:
    """Draws `noise` with a model and compares the images with `real` ones.

    Attributes:
        noise: `[n, size, size, channels]`, the same at every call.
        labels: int32 `[n]` for a conditional network, else None.
    """

    def __init__(
        self,
        noise: np.ndarray,
        labels: np.ndarray | None,
        real: np.ndarray,
        real_labels: np.ndarray | None,
        judge: Judge,
    ):
        """`real` are `n` images in [-1, 1], `real_labels` their classes or None.

        Raises:
            ValueError: noise and real images differ in shape.
        """
        if noise.shape != real.shape:
            raise ValueError(f"probe of {noise.shape} beside real images of {real.shape}")
        self.noise = noise
        self.labels = labels
        self._judge = judge
        self._real_labels = real_labels
        self._features = judge(real).features
        self._spread = float(real.std(axis=0).mean())

    def draw(self, model: Model) -> np.ndarray:
        """`f` of the noise, `[n, size, size, channels]` in [-1, 1]."""
        return self._apply(model, self.noise)

    def measure(self, model: Model) -> dict[str, float]:
        """Numbers of the images that a model draws now.

        `spread`: deviation over images, mean over pixels, relative to real ones. `duplicates`: see
        `evaluate.duplicate_rate`. `drift`: mean absolute change by another application. With
        classes also those of `evaluate.classes`.
        """
        images = self.draw(model)
        drawn = self._judge(images)
        found = {
            "spread": float(images.std(axis=0).mean()) / self._spread,
            "duplicates": evaluate.duplicate_rate(drawn.features, self._features),
            "drift": float(np.abs(self._apply(model, images) - images).mean()),
        }
        if self._real_labels is not None:
            found |= evaluate.classes(drawn.probabilities, self._real_labels)
        return found

    def _apply(self, model: Model, images: np.ndarray) -> np.ndarray:
        arrays = (images,) if self.labels is None else (images, self.labels)
        return project.in_blocks(lambda *parts: _apply(model, *parts), *arrays)


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged: one record for each step and member, with `step`, `member` and `verdict`.

    Records have keys such as "0/spread", the member before the number. Steps that a resumed run did
    again count once.
    """
    by_step = {record["step"]: record for record in read_jsonl(path)}
    found = []
    for step, record in sorted(by_step.items()):
        numbers: dict[int, dict[str, float]] = {}
        for key, value in record.items():
            owner, slash, name = key.partition("/")
            if slash:
                numbers.setdefault(int(owner), {})[name] = float(value)
        for member, own in sorted(numbers.items()):
            found.append({"step": step, "member": member, "verdict": verdict(own), **own})
    return found


def verdict(numbers: Mapping[str, float]) -> str:
    """The name of the collapse that the probe's numbers show, or "" for none.

    "constant output": the spread is below 0.2 of real images'. "duplicates": more than half of the
    samples have a nearer neighbour than 95 % of real images have. "dropped classes": fewer than 0.7
    of the classes are drawn.
    """
    if numbers["spread"] < CONSTANT:
        return "constant output"
    if numbers["duplicates"] > DUPLICATES:
        return "duplicates"
    if "coverage" in numbers and numbers["coverage"] < CLASSES * numbers["classes"]:
        return "dropped classes"
    return ""
