"""Images for inversion: photographs of faces, framed as the face generator's, and the user's."""

import os

import numpy as np
from PIL import Image

from common import datasets

__all__ = ["own", "photographs"]

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


def own(folder: str | os.PathLike[str], size: int) -> np.ndarray:
    """The images of a folder, cut to squares and resized, `[count, size, size, 3]` in [0, 1].

    Args:
      folder: see `common.datasets.image_folder`; "" for none.
      size: side in pixels.

    Raises:
      FileNotFoundError: no such folder, or no images in it.
      ValueError: none of them can be read; others that cannot are logged and left out.
    """
    if not folder:
        return np.zeros((0, size, size, 3), np.float32)
    return datasets.image_folder(folder, (size, size)).images.astype(np.float32) / 255
