"""The square around the lungs of a chest X-ray, from a segmentation of any origin.

The rule of DeepCOVID-XR's released preprocessing (Wehbe et al., Radiology 2021): the two largest
parts of the mask, their box with a margin, mirrored about the spine where both lie on one side, and
grown to a square. Sizes in pixels are meant for images of 256 pixels and scale with the image.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Crop(NamedTuple):
    """A square, and how it was found.

    Attributes:
      top: first row.
      left: first column.
      side: rows and columns.
      parts: parts of the mask that were used: 2, 1 or 0; with 0 the largest central square of the
        image is returned.
      mirrored: whether the box was mirrored about the spine.
    """

    top: int
    left: int
    side: int
    parts: int
    mirrored: bool

    def of(self, image: np.ndarray) -> np.ndarray:
        """That part of an image ``[h, w, ...]``."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


def lung_crop(mask: np.ndarray, image: np.ndarray) -> Crop:
    """Finds the square.

    Args:
      mask: boolean ``[h, w]``: lung.
      image: ``[h, w]``, bright where tissue absorbs; the spine is the brightest column of the
        middle third.
    """
    if mask.shape != image.shape or mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"need a boolean mask and an image [h, w], got {mask.shape} {mask.dtype}"
                         f" and {image.shape}")
    height, width = mask.shape
    scale = max(height, width) / 256
    opening = np.ones((max(round(5 * scale), 1),) * 2, bool)
    labels, count = ndimage.label(ndimage.binary_opening(mask, opening))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = [i + 1 for i in np.argsort(-areas)[:2] if areas[i] >= 0.02 * mask.size]
    if not kept:
        side = min(height, width)
        return Crop((height - side) // 2, (width - side) // 2, side, 0, False)
    rows, columns = np.nonzero(np.isin(labels, kept))
    pad = round(8 * scale)
    top, bottom = max(int(rows.min()) - pad, 0), min(int(rows.max()) + 1 + pad, height)
    left, right = max(int(columns.min()) - pad, 0), min(int(columns.max()) + 1 + pad, width)
    spine = width // 3 + int(np.argmax(image[:, width // 3 : 2 * width // 3 + 1].sum(axis=0)))
    # A lung that is seen on one side only would leave the other one out of the picture.
    one_sided = spine <= left + pad or right - pad <= spine
    if one_sided:
        left, right = min(left, 2 * spine - right), max(right, 2 * spine - left)
        left, right = max(left, 0), min(right, width)
    side = min(max(bottom - top, right - left), height, width)
    return Crop(_start(top, bottom, side, height), _start(left, right, side, width), side,
                len(kept), one_sided)


def _start(first: int, last: int, side: int, size: int) -> int:
    """First pixel of `side` pixels about the middle of ``first .. last``, inside ``0 .. size``."""
    return int(np.clip((first + last - side) // 2, 0, size - side))
