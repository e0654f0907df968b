"""Explanations along a path of generated images: latent integrated gradients, differences, shifts.

Dravid, Schiffers, Gong and Katsaggelos, "medXGAN: Visual Explanations for Medical Classifiers
through a Generative Latent Space", CVPR workshops 2022. A generator draws the positive image and
its negative counterpart; what changes between them is what the classifier sees as the disease.

``generate`` is a pure function of codes ``[batch, dimension]`` to images ``[batch, h, w, c]``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medical.explain.gradients import Score, gradient

Generate = Callable[[jax.Array], jax.Array]


class Path(NamedTuple):
    """Images on the straight line between two codes.

    Attributes:
      alpha: ``[points]`` from 0 (negative end) to 1 (positive end).
      images: ``[points, batch, h, w, c]``; the ends are the images of the given codes, bit for bit.
      scores: ``[points, batch]``.
    """

    alpha: jax.Array
    images: jax.Array
    scores: jax.Array


def interpolate(
    score: Score, generate: Generate, negative: jax.Array, positive: jax.Array, points: int = 11
) -> Path:
    """Images and scores on the line from code `negative` to code `positive`, ``[batch, d]``."""
    if points < 2:
        raise ValueError(f"a path needs at least 2 points, got {points}")
    alpha = jnp.linspace(0.0, 1.0, points, dtype=positive.dtype)

    def one(_: None, a: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        image = generate(_between(negative, positive, a))
        return None, (image, score(image))

    _, (images, scores) = jax.lax.scan(one, None, alpha)
    return Path(alpha, images, scores)


def difference(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """medXGAN's difference map of generated images in [-1, 1], ``[batch, h, w, c]`` in [0, 1].

    As in the released code: ``(positive - negative + 1) / 2``, over its maximum in each image,
    negative values cut. For localisation use the plain ``positive - negative``: the shift makes
    every unchanged pixel grey.
    """
    shifted = (positive - negative + 1) / 2
    return jnp.maximum(shifted / jnp.max(shifted, axis=(1, 2, 3), keepdims=True), 0)


def path_integral(
    score: Score, generate: Generate, negative: jax.Array, positive: jax.Array, points: int = 50
) -> jax.Array:
    """Complete latent integrated gradients: the integral of the gradient along the images' path.

    ``sum_k gradient(x(a_k + h / 2)) * (x(a_k + h) - x(a_k))`` with ``x(a) = generate(z(a))`` and a
    fixed score. Its sum over an image converges to ``score(x_positive) - score(x_negative)``, which
    the published form does not.

    Args:
      score: see the package; a fixed class.
      generate: see the module.
      negative: codes ``[batch, d]`` of the negative end.
      positive: codes of the positive end.
      points: steps of the path, computed one after the other.

    Returns:
      Signed attributions ``[batch, h, w, c]``.
    """
    edges = jnp.linspace(0.0, 1.0, points + 1, dtype=positive.dtype)
    start = generate(negative)

    def one(carry: tuple, ends: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        total, image = carry
        low, high = ends
        after = generate(_between(negative, positive, high))
        middle = generate(_between(negative, positive, (low + high) / 2))
        return (total + gradient(score, middle) * (after - image), after), None

    (total, _), _ = jax.lax.scan(one, (jnp.zeros_like(start), start), (edges[:-1], edges[1:]))
    return total


def lig(
    score: Score, generate: Generate, negative: jax.Array, positive: jax.Array, points: int = 11
) -> jax.Array:
    """Latent integrated gradients by the paper's formula, with a fixed score.

    ``(x_positive - x_negative) * mean_k gradient(x(a_k))`` over `points` equal steps of ``a`` from
    0 to 1, ends included. The displacement is that of the ends, not of each step, so it is complete
    only where the generator is linear. Arguments as in `path_integral`.
    """
    path = interpolate(score, generate, negative, positive, points)
    return _lig(score, path)


def lig_as_released(
    logits: Callable[[jax.Array], jax.Array],
    generate: Generate,
    negative: jax.Array,
    positive: jax.Array,
    points: int = 11,
) -> jax.Array:
    """LIG as the released code computes it: the class explained is the largest at *each* point.

    Where the class flips along the path, the sign of the gradients flips too and they cancel. The
    result is over its maximum in each image. `logits` returns ``[batch, classes]``.
    """

    def largest(images: jax.Array) -> jax.Array:
        return jnp.max(logits(images), axis=-1)

    path = interpolate(largest, generate, negative, positive, points)
    found = _lig(largest, path)
    peak = jnp.max(found, axis=(1, 2, 3), keepdims=True)
    return found / jnp.where(peak == 0, 1, peak)


def latent_shift(
    score: Score, generate: Generate, code: jax.Array, shifts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Images of a code moved along the gradient of the score, and the map of their change.

    Cohen et al., "Gifsplanation via Latent Shift", MIDL 2021: ``x(s) = generate(z + s dscore/dz)``;
    the map is the largest absolute change to the unshifted image over the shifts.

    Args:
      score: see the package.
      generate: see the module.
      code: ``[batch, d]``.
      shifts: ``[points]`` or ``[points, batch]``; negative values lower the score.

    Returns:
      Images ``[points, batch, h, w, c]`` and the map ``[batch, h, w, c]``.
    """
    slope = jax.grad(lambda z: jnp.sum(score(generate(z))))(code)
    whole = generate(code)
    table = jnp.broadcast_to(shifts.reshape(shifts.shape[0], -1), (shifts.shape[0], len(code)))
    _, images = jax.lax.scan(lambda _, s: (None, generate(code + s[:, None] * slope)), None, table)
    return images, jnp.max(jnp.abs(images - whole[None]), axis=0)


def calibrated_shifts(
    score: Score, generate: Generate, code: jax.Array, drop: float, points: int = 9, tries: int = 24
) -> jax.Array:
    """Shifts ``[points, batch]`` from the one that lowers the score by `drop` up to 0.

    The step doubles from 1e-3 until the score has dropped enough, as the search of the published
    code does; where no step of `tries` does, the largest is kept.
    """
    slope = jax.grad(lambda z: jnp.sum(score(generate(z))))(code)
    whole = score(generate(code))

    def one(found: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
        reached = whole - score(generate(code + found[:, None] * slope)) >= drop
        return jnp.where(reached, found, -step), None

    steps = 1e-3 * 2.0 ** jnp.arange(tries, dtype=code.dtype)
    largest, _ = jax.lax.scan(one, jnp.zeros(len(code), code.dtype), steps)
    return jnp.linspace(1.0, 0.0, points, dtype=code.dtype)[:, None] * largest[None]


def _between(negative: jax.Array, positive: jax.Array, alpha: jax.Array) -> jax.Array:
    """The code at `alpha`; exactly `negative` at 0 and `positive` at 1."""
    return jnp.where(alpha == 1, positive, negative + alpha * (positive - negative))


def _lig(score: Score, path: Path) -> jax.Array:
    def one(total: jax.Array, image: jax.Array) -> tuple[jax.Array, None]:
        return total + gradient(score, image), None

    total, _ = jax.lax.scan(one, jnp.zeros_like(path.images[0]), path.images)
    return (path.images[-1] - path.images[0]) * total / len(path.images)
