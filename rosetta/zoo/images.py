"""Pre-processing of images for networks of different input sizes and statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CLIP", "IMAGENET", "bicubic", "standardise"]

# Mean and deviation of RGB in [0, 1]: of ImageNet (torchvision), of CLIP's training images.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_A = -0.75  # PyTorch's parameter of the cubic kernel (R. Keys, IEEE ASSP 29, 1981)


def bicubic(images: jax.Array, size: int) -> jax.Array:
    """Resizes `[batch, height, width, channels]` to `size x size` as the published pipeline does.

    It is PyTorch's `interpolate(mode="bicubic", align_corners=False)` without anti-aliasing.
    """
    rows = jnp.asarray(_matrix(images.shape[1], size), images.dtype)
    columns = jnp.asarray(_matrix(images.shape[2], size), images.dtype)
    highest = jax.lax.Precision.HIGHEST
    images = jnp.einsum("oi,bijc->bojc", rows, images, precision=highest)
    return jnp.einsum("pj,bojc->bopc", columns, images, precision=highest)


def standardise(
    images: jax.Array, statistics: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
) -> jax.Array:
    """Subtracts the mean of each channel and divides by its deviation."""
    mean, deviation = (jnp.asarray(x, images.dtype).reshape(1, 1, 1, -1) for x in statistics)
    return (images - mean) / deviation


@functools.cache
def _matrix(source: int, target: int) -> np.ndarray:
    """The matrix `[target, source]` of cubic interpolation along one axis; edges repeat."""
    if source == target:
        return np.eye(source)
    position = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(position).astype(int)
    result = np.zeros((target, source))
    for offset in range(-1, 3):
        t = np.abs(position - first - offset)
        near = ((_A + 2) * t - (_A + 3)) * t**2 + 1
        far = ((_A * t - 5 * _A) * t + 8 * _A) * t - 4 * _A
        weight = np.where(t <= 1, near, far)
        np.add.at(result, (np.arange(target), np.clip(first + offset, 0, source - 1)), weight)
    return result
