"""Numbers of a run: localisation with intervals, and the guards that must hold before it counts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.metrics import pixel
from medical.explain import localise
from medical.medxgan import codes
from medical.medxgan.losses import margin
from medical.medxgan.train import Nets, PyTree, sample_codes

METRICS = ("iou", "pointing", "mass", "auc", "deletion", "insertion", "sparsity")
GUARDS = {
    "diversity": (">=", 0.5),
    "inversion": ("<=", 0.25),
    "negative_agreement": (">=", 0.95),
    "positive_agreement": (">=", 0.90),
    "class_kept": (">=", 0.95),
    "class_flipped": (">=", 0.95),
}
"""What a generator must reach before its explanations are worth a table, see `guards`."""


def localisation(
    maps: dict[str, np.ndarray], masks: np.ndarray, images: np.ndarray, nets: Nets, frozen: PyTree
) -> dict[str, dict[str, np.ndarray]]:
    """Metrics of each map: name to metric to ``[images]``.

    Deletion and insertion follow the probability of the positive class, from the image to its mean
    grey.
    """
    black = jnp.broadcast_to(jnp.mean(images, axis=(1, 2, 3), keepdims=True), images.shape)
    score = jax.tree_util.Partial(_programs(nets)[2], frozen)
    found = {}
    for name, values in maps.items():
        deletion, insertion = localise.deletion_insertion(score, jnp.asarray(images), values, black)
        found[name] = {
            "iou": localise.iou(values, masks),
            "pointing": localise.pointing(values, masks),
            "mass": localise.relevance_mass(values, masks),
            "auc": localise.pixel_auc(values, masks),
            "deletion": deletion,
            "insertion": insertion,
            "sparsity": localise.sparsity(values),
        }
    return found


def mean_interval(
    values: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None,
    resamples: int = 2000,
) -> dict[str, float]:
    """Mean with its 95 % bootstrap interval.

    Args:
      values: ``[images]``; NaN is left out.
      rng: source of the resamples.
      groups: ``[images]``, whose the images are: all images of a group are drawn together, since
        they are not independent. None: each is its own.
      resamples: number of them.

    Raises:
      ValueError: no value is finite.
    """
    known = np.isfinite(values)
    if not known.any():
        raise ValueError(f"none of {len(values)} values is finite")
    values = values[known]
    names = np.arange(len(values)) if groups is None else groups[known]
    index = np.unique(names, return_inverse=True)[1]
    totals, counts = np.bincount(index, values), np.bincount(index)
    rows = rng.integers(len(counts), size=(resamples, len(counts)))
    means = totals[rows].sum(axis=1) / counts[rows].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def disentanglement(
    nets: Nets, frozen: PyTree, generator: PyTree, key: jax.Array, count: int = 250
) -> dict[str, Any]:
    """Agreement of the classifier with the class asked for, as published: each anatomy once without
    pathology and three times with; and the healthy images, for the diversity guard."""
    draw, judge, _ = _programs(nets)
    z1, _ = sample_codes(key, jnp.zeros(count, jnp.int32), nets.latent)
    healthy = draw(generator, z1, jnp.zeros((count, nets.latent[1])))
    right = []
    for i in range(3):
        z2 = jax.random.normal(jax.random.fold_in(key, i), (count, nets.latent[1]))
        right.append(np.asarray(judge(frozen, draw(generator, z1, z2)) > 0))
    return {
        "negative_agreement": float(np.mean(np.asarray(judge(frozen, healthy)) <= 0)),
        "positive_agreement": float(np.mean(right)),
        "healthy": np.asarray(healthy),
    }


@functools.cache
def _programs(nets: Nets) -> tuple[Callable, Callable, Callable]:
    """Generator, margin and probability of the classifier, each of its variables and the rest; one
    compilation for the runs of all seeds and controls."""

    def judge(frozen: PyTree, images: jax.Array) -> jax.Array:
        return margin(nets.classifier.apply(frozen, images))

    return (codes.applied(nets.generator), jax.jit(judge),
            lambda frozen, images: jax.nn.sigmoid(judge(frozen, images)))


def diversity(images: np.ndarray, count: int = 200) -> float:
    """Mean pairwise L2 distance of the first `count` images."""
    flat = images[:count].reshape(min(count, len(images)), -1).astype(np.float64)
    squared = (flat**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * flat @ flat.T, 0))
    return float(distances.sum() / (len(flat) * (len(flat) - 1)))


def guards(
    generated: dict[str, Any],
    negatives: np.ndarray,
    images: np.ndarray,
    positive: np.ndarray,
    margins: np.ndarray,
) -> dict[str, float]:
    """Quality of the generator and of the inversion.

    Args:
      generated: of `disentanglement`.
      negatives: real images that the classifier calls negative.
      images: inverted images.
      positive: their reconstructions.
      margins: of image, reconstruction, negative and edited image, ``[4, images]``.

    Returns:
      Diversity of ``G(z1, 0)`` over that of real negatives; mean squared error of the inversion
      over the variance of the images around their mean; agreements; share of images whose class the
      reconstruction keeps, the negative flips, and the edited image flips.
    """
    error = float(np.mean((positive - images) ** 2))
    variance = float(np.mean((images - images.mean(axis=0)) ** 2))
    return {
        "diversity": diversity(generated["healthy"]) / diversity(negatives),
        "inversion": error / variance,
        "inversion_mse": error,
        "negative_agreement": generated["negative_agreement"],
        "positive_agreement": generated["positive_agreement"],
        "class_kept": float(np.mean((margins[1] > 0) == (margins[0] > 0))),
        "class_flipped": float(np.mean(margins[2] <= 0)),
        "edited_flipped": float(np.mean(margins[3] <= 0)),
    }


def failed(values: dict[str, float]) -> list[str]:
    """Names of the guards that do not hold."""
    return [
        name
        for name, (sign, limit) in GUARDS.items()
        if not (values[name] >= limit if sign == ">=" else values[name] <= limit)
    ]


def preservation(
    positive: np.ndarray, negative: np.ndarray, healthy: np.ndarray, masks: np.ndarray
) -> dict[str, float]:
    """How much the anatomy changes with the class, and how close the negative comes to the truth.

    Args:
      positive: generated images ``[images, h, w, 1]`` in [-1, 1]; `negative` likewise.
      healthy: the true healthy images.
      masks: of the lesions, boolean ``[images, h, w]``.

    Returns:
      ``outside_inside``: mean absolute difference of the generated pair outside the lesion
      (enlarged by 2 pixels) over that inside; ``outside_similarity``: their mean structural
      similarity there (SSIM, 1 for equal images), of windows that do not reach into the lesion;
      ``healthy_error``: mean absolute difference of negative and true healthy image inside the
      lesion, in [-1, 1].
    """
    change = localise.magnitude(positive - negative)
    near = localise.dilate(masks, 2)
    similar = np.asarray(pixel.ssim_map((jnp.asarray(positive) + 1) / 2,
                                        (jnp.asarray(negative) + 1) / 2))
    reach = (masks.shape[1] - similar.shape[1]) // 2
    outside = ~localise.dilate(masks, 2 + reach)[:, reach:-reach, reach:-reach]
    return {
        "outside_inside": float(change[~near].mean() / max(change[masks].mean(), 1e-12)),
        "outside_similarity": float(similar[outside].mean()),
        "healthy_error": float(localise.magnitude(negative - healthy)[masks].mean()),
    }
