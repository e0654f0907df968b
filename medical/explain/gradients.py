"""Explanations from gradients in pixel space: saliency, SmoothGrad, integrated gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Score = Callable[[jax.Array], jax.Array]

RULES = ("gausslegendre", "riemann_trapezoid", "riemann_middle", "riemann_left", "riemann_right")


def gradient(score: Score, images: jax.Array) -> jax.Array:
    """Derivative of each image's score with respect to that image, ``[batch, h, w, c]``."""
    return jax.grad(lambda x: jnp.sum(score(x)))(images)


def saliency(score: Score, images: jax.Array) -> jax.Array:
    """Absolute gradient, ``[batch, h, w, c]`` (Simonyan, Vedaldi and Zisserman, 2013)."""
    return jnp.abs(gradient(score, images))


def smooth_grad(
    score: Score,
    images: jax.Array,
    key: jax.Array,
    deviation: float,
    samples: int = 25,
    square: bool = False,
) -> jax.Array:
    """Mean of the gradients at noisy copies of the images.

    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, eq. 2.

    Args:
      score: see the package.
      images: ``[batch, h, w, c]``.
      key: random key of the noise.
      deviation: of the noise, in units of the pixel values.
      samples: noisy copies of each image; they are computed one after the other.
      square: mean of squared gradients (Hooker et al., NeurIPS 2019) instead of plain ones.

    Returns:
      ``[batch, h, w, c]``, signed unless squared.
    """

    def one(total: jax.Array, each: jax.Array) -> tuple[jax.Array, None]:
        noise = deviation * jax.random.normal(each, images.shape, images.dtype)
        found = gradient(score, images + noise)
        return total + (found * found if square else found), None

    total, _ = jax.lax.scan(one, jnp.zeros_like(images), jax.random.split(key, samples))
    return total / samples


def nodes(rule: str, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a quadrature of [0, 1], each ``[points]``; the weights sum to 1.

    Args:
      rule: one of `RULES`; Gauss-Legendre is exact for polynomials of degree ``2 points - 1``.
      points: number of nodes.

    Raises:
      ValueError: unknown rule or too few points.
    """
    if points < 1 or (rule == "riemann_trapezoid" and points < 2):
        raise ValueError(f"{points} points are too few for the rule {rule!r}")
    if rule == "gausslegendre":
        places, weights = np.polynomial.legendre.leggauss(points)
        return (places + 1) / 2, weights / 2
    uniform = np.full(points, 1 / points)
    if rule == "riemann_middle":
        return (np.arange(points) + 0.5) / points, uniform
    if rule == "riemann_left":
        return np.arange(points) / points, uniform
    if rule == "riemann_right":
        return (np.arange(points) + 1) / points, uniform
    if rule == "riemann_trapezoid":
        weights = np.full(points, 1 / (points - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, points), weights
    raise ValueError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")


def integrated_gradients(
    score: Score,
    images: jax.Array,
    baseline: jax.Array,
    points: int = 50,
    rule: str = "gausslegendre",
) -> jax.Array:
    """``(x - b) * integral of the gradient at b + a (x - b) over a in [0, 1]``.

    Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, eq. 1. The sum
    over an image equals ``score(x) - score(b)`` up to the error of the quadrature.

    Args:
      score: see the package.
      images: ``[batch, h, w, c]``.
      baseline: of the same shape; for example black, or a generated negative of each image.
      points: gradients for each image; they are computed one after the other.
      rule: see `nodes`.

    Returns:
      Signed attributions ``[batch, h, w, c]``.
    """
    if baseline.shape != images.shape:
        raise ValueError(f"baseline {baseline.shape} for images {images.shape}")
    places, weights = nodes(rule, points)
    step = images - baseline

    def one(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, weight = node
        return total + weight * gradient(score, baseline + place * step), None

    table = jnp.asarray(places, images.dtype), jnp.asarray(weights, images.dtype)
    total, _ = jax.lax.scan(one, jnp.zeros_like(images), table)
    return step * total
