"""Principal components of the images as the fixed maps of `models.Principal`.

Gradient descent on an autoencoder learns the directions of the data in the order of their variance
(Baldi and Hornik, "Neural networks and principal component analysis", 1989; Saxe et al., "Exact
solutions to the nonlinear dynamics of learning in deep linear neural networks", ICLR 2014): the
details of larger images come last, after more steps than there are. The best linear autoencoder is
known beforehand, so a network may begin there and learn what is not linear.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ign import augment
from ign.train import to_signed

PyTree = Any
_LIMIT = 0.98  # of |pixel|: where the output's tanh is inverted, since 1 has no finite inverse
_MOST = 8192  # images that components are fitted to


class Components(NamedTuple):
    """Linear autoencoder of images in [-1, 1].

    Attributes:
        encoder: `[pixels, latent]`, orthonormal columns in the order of their variance.
        encoder_bias: `[latent]`; codes of the images have the mean 0.
        decoder: `[latent, pixels]`, the least-squares map from the code to the inverse tanh of the
            image.
        decoder_bias: `[pixels]`.
        deviation: `[latent]`, standard deviations of the codes.
    """

    encoder: np.ndarray
    encoder_bias: np.ndarray
    decoder: np.ndarray
    decoder_bias: np.ndarray
    deviation: np.ndarray

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[n, latent]` as flat images `[n, pixels]` in [-1, 1]."""
        return np.tanh(codes @ self.decoder + self.decoder_bias)

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """What the linear autoencoder makes of images `[n, h, w, c]` in [-1, 1]: the same shape."""
        codes = images.reshape(len(images), -1) @ self.encoder + self.encoder_bias
        return self.decode(codes).reshape(images.shape)

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Flat images `[count, pixels]` of codes from a Gaussian with the images' deviations."""
        codes = self.deviation * rng.standard_normal((count, len(self.deviation)))
        return self.decode(codes.astype(np.float32))


def fit(images: np.ndarray, latent: int, distortion: float = 0.0, copies: int = 3) -> Components:
    """Components of `images`, on the host.

    Args:
        images: uint8 or in [-1, 1], `[count, height, width, channels]`; at most the first 8,192
            are used.
        latent: number of components.
        distortion: strength of random distortions (see `augment.affine`) of `copies` more of each
            image, which share the number above; 0 for none.
        copies: see `distortion`.

    Raises:
        ValueError: there are fewer images (with their copies) than components.
    """
    x = to_signed(jnp.asarray(images[: _MOST // (copies + 1 if distortion else 1)]))
    parts = [np.asarray(x)]
    if distortion:
        move = jax.jit(augment.affine, static_argnums=2)
        keys = jax.random.split(jax.random.key(0), copies)
        parts += [np.asarray(move(x, key, distortion)) for key in keys]
    flat = np.concatenate(parts).reshape(len(parts) * len(x), -1)
    if min(flat.shape) < latent:
        raise ValueError(f"{latent} components of {flat.shape[0]} images of {flat.shape[1]} pixels")
    mean = flat.mean(axis=0)
    centred = flat - mean
    encoder = _directions(centred, latent)
    code = centred @ encoder
    inverse = np.arctanh(np.clip(flat, -_LIMIT, _LIMIT))
    bias = inverse.mean(axis=0)
    # The columns of the code are orthogonal, so the normal equations are diagonal.
    decoder = code.T @ (inverse - bias) / np.maximum(np.square(code).sum(axis=0), 1e-12)[:, None]
    found = (encoder, -mean @ encoder, decoder, bias, code.std(axis=0))
    return Components(*(a.astype(np.float32) for a in found))


def start(params: Mapping[str, PyTree], found: Components) -> dict[str, PyTree]:
    """Parameters of a network with `principal`, or of a population of them, with these maps.

    Raises:
        KeyError: the network has no such maps.
    """
    own = {
        name: jnp.broadcast_to(getattr(found, name), old.shape)
        for name, old in params["principal"].items()
    }
    return {**params, "principal": own}


def _directions(centred: np.ndarray, count: int) -> np.ndarray:
    """The `count` leading right singular vectors of `[n, d]`, `[d, count]`, from the smaller
    product of the matrix with itself."""
    n, d = centred.shape
    smaller = centred.T @ centred if d <= n else centred @ centred.T
    size = len(smaller)
    _, vectors = scipy.linalg.eigh(
        smaller.astype(np.float64), subset_by_index=(size - count, size - 1)
    )
    vectors = vectors[:, ::-1]
    if d > n:
        vectors = centred.T.astype(np.float64) @ vectors
        vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-12)
    return vectors
