"""Stage that trains the small zoo on Fashion-MNIST, one network after another."""

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np

from common import datasets, loop, rng, storage
from common.writer import Writer
from rosetta import supervision
from rosetta.zoo import small

__all__ = ["clothing", "load", "networks", "train"]

Inputs = dict[str, pathlib.Path]


def clothing(images: np.ndarray) -> np.ndarray:
    """Fashion-MNIST images `[n, 28, 28]` uint8 -> `[n, 32, 32, 1]` in [-1, 1], padded."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return padded[..., None].astype(np.float32) / 127.5 - 1


def train(config: Any, inputs: Inputs, out: pathlib.Path) -> None:
    """Stage: leaves ``NETWORK.safetensors`` of each network, and ``training.json``.

    A network that an interrupted stage had finished is kept.
    """
    del inputs
    learning, testing = datasets.fashion_mnist()
    images, labels = clothing(learning.images), learning.labels
    results: dict[str, dict[str, float]] = {}
    with contextlib.closing(Writer(out, "training")) as writer:
        for name, objective in supervision.objectives(config.rate).items():
            path = out / f"{name}.safetensors"
            if not path.is_file():
                results[name] = _fit(name, objective, images, labels, config, path, writer)
            else:
                results[name] = storage.load_arrays(path)[1]["results"]
    found = supervision.accuracy(
        load(out / "class.safetensors"), clothing(testing.images), testing.labels
    )
    results["class"]["test_accuracy"] = found
    storage.save_json(out / "training.json", results)


def _fit(
    name: str,
    objective: supervision.Objective,
    images: np.ndarray,
    labels: np.ndarray,
    config: Any,
    path: pathlib.Path,
    writer: Writer,
) -> dict[str, float]:
    """Trains one network; returns the means of its metrics over five batches after the last."""
    key = rng.stream(jax.random.key(config.seed), name)
    steps = int(config.steps[name])

    def batch(step: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng([config.seed, rng.name_hash(name), step])
        chosen = random.choice(len(images), config.batch, replace=False)
        return {"image": images[chosen], "label": labels[chosen].astype(np.int32)}

    state = loop.fit(
        jax.jit(objective.init)(key), objective.step, batch, num_steps=steps, key=key,
        name=name, writer=writer, log_every=max(1, steps // 50),
    )  # fmt: skip
    last = jax.jit(objective.step)  # on fresh batches; their updates are dropped
    tail = [
        last(state, batch(step), rng.at_step(key, "after", step))[1]
        for step in range(steps, steps + 5)
    ]
    results = {k: float(np.mean([np.asarray(m[k]) for m in tail])) for k in tail[0]}
    storage.save_tree(path, jax.device_get(objective.finished(state)), {"results": results})
    return results


def load(path: pathlib.Path) -> Any:
    """The variables of a trained network.

    Raises:
      FileNotFoundError: it has not been trained.
    """
    return storage.load_tree(path)


def networks(folder: pathlib.Path, names: Any) -> tuple[Any, tuple[Any, ...]]:
    """The generator and the networks of a folder that `train` left."""
    models = tuple(small.network(name, load(folder / f"{name}.safetensors")) for name in names)
    return small.generator(load(folder / "gan.safetensors")), models
