"""All maps of one batch of images, computed in one program: what the localisation table compares.

Each map explains one number, the classifier's margin for the positive class, and is given as
magnitudes ``[batch, h, w]``.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from medical.explain import grad_cam, gradients, latent, localise, occlusion
from medical.medxgan.losses import margin
from medical.medxgan.train import Nets, PyTree

TITLES = {
    "saliency": "saliency",
    "smooth_grad": "SmoothGrad",
    "grad_cam": "Grad-CAM",
    "grad_cam_released": "Grad-CAM as released",
    "occlusion": "occlusion",
    "ig_black": "IG, black baseline",
    "ig_grey": "IG, mid-grey baseline",
    "latent_shift": "latent shift",
    "difference": "medXGAN difference",
    "residual": "image less G(z1, 0)",
    "lig": "LIG (paper)",
    "lig_path": "LIG, complete path",
    "ig_negative": "IG, baseline G(z1, 0)",
    "ig_edited": "IG, baseline image less difference",
    "prior": "location prior",
    "random": "random",
    "oracle": "image less truth",
}
GENERATIVE = ("difference", "residual", "lig", "lig_path", "ig_negative", "ig_edited")


class Explained(NamedTuple):
    """Maps and the generated pair of each image.

    Attributes:
      maps: name to ``[batch, h, w]``.
      positive: ``G(z1, z2)``, ``[batch, h, w, c]``.
      negative: ``G(z1, 0)``.
      margins: of the image, positive, negative and edited image, ``[4, batch]``.
    """

    maps: dict[str, np.ndarray]
    positive: np.ndarray
    negative: np.ndarray
    margins: np.ndarray


def explain(
    nets: Nets,
    frozen: PyTree,
    generator: PyTree,
    images: np.ndarray,
    codes: tuple[np.ndarray | jax.Array, np.ndarray | jax.Array],
    key: jax.Array,
    points: int = 50,
    smooth: float = 0.1,
    negative: tuple[jax.Array, jax.Array] | None = None,
) -> Explained:
    """Explains a batch.

    Args:
      nets: networks.
      frozen: variables of the classifier.
      generator: variables of the generator.
      images: ``[batch, h, w, c]`` in [-1, 1].
      codes: of the inversion, ``[batch, d1]`` and ``[batch, d2]``.
      key: random key of SmoothGrad's noise.
      points: of each path integral; LIG of the paper takes 11.
      smooth: deviation of SmoothGrad's noise.
      negative: codes of the negative counterparts; None: those of the images with z2 = 0.
    """
    z1, z2 = jnp.asarray(codes[0]), jnp.asarray(codes[1])
    without = (z1, jnp.zeros_like(z2)) if negative is None else negative
    signed, cams, drawn, margins = _program(nets, points, smooth)(
        frozen, generator, jnp.asarray(images), (z1, z2), without, key)
    found = {name: localise.magnitude(values) for name, values in signed.items()}
    size = (images.shape[1], images.shape[2])
    found |= {name: np.maximum(np.asarray(grad_cam.enlarge(values, size), np.float64), 0)
              for name, values in cams.items()}
    return Explained(found, np.asarray(drawn[0]), np.asarray(drawn[1]), np.asarray(margins))


def references(
    images: np.ndarray, healthy: np.ndarray, training_masks: np.ndarray
) -> dict[str, np.ndarray]:
    """Maps that look at no classifier: where lesions were in training, and the truth."""
    prior = ndimage.gaussian_filter(training_masks.mean(axis=0), 1.0)
    return {
        "prior": np.broadcast_to(prior, images.shape[:3]).copy(),
        "oracle": localise.magnitude(images - healthy),
    }


@functools.cache
def _program(nets: Nets, points: int, smooth: float) -> Callable:
    """The jitted program; one compilation for the runs of all seeds and controls."""
    return jax.jit(functools.partial(_explain, nets, points, smooth))


def _explain(
    nets: Nets, points: int, smooth: float, frozen: PyTree, generator: PyTree, images: jax.Array,
    codes: tuple[jax.Array, jax.Array], others: tuple[jax.Array, jax.Array], key: jax.Array,
) -> tuple:
    net = nets.classifier

    def score(x: jax.Array) -> jax.Array:
        return margin(net.apply(frozen, x))

    def generate(codes: jax.Array) -> jax.Array:
        one, two = codes[:, : nets.latent[0]], codes[:, nets.latent[0] :]
        return nets.generator.apply(generator, one, two)

    def head(features: jax.Array) -> jax.Array:
        return margin(net.apply(frozen, features, method="head"))

    with_disease = jnp.concatenate(codes, axis=-1)
    without = jnp.concatenate(others, axis=-1)
    positive, negative = generate(with_disease), generate(without)
    edited = jnp.clip(images - (positive - negative), -1, 1)
    window = max(images.shape[1] // 8, 2)
    features = net.apply(frozen, images, method="features")

    def ig(baseline: jax.Array) -> jax.Array:
        return gradients.integrated_gradients(score, images, baseline, points)

    shifts = latent.calibrated_shifts(score, generate, with_disease, drop=4.0)
    occluded = occlusion.occlusion(
        score, images, (window, window), (max(window // 2, 1),) * 2, baseline=0.0)
    signed = {
        "saliency": gradients.saliency(score, images),
        "smooth_grad": gradients.smooth_grad(score, images, key, smooth),
        "occlusion": occluded[..., None],
        "ig_black": ig(-jnp.ones_like(images)),
        "ig_grey": ig(jnp.zeros_like(images)),
        "latent_shift": latent.latent_shift(score, generate, with_disease, shifts)[1],
        "difference": positive - negative,
        "residual": images - negative,
        "lig": latent.lig(score, generate, without, with_disease, 11),
        "lig_path": latent.path_integral(score, generate, without, with_disease, points),
        "ig_negative": ig(negative),
        "ig_edited": ig(edited),
    }
    cams = {
        "grad_cam": grad_cam.grad_cam(head, features),
        "grad_cam_released": grad_cam.as_released(head, features),
    }
    margins = jnp.stack([score(x) for x in (images, positive, negative, edited)])
    return signed, cams, (positive, negative), margins
