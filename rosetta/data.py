"""Photographs of faces for inversion, framed as the face generator frames its own."""

import numpy as np
from PIL import Image

from common import datasets

__all__ = ["photographs"]

# Square of an aligned 178 x 218 CelebA photograph: head and some background, in pixels.
_SQUARE = (9.0, 38.0, 169.0, 198.0)


def photographs(count: int, size: int) -> np.ndarray:
    """The first CelebA photographs, `[count, size, size, 3]` in [0, 1].

    Raises:
      registry.RegistryError: they cannot be obtained.
      ValueError: more are wanted than there are.
    """
    if count == 0:
        return np.zeros((0, size, size, 3), np.float32)
    found = datasets.celeba_photos()
    if count > len(found):
        raise ValueError(f"{count} photographs of {len(found)}")
    resized = [
        Image.fromarray(photo).resize((size, size), Image.Resampling.BICUBIC, box=_SQUARE)
        for photo in found[:count]
    ]
    return np.stack([np.asarray(image) for image in resized]).astype(np.float32) / 255
