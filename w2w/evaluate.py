"""Scores of generated faces by networks that know nothing of the models judged.

Identity is the cosine of face descriptors (dlib's recogniser, :mod:`common.nets.face_recogniser`)
after subtracting the mean descriptor of the training photographs; unlike the raw cosine, which is
above 0.8 for any two faces, it is near 0 for strangers.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from common.metrics import distribution, pixel
from common.nets import age_gender, expression, face_recogniser, lpips

_recogniser = functools.cache(face_recogniser.load_params)
_age_gender = functools.cache(age_gender.load_params)
_expression = functools.cache(expression.load_params)


def describe(images: np.ndarray) -> np.ndarray:
    """Face descriptors ``[..., 128]`` of images ``[..., size, size, 1]`` (uint8 or in [0, 1])."""
    flat = images.reshape(-1, *images.shape[-3:])
    found = face_recogniser.embed_all(_recogniser(), flat)
    return found.reshape(*images.shape[:-3], -1)


def unit(descriptors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Centred descriptors of length 1."""
    shifted = descriptors - centre
    return shifted / np.linalg.norm(shifted, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Held-out photographs of the people that models are judged against.

    Attributes:
      references: centred unit descriptors ``[P, m, 128]``.
      centre: ``[128]``.
    """

    references: np.ndarray
    centre: np.ndarray

    @property
    def templates(self) -> np.ndarray:
        """Mean reference of each person, of length 1, ``[P, 128]``."""
        mean = self.references.mean(axis=1)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    def describe(self, images: np.ndarray) -> np.ndarray:
        """Centred unit descriptors ``[..., 128]`` of images ``[..., size, size, 1]``."""
        return unit(describe(images), self.centre)

    def id_scores(self, found: np.ndarray) -> np.ndarray:
        """Cosine of each image to its person's template, ``[P, n]``.

        Args:
          found: descriptors of the images, ``[P, n, 128]``, from :meth:`describe`.
        """
        return np.einsum("pnd,pd->pn", found, self.templates)

    def rank1(self, found: np.ndarray) -> float:
        """Share of images nearest to the right person, with one reference photograph of each.

        Averaged over which of the reference photographs is the one.

        Args:
          found: descriptors of the images, ``[P, n, 128]``, from :meth:`describe`.
        """
        people = np.arange(len(found))[:, None]
        hits = [
            np.argmax(np.einsum("pnd,qd->pnq", found, self.references[:, m]), axis=-1) == people
            for m in range(self.references.shape[1])
        ]
        return float(np.mean(hits))


def summary(scores: np.ndarray) -> dict[str, float]:
    """Mean over people of ``scores [P, n]``, and the standard error over people."""
    person = scores.mean(axis=1)
    return {
        "mean": float(person.mean()),
        "standard_error": float(person.std(ddof=1) / np.sqrt(len(person))),
    }


ATTRIBUTES = ("male", "smiling", "age")


def attribute_values(images: np.ndarray) -> dict[str, np.ndarray]:
    """Each of :data:`ATTRIBUTES` for images ``[..., size, size, 1]``, shape ``[...]``.

    ``male`` and ``smiling`` are probabilities, ``age`` is in years.
    """
    flat = images.reshape(-1, *images.shape[-3:])
    male_age = age_gender.predict_all(_age_gender(), flat)
    feelings = expression.predict_all(_expression(), flat)
    values = {"male": male_age[1], "smiling": feelings[:, 1], "age": male_age[0]}
    return {name: np.asarray(v).reshape(images.shape[:-3]) for name, v in values.items()}


def monotone_share(values: np.ndarray) -> float:
    """Share of neighbouring strengths between which ``values [..., strengths]`` increase."""
    return float(np.mean(np.diff(values, axis=-1) > 0))


def diversity(found: np.ndarray) -> float:
    """Mean of 1 - cosine over all pairs of centred unit descriptors ``[n, d]``."""
    cosines = found @ found.T
    return float(1.0 - cosines[np.triu_indices(len(found), 1)].mean())


def distances(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """How far ``fake [n, d]`` features are from ``real [m, d]`` as distributions.

    The kernel distance is unbiased at any size; the Frechet distance is biased upwards for small
    sets, so ``frechet_floor`` gives that of ``n`` of the real vectors from all the others.
    """
    precision, recall = distribution.precision_recall(real, fake)
    density, coverage = distribution.density_coverage(real, fake)
    some = np.zeros(len(real), bool)
    some[np.linspace(0, len(real) - 1, min(len(fake), len(real) // 2)).astype(int)] = True
    return {
        "kid": distribution.kid(real, fake).value,
        "frechet": distribution.frechet_from_features(real, fake),
        "frechet_floor": distribution.frechet_from_features(real[~some], real[some]),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def reconstruction(images: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR, SSIM and LPIPS of reconstructions ``[n, size, size, 1]`` in [0, 1], and identity.

    ``identity`` is the mean cosine of the descriptors, centred on those of ``truth``;
    ``identity_chance`` is that of each image to the next photograph of somebody.
    """
    found, known = describe(images), describe(truth)
    centre = known.mean(axis=0)
    found, known = unit(found, centre), unit(known, centre)
    distance = lpips.lpips(lpips.load_params("alex"), jnp.asarray(images), jnp.asarray(truth))
    return {
        "psnr": float(np.mean(pixel.psnr(jnp.asarray(images), jnp.asarray(truth)))),
        "ssim": float(np.mean(pixel.ssim(jnp.asarray(images), jnp.asarray(truth)))),
        "lpips": float(np.mean(distance)),
        "identity": float(np.mean(np.sum(found * known, axis=-1))),
        "identity_chance": float(np.mean(np.sum(found * np.roll(known, 37, axis=0), axis=-1))),
    }
