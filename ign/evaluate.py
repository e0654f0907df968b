"""Measures of an idempotent network: what it generates, how idempotent it is, what it restores.

Low losses prove nothing here: the identity map and a constant map have both. So every number stands
beside those of baselines (real images, the mean image, noise, an untrained network's output, plain
and denoising autoencoders of the same size), and only all together describe a model.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from common.metrics import distribution, pixel
from ign import corruptions, project
from ign.classifier import Judged
from ign.models import build
from ign.project import Model

Judge = Callable[[np.ndarray], Judged]
# (images in [-1, 1], labels of a conditional network) -> images
Restorer = Callable[[jax.Array, jax.Array], jax.Array]

DUPLICATE_QUANTILE = 0.05
"""Two samples are duplicates if nearer than all but this share of real nearest neighbours."""


def nearest_distances(features: np.ndarray) -> np.ndarray:
    """Distance of each vector to its nearest other, `[n, d]` -> `[n]`, in float64.

    Raises:
        ValueError: fewer than 2 vectors.
    """
    if len(features) < 2:
        raise ValueError(f"{len(features)} vectors have no neighbours")
    x = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    squares = np.square(x).sum(axis=1)
    nearest = np.empty(len(x))
    for start in range(0, len(x), 1024):
        rows = slice(start, start + 1024)
        found = squares[rows, None] + squares[None] - 2 * x[rows] @ x.T
        found[np.arange(found.shape[0]), np.arange(start, start + found.shape[0])] = np.inf
        nearest[rows] = found.min(axis=1)
    return np.sqrt(np.maximum(nearest, 0.0))


def duplicate_rate(features: np.ndarray, reference: np.ndarray) -> float:
    """Share of vectors with a nearer neighbour than `DUPLICATE_QUANTILE` of the reference have.

    Both sets must have one size, because neighbours come closer as a set grows: other real images
    have a rate of about `DUPLICATE_QUANTILE`, a collapsed network's samples one near 1.

    Raises:
        ValueError: the sets differ in size.
    """
    if features.shape != reference.shape:
        raise ValueError(f"sets of {features.shape} and {reference.shape} are not comparable")
    threshold = np.quantile(nearest_distances(reference), DUPLICATE_QUANTILE)
    return float(np.mean(nearest_distances(features) <= threshold))


def classes(probabilities: np.ndarray, real_labels: np.ndarray) -> dict[str, float]:
    """How generated images spread over the classes, from `[n, classes]` probabilities.

    `coverage`: classes that at least a tenth of their real share of samples is assigned to.
    `entropy`: of the assigned classes' frequencies, in nats. `variation`: total variation distance
    of those frequencies to the real ones. `confidence`: mean probability of the assigned class.
    """
    count = probabilities.shape[1]
    drawn = np.bincount(probabilities.argmax(axis=1), minlength=count) / len(probabilities)
    real = np.bincount(real_labels, minlength=count) / len(real_labels)
    positive = drawn[drawn > 0]
    return {
        "coverage": int(np.count_nonzero((drawn >= 0.1 * real) & (drawn > 0))),
        "classes": count,
        "entropy": float(-np.sum(positive * np.log(positive))),
        "variation": float(0.5 * np.abs(drawn - real).sum()),
        "confidence": float(probabilities.max(axis=1).mean()),
    }


def distances(real: Judged, drawn: Judged, real_labels: np.ndarray | None) -> dict[str, float]:
    """Distances of two sets of one size in the judge's features, and the classes of the second.

    `frechet` and `kid` are Frechet and kernel distance (lower is better); `precision`, `recall`,
    `density` and `coverage_knn` are nearest-neighbour statistics, see `common.metrics`.
    """
    x, y = real.features, drawn.features
    precision, recall = distribution.precision_recall(x, y)
    density, coverage = distribution.density_coverage(x, y)
    found: dict[str, float] = {
        "frechet": distribution.frechet_from_features(x, y),
        "kid": distribution.kid(x, y).value,
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage_knn": coverage,
        "duplicates": duplicate_rate(y, x),
    }
    if real_labels is not None:
        found |= classes(drawn.probabilities, real_labels)
    return found


def idempotence(model: Model, z: np.ndarray, labels: np.ndarray | None = None, k: int = 10) -> dict:
    """How far `f` is from `f(f)`: the ratio, and the curve of repeated application.

    `median` and `p95` are of `|f(f(z)) - f(z)| / |f(z) - z|` over the noises; `curve` is the median
    of `|f^(k+1)(z) - f^k(z)| / |f(z) - z|` for k = 1, 2, ..., so it begins with `median`.
    """

    arrays = (z,) if labels is None else (z, labels)
    moved = project.in_blocks(functools.partial(_moves, k + 1, model), *arrays)
    ratios = moved[:, 1:] / np.maximum(moved[:, :1], 1e-12)
    median, high = np.percentile(ratios[:, 0], [50, 95])
    return {
        "median": float(median),
        "p95": float(high),
        "curve": np.median(ratios, axis=0).tolist(),
    }


# The model is an argument, so that those of a population share one compilation.
@functools.partial(jax.jit, static_argnums=0)
def _moves(k: int, model: Model, z: jax.Array, *labels: jax.Array) -> jax.Array:
    """How far each of `k` applications moves each noise, `[n, k]`."""
    path = project.trajectory(model, z, k, *labels)
    moved = (path[1:] - path[:-1]).reshape(k, z.shape[0], -1)
    return jnp.linalg.norm(moved, axis=-1).T


def restoration(
    restorers: Mapping[str, Restorer],
    images: np.ndarray,
    labels: np.ndarray | None,
    judge: Judge | None,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """PSNR, SSIM, mean absolute error and classifier accuracy of corrupted and restored images.

    Args:
        restorers: name to function of images in [-1, 1] and labels (0 where there are none);
            "corrupted" (the identity) is added.
        images: clean test images in [-1, 1], `[n, size, size, channels]`.
        labels: their classes, for the accuracy; None leaves it out.
        judge: classifier, used where there are labels.
        seed: of noise and places.

    Returns:
        Corruption ("clean" first) -> restorer -> numbers; gains are differences to "corrupted".
    """
    todo: dict[str, corruptions.Corruption] = {"clean": lambda x, key: x}
    todo |= corruptions.standard(images.shape[-1])
    named: dict[str, Restorer] = {"corrupted": lambda x, _: x, **restorers}
    given = np.zeros(len(images), np.int32) if labels is None else labels
    found: dict[str, dict[str, dict[str, float]]] = {}
    for index, (what, corrupt) in enumerate(todo.items()):
        key = jax.random.fold_in(jax.random.key(seed), index)
        spoilt = np.asarray(corrupt(jnp.asarray(images), key))
        found[what] = {}
        for name, function in named.items():
            restored = project.in_blocks(function, spoilt, given)
            numbers = image_scores(restored, images)
            if labels is not None and judge is not None:
                numbers["accuracy"] = float(np.mean(judge(restored).labels == labels))
            found[what][name] = numbers
    return found


def image_scores(images: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Means over images in [-1, 1]: PSNR in dB (of at most 60, so that equal images count), SSIM,
    and mean absolute error."""
    x, y = ((jnp.asarray(a) + 1) / 2 for a in (images, truth))
    return {
        "psnr": float(jnp.minimum(pixel.psnr(x, y), 60.0).mean()),
        "ssim": float(pixel.ssim(x, y).mean()),
        "l1": float(np.mean(np.abs(images - truth))),
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive score exceeds a negative one, ties counting half.

    Raises:
        ValueError: an empty set.
    """
    if not len(positive) or not len(negative):
        raise ValueError(f"{len(positive)} positive and {len(negative)} negative scores")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    through = np.searchsorted(ordered, positive, "right")
    return float(np.mean(below + through) / (2 * len(negative)))


def detection(
    drift: Callable[[np.ndarray], np.ndarray], real: np.ndarray, others: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Drift of held-out real images and of other inputs, and its AUROC as a detector of the others.

    Args:
        drift: images `[n, size, size, channels]` in [-1, 1] -> `[n]`.
        real: held-out images.
        others: name to images of other kinds.
    """
    own = drift(real)
    found = {"real": {"drift": float(own.mean())}}
    for name, images in others.items():
        values = drift(images)
        found[name] = {"drift": float(values.mean()), "auroc": auroc(values, own)}
    return found


def mode_gap(model: Model, images: np.ndarray, z: np.ndarray) -> dict[str, dict[str, float]]:
    """Errors of a batch-normalised network in training and in evaluation mode.

    `reconstruction` is the mean absolute error on `images`, `drift` that of f on `f(z)`. In
    training mode each batch of 256 is normalised by its own statistics, as published pictures of
    such networks were made; an output then depends on the rest of its batch.
    """
    net = build(model.config)

    def trained(x: jax.Array) -> jax.Array:
        return net.apply(model.variables, x, train=True, mutable=["batch_stats"])[0]

    found = {}
    for mode, function in (("evaluation", lambda x: model(x)), ("training", trained)):
        compiled = jax.jit(function)
        error = project.in_blocks(compiled, images) - images
        y = project.in_blocks(compiled, z)
        drift = project.in_blocks(compiled, y) - y
        found[mode] = {
            "reconstruction": float(np.abs(error).mean()),
            "drift": float(np.abs(drift).mean()),
        }
    return found
