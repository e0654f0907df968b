"""Stage that turns the predictions of all methods into tables, tests and alarms."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from common import storage
from medical.acgan import evaluate, population, stages

Arrays = dict[str, np.ndarray]


def measure(config: ConfigDict, inputs: dict[str, Path], out: Path) -> None:
    """Stage: ``results.json``."""
    arrays, header = storage.load_arrays(inputs["data"] / "images.safetensors")
    test, trials = stages.part(arrays, "test"), stages.trials_of(config)
    found = {name: read(inputs[f"train-{name}"]) for name in config.methods}
    right = {name: each["best_logits"].argmax(-1) == test.labels for name, each in found.items()}
    classes = len(header["classes"])
    results: dict[str, Any] = {
        "accuracy": {name: evaluate.accuracy(right[name], trials) for name in found},
        "last_accuracy": {
            name: evaluate.accuracy(each["last_logits"].argmax(-1) == test.labels, trials)
            for name, each in found.items()},
        "difference": {name: evaluate.compare(right[name], right["cnn"], trials)
                       for name in found if name != "cnn"},
        "difference_augmented": {
            name: evaluate.compare(right[name], right["cnn_augmented"], trials)
            for name in found if "cnn_augmented" in found
            and name not in ("cnn", "cnn_augmented")},
        "calibration_error": {name: by_size(trials, [
            evaluate.calibration_error(logits, test.labels) for logits in each["best_logits"]])
            for name, each in found.items()},
        "best_step": {name: by_size(trials, each["best_step"].tolist())
                      for name, each in found.items()},
        "alarms": {name: [f"{text} ({trial.per_class} of each class, seed {trial.seed})"
                          for trial, logits in zip(trials, each["best_logits"], strict=True)
                          for text in evaluate.collapse(logits.argmax(-1), classes)]
                   for name, each in found.items()},
        "samples": {}, "sizes": evaluate.sizes(trials), "seeds": list(config.seeds),
        "test_images": len(test.labels), "validation_images": len(arrays["validation_labels"]),
        "classes": header["classes"], "medical": header["medical"], "bad": header["bad"],
    }
    evaluate.adjust_all(results["difference"], results["difference_augmented"])
    judge = make_judge(config, inputs["train-cnn"], trials, classes, test.images.shape[2:])
    for name, each in found.items():
        if "samples" in each:
            results["samples"][name] = judge_samples(each["samples"], test, trials, judge)
    results["checks"] = evaluate.checks(results)
    storage.save_json(out / "results.json", results)


def read(folder: Path) -> Arrays:
    """What the training of one method left."""
    return storage.load_arrays(folder / "found.safetensors")[0]


def by_size(trials: list, values: list) -> dict[str, list]:
    """Values of the trials by subset size, in the order of seeds."""
    return {str(size): [value for trial, value in zip(trials, values, strict=True)
                        if trial.per_class == size] for size in evaluate.sizes(trials)}


def make_judge(
    config: ConfigDict, folder: Path, trials: list, classes: int, shape: tuple[int, ...]
) -> Any:
    """Labels ``[count]`` of images by the CNNs of the most images, one for each seed.

    They have seen the same real images as a generator of that size and seed, and no sample.
    """
    _, discriminator = stages.make_nets(config.net, classes, *shape)
    largest = evaluate.sizes(trials)[-1]
    saved = storage.load_tree(folder / "best.safetensors")["discriminator"]
    held = {trial.seed: population.take(saved, i) for i, trial in enumerate(trials)
            if trial.per_class == largest}

    run = jax.jit(lambda one, images: population.predict(discriminator, one, images))

    def judge(images: np.ndarray, seed: int) -> np.ndarray:
        return np.asarray(run(held[seed], jnp.asarray(images))).argmax(-1)

    return judge


def judge_samples(samples: np.ndarray, test: Any, trials: list, judge: Any) -> dict[str, Any]:
    """Class agreement and diversity of the samples of every trial, by subset size."""
    reals = test.images
    if reals.dtype != np.uint8:  # float images in [-1, 1]
        reals = (reals + 1) * 127.5
    agreement, ratios, alarms = [], [], []
    for made, trial in zip(samples, trials, strict=True):
        wanted = np.repeat(np.arange(len(made)), made.shape[1])
        seen = judge(made.reshape(-1, *made.shape[2:]), trial.seed)
        agreement.append(float(np.mean(seen == wanted)))
        ratio, found = evaluate.sample_diversity(made, reals, test.labels)
        ratios.append(float(ratio.mean()))
        alarms += [f"{text} ({trial.per_class} of each class, seed {trial.seed})"
                   for text in found]
    return {"agreement": by_size(trials, agreement), "diversity": by_size(trials, ratios),
            "alarms": alarms}
