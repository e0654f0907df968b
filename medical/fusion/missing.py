"""Absent modalities: what stands in their place, dropout of them, and what their absence tells."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy import stats

POLICIES = ("mean", "zeros", "learned")


class Present(struct.PyTreeNode):
    """Which modalities each patient has: boolean ``[batch]`` each."""

    image: jax.Array
    clinical: jax.Array


class Fill(struct.PyTreeNode):
    """What stands in place of an absent image ``[h, w, c]`` or absent variables ``[n]``."""

    image: jax.Array
    clinical: jax.Array


class Association(NamedTuple):
    """Whether absence depends on the class.

    Attributes:
      p: of the exact (permutation of the chi-squared statistic) test of independence.
      strength: Cramer's V, 0 for independence and 1 where absence tells the class.
      share: class to the share of patients without the modality.
    """

    p: float
    strength: float
    share: dict[int, float]


def fill_of(images: np.ndarray, clinical: np.ndarray, policy: str) -> Fill:
    """Stand-ins from the training set.

    Args:
      images: training images ``[n, h, w, c]``.
      clinical: training variables ``[n, variables]``.
      policy: "mean" of the training set, "zeros" after normalisation, or "learned" (the network
        replaces the features; the input is the mean and does not matter).
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    image, table = images.mean(axis=0), clinical.mean(axis=0)
    if policy == "zeros":
        image, table = np.zeros_like(image), np.zeros_like(table)
    return Fill(jnp.asarray(image, jnp.float32), jnp.asarray(table, jnp.float32))


def fill(
    images: jax.Array, clinical: jax.Array, present: Present, stand_in: Fill
) -> tuple[jax.Array, jax.Array]:
    """Images and variables with the stand-ins where they are absent."""
    images = jnp.where(present.image[:, None, None, None], images, stand_in.image[None])
    return images, jnp.where(present.clinical[:, None], clinical, stand_in.clinical[None])


def drop(key: jax.Array, present: Present, image: float, clinical: float) -> Present:
    """Modality dropout: hides a modality at random, but never the last one of a patient.

    Args:
      key: random key.
      present: what each patient has.
      image: probability to hide the image; `clinical` likewise. Their sum is at most 1: one of the
        two is hidden, or none.
    """
    if image < 0 or clinical < 0 or image + clinical > 1:
        raise ValueError(f"probabilities {image} and {clinical} must not exceed 1 together")
    draw = jax.random.uniform(key, present.image.shape)
    hide_image = (draw < image) & present.clinical
    hide_clinical = (draw >= image) & (draw < image + clinical) & present.image
    return Present(present.image & ~hide_image, present.clinical & ~hide_clinical)


def association(
    labels: np.ndarray, absent: np.ndarray, rng: np.random.Generator, draws: int = 5000
) -> Association:
    """Tests whether a modality is absent at random with respect to the class.

    Where it is not, absence itself predicts the outcome: report results with the absence visible
    and hidden.

    Args:
      labels: ``[n]`` classes.
      absent: boolean ``[n]``.
      rng: source of the permutations.
      draws: number of permutations.
    """
    labels, absent = np.asarray(labels), np.asarray(absent, bool)
    classes, index = np.unique(labels, return_inverse=True)
    share = {int(c): float(absent[index == i].mean()) for i, c in enumerate(classes)}
    if absent.all() or not absent.any() or len(classes) < 2:
        return Association(1.0, 0.0, share)

    def statistic(flags: np.ndarray) -> float:
        table = np.stack([np.bincount(index, ~flags), np.bincount(index, flags)])
        return float(stats.chi2_contingency(table, correction=False).statistic)

    found = statistic(absent)
    reached = sum(statistic(rng.permutation(absent)) >= found - 1e-9 for _ in range(draws))
    strength = float(np.sqrt(found / len(labels)))
    return Association((reached + 1) / (draws + 1), strength, share)
