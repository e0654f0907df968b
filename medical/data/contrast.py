"""Contrast of radiographs before they are resized: as they are, equalised, or equalised locally.

DeepCOVID-XR equalises the input of its segmentation network (`equalised`), the classifiers of the
four papers take images as they are. Local equalisation is scikit-image's (extra `medical`).
"""

import numpy as np

CONTRASTS = ("none", "equalised", "clahe")


def apply(image: np.ndarray, contrast: str) -> np.ndarray:
    """An image float32 ``[h, w]`` in [0, 1] with another contrast, in [0, 1].

    Args:
      image: to be changed.
      contrast: "none"; "equalised": its histogram becomes flat; "clahe": contrast limited adaptive
        histogram equalisation in 8 x 8 tiles (Zuiderveld, Graphics Gems IV, 1994), with a limit of
        1 % of a tile's pixels in one of 256 bins.

    Raises:
      ValueError: unknown contrast.
    """
    if contrast == "none":
        return image
    if contrast not in CONTRASTS:
        raise ValueError(f"contrast {contrast!r}; known: {', '.join(CONTRASTS)}")
    from skimage import exposure

    if contrast == "equalised":
        return exposure.equalize_hist(image, nbins=256).astype(np.float32)
    return exposure.equalize_adapthist(image, clip_limit=0.01, nbins=256).astype(np.float32)
