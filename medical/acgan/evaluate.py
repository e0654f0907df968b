"""Measures of a comparison: accuracy by subset size, paired tests, calibration, collapse."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from medical.acgan.data import Trial
from medical.statistics import adjust, calibration, mcnemar

DOMINANT = 0.5
"""Share of the predictions of one class above which a classifier counts as collapsed."""
DIVERSITY = 0.5
"""Diversity of a class's samples over that of its real images below which a generator does."""
PREDICTED = 0.8
"""Share of the classes that a classifier must predict at least once."""
WITHIN = 0.05
"""How far the class head of a GAN may lie below the CNN in accuracy."""
REPAIR = 0.005
"""How far WAC-GAN-GPT may lie below AC-GAN, which it is meant to repair."""
AGREEMENT = 0.7
"""Share of samples that a CNN must give the class asked for."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities ``[..., classes]`` of logits."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def accuracy(right: np.ndarray, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Accuracy over seeds for each subset size.

    Args:
      right: bool ``[trials, test images]``.
      trials: what they are.

    Returns:
      Images of each class (as text) to `mean`, `sd` (None for one seed) and `each`, by seed.
    """
    table = {}
    for size in sizes(trials):
        each = [float(right[i].mean()) for i, t in enumerate(trials) if t.per_class == size]
        table[str(size)] = {
            "mean": float(np.mean(each)), "each": each,
            "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None}
    return table


def sizes(trials: Sequence[Trial]) -> list[int]:
    """Images of each class that occur, ascending."""
    return sorted({trial.per_class for trial in trials})


def compare(
    first: np.ndarray, second: np.ndarray, trials: Sequence[Trial]
) -> dict[str, dict[str, Any]]:
    """First less second on the same test images, for each subset size.

    Args:
      first, second: bool ``[trials, test images]``, what each got right.
      trials: what they are.

    Returns:
      Images of each class (as text) to `mean` difference of accuracies, `low`, `high`, `p` of the
      paired t test over seeds (None where there is one seed or no spread), `bootstrap` (see there),
      and `mcnemar`, the exact p of each seed. McNemar's test asks about these two trained networks;
      only the test over seeds asks about the methods.
    """
    table: dict[str, dict[str, Any]] = {}
    for size in sizes(trials):
        rows = [i for i, trial in enumerate(trials) if trial.per_class == size]
        each = first[rows].mean(axis=1) - second[rows].mean(axis=1)
        table[str(size)] = {
            **paired(each), "each": each.tolist(),
            "bootstrap": bootstrap(first[rows], second[rows]),
            "mcnemar": [mcnemar.compare(first[i], second[i]).p for i in rows]}
    return table


def paired(differences: np.ndarray) -> dict[str, float | None]:
    """Mean of differences ``[seeds]`` with a 95 % interval and p of Student's t."""
    mean, count = float(np.mean(differences)), len(differences)
    spread = float(np.std(differences, ddof=1)) if count > 1 else 0.0
    if spread == 0.0:
        return {"mean": mean, "low": None, "high": None, "p": None}
    error = spread / np.sqrt(count)
    half = float(stats.t.ppf(0.975, count - 1) * error)
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": p}


def bootstrap(
    first: np.ndarray, second: np.ndarray, repeats: int = 1000, seed: int = 0
) -> list[float]:
    """95 % percentile interval of the mean difference, over seeds and test images drawn again.

    Of a few seeds there are few different draws: it is then narrower than that of Student's t.

    Args:
      first, second: bool ``[seeds, test images]``, what each got right.
      repeats: of the draw.
      seed: of the draws, so that all methods are compared on the same ones.
    """
    random = np.random.default_rng(seed)
    differences = first.astype(np.int8) - second.astype(np.int8)
    seeds, images = differences.shape
    drawn = []
    for _ in range(repeats):
        rows = random.integers(seeds, size=seeds)
        drawn.append(differences[rows].mean(0)[random.integers(images, size=images)].mean())
    return [float(end) for end in np.quantile(drawn, (0.025, 0.975))]


def adjust_all(*baselines: Mapping[str, dict[str, dict[str, Any]]]) -> None:
    """Adds Holm's adjusted p values to the tables of all methods, in place.

    `mcnemar_holm` is adjusted over every McNemar test of the run, `holm` over every t test.

    Args:
      *baselines: method to its table, see `compare`, for each classifier compared with.
    """
    rows = [row for tables in baselines for table in tables.values() for row in table.values()]
    exact = [p for row in rows for p in row["mcnemar"]]
    after = iter(adjust.holm(np.array(exact)).tolist() if exact else [])
    for row in rows:
        row["mcnemar_holm"] = [next(after) for _ in row["mcnemar"]]
    tested = [row for row in rows if row["p"] is not None]
    adjusted = adjust.holm(np.array([row["p"] for row in tested])) if tested else np.zeros(0)
    for row in rows:
        row["holm"] = None
    for row, p in zip(tested, adjusted, strict=True):
        row["holm"] = float(p)


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the predicted class's probability.

    Args:
      logits: ``[images, classes]``.
      labels: ``[images]``.
    """
    probabilities = softmax(np.asarray(logits, np.float64))
    right = probabilities.argmax(-1) == labels
    return calibration.reliability(right, probabilities.max(-1)).error


def diversity(images: np.ndarray) -> float:
    """Mean distance of pairs of images ``[count, ...]``, per pixel (root of the mean square)."""
    if len(images) < 2:
        raise ValueError(f"diversity needs 2 images or more, got {len(images)}")
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    squares = np.sum(flat**2, axis=1)
    distances = squares[:, None] + squares[None] - 2 * flat @ flat.T
    pairs = distances[np.triu_indices(len(flat), 1)]
    return float(np.mean(np.sqrt(np.maximum(pairs, 0) / flat.shape[1])))


def collapse(predicted: np.ndarray, classes: int) -> list[str]:
    """Alarms of one classifier from its predictions ``[images]``; empty if there are none."""
    counts = np.bincount(predicted, minlength=classes)
    alarms = []
    share = counts.max() / counts.sum()
    # With few classes a fair share may exceed the limit: then twice that share, but below all.
    limit = max(DOMINANT, min(2 / classes, 0.95))
    if share > limit:
        alarms.append(f"class {counts.argmax()} is {share:.0%} of the predictions")
    used = int((counts > 0).sum())
    if used < PREDICTED * classes:
        alarms.append(f"{used} of {classes} classes are predicted")
    return alarms


def sample_diversity(
    samples: np.ndarray, reals: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Diversity of the samples of each class over that of its real images.

    Args:
      samples: ``[classes, samples, ...]``.
      reals: ``[images, ...]`` in the same units.
      labels: ``[images]``.

    Returns:
      The ratios ``[classes]`` and an alarm for each class below `DIVERSITY`.
    """
    count = samples.shape[1]
    ratios = np.array([
        diversity(made) / diversity(reals[labels == label][: max(count, 2)])
        for label, made in enumerate(samples)])
    return ratios, [f"samples of class {label} are {ratio:.0%} as diverse as real images"
                    for label, ratio in enumerate(ratios) if ratio < DIVERSITY]


def checks(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the class heads of generative methods, and whether it holds.

    Args:
      results: of stage `measure`.

    Returns:
      Dicts of `method`, `what`, `n` (images of each class, as text), `value` and `holds`.
    """
    found = []
    for name, samples in results["samples"].items():
        for n, row in results["difference"][name].items():
            found.append({"method": name, "what": "accuracy, points over the CNN", "n": n,
                          "value": 100 * row["mean"], "holds": row["mean"] >= -WITHIN})
        for what, limit in (("agreement", AGREEMENT), ("diversity", DIVERSITY)):
            for n, values in samples[what].items():
                value = float(np.mean(values))
                found.append({"method": name, "what": what, "n": n, "value": value,
                              "holds": value >= limit})
    accuracy = results["accuracy"]
    if {"acgan", "wacgan_gpt"} <= accuracy.keys():
        for n, row in accuracy["wacgan_gpt"].items():
            gain = row["mean"] - accuracy["acgan"][n]["mean"]
            found.append({"method": "wacgan_gpt", "what": "accuracy, points over AC-GAN", "n": n,
                          "value": 100 * gain, "holds": gain >= -REPAIR})
    return found
