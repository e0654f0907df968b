"""An ensemble of classifiers as in DeepCOVID-XR: weights by random search, test-time augmentation.

Wehbe et al., "DeepCOVID-XR: An Artificial Intelligence Algorithm to Detect COVID-19 on Chest
Radiographs Trained and Tested on a Large U.S. Clinical Data Set", Radiology 2021. Its members are
six backbones at two sizes on whole and cropped images (`medical.data.lung_crop`); any functions
from images to probabilities do here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Predict = Callable[[jax.Array], jax.Array]
Score = Callable[[np.ndarray, np.ndarray], float]


class Weights(NamedTuple):
    """Attributes:
      weights: ``[members]``, not negative, sum 1.
      score: of the weighted mean on the validation set; `equal` that of the plain mean.
    """

    weights: np.ndarray
    score: float
    equal: float


def combine(weights: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Weighted mean ``[n, classes]`` of members' probabilities ``[members, n, classes]``."""
    weights, probabilities = np.asarray(weights), np.asarray(probabilities)
    if weights.shape != probabilities.shape[:1] or probabilities.ndim != 3:
        raise ValueError(f"{weights.shape} weights for probabilities {probabilities.shape}")
    if not (weights >= 0).all() or not abs(weights.sum() - 1) <= 1e-6:  # also NaN
        raise ValueError(f"weights must not be negative and sum to 1, they sum to {weights.sum()}")
    return np.einsum("m,mnc->nc", weights, probabilities)


def search(
    score: Score, labels: np.ndarray, probabilities: np.ndarray, rng: np.random.Generator,
    draws: int = 1000,
) -> Weights:
    """Weights with the highest score on validation patients, among random ones.

    The draws are uniform on the simplex, and sparser (Dirichlet with concentrations from 1 down to
    1 / members): the published weights are very uneven. The plain mean takes part, so the result is
    never below it on these patients; on others it may be.

    Args:
      score: of labels ``[n]`` and probabilities ``[n, classes]``, higher is better.
      labels: of validation patients, not of the test.
      probabilities: ``[members, n, classes]`` on them.
      rng: source of the draws.
      draws: number of them.
    """
    members = len(probabilities)
    if members < 1 or draws < 0:
        raise ValueError(f"{members} members and {draws} draws")
    equal = np.full(members, 1 / members)
    start = score(labels, combine(equal, probabilities))
    best, value = equal, start
    for concentration in np.geomspace(1, 1 / members, draws):
        weights = rng.dirichlet(np.full(members, concentration))
        found = score(labels, combine(weights / weights.sum(), probabilities))
        if found > value:
            best, value = weights / weights.sum(), found
    return Weights(best, float(value), float(start))


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """The augmentation of DeepCOVID-XR, drawn for each image.

    Rotation by up to 15 degrees, shifts and zoom by up to 5 %, brightness from 0.8 to 1.2, mirrored
    or not; what comes into view has the image's lowest value.

    Args:
      key: random key.
      images: ``[n, h, w, c]`` in [-1, 1].
    """
    keys = jax.random.split(key, len(images))
    return jax.vmap(_augment)(keys, images)


def averaged(predict: Predict, key: jax.Array, images: jax.Array, passes: int = 10) -> jax.Array:
    """Mean of `predict` over augmented images (test-time augmentation), ``[n, classes]``.

    The released evaluation repeats the passes without augmenting; ``passes=0`` is the plain
    prediction.
    """
    if passes < 0:
        raise ValueError(f"{passes} passes")
    if not passes:
        return predict(images)
    keys = jax.random.split(key, passes)
    return jnp.mean(jax.lax.map(lambda k: predict(augment(k, images)), keys), axis=0)


def _augment(key: jax.Array, image: jax.Array) -> jax.Array:
    keys = jax.random.split(key, 5)
    height, width = image.shape[:2]
    angle = jax.random.uniform(keys[0], (), minval=-15.0, maxval=15.0) * jnp.pi / 180
    shift = jax.random.uniform(keys[1], (2,), minval=-0.05, maxval=0.05)
    zoom = jax.random.uniform(keys[2], (2,), minval=0.95, maxval=1.05)
    gain = jax.random.uniform(keys[3], (), minval=0.8, maxval=1.2)
    image = jnp.where(jax.random.bernoulli(keys[4]), image[:, ::-1], image)
    low = jnp.min(image)
    # Each pixel of the result looks up its place in the image.
    y, x = jnp.meshgrid(jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32),
                        indexing="ij")
    middle = jnp.asarray([(height - 1) / 2, (width - 1) / 2])
    dy, dx = (y - middle[0]) * zoom[0], (x - middle[1]) * zoom[1]
    rows = jnp.cos(angle) * dy - jnp.sin(angle) * dx + middle[0] + shift[0] * height
    columns = jnp.sin(angle) * dy + jnp.cos(angle) * dx + middle[1] + shift[1] * width

    def sampled(channel: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(channel - low, [rows, columns], 1) + low

    moved = jnp.stack([sampled(image[..., c]) for c in range(image.shape[2])], axis=-1)
    return jnp.clip((moved + 1) * gain - 1, -1, 1)
