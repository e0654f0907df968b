"""The square around the lungs, from masks."""

import numpy as np
import pytest

from medical.data import lung_crop


def lungs(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask of 256 pixels with rectangles (top, bottom, left, right)."""
    mask = np.zeros((256, 256), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


SPINE = np.zeros((256, 256))
SPINE[:, 128] = 1
LEFT, RIGHT = (60, 200, 40, 110), (60, 200, 146, 216)


def test_a_crop_around_two_lungs():
    found = lung_crop.lung_crop(lungs(LEFT, RIGHT), SPINE)
    assert (found.parts, found.mirrored) == (2, False)
    # Columns 40 - 8 to 216 + 8 are wider than the rows: the square takes their length.
    assert (found.left, found.side, found.top) == (32, 192, 34)
    assert found.of(SPINE).shape == (192, 192)


def test_one_lung_is_mirrored_about_the_spine():
    for box in (LEFT, RIGHT):
        found = lung_crop.lung_crop(lungs(box), SPINE)
        assert (found.parts, found.mirrored) == (1, True)
        assert found.left <= 40 and found.left + found.side >= 216
    both = lung_crop.lung_crop(lungs((60, 120, 40, 110), (130, 200, 40, 110)), SPINE)
    assert (both.parts, both.mirrored) == (2, True)


def test_no_lung_and_specks():
    wide = np.zeros((256, 200), bool)
    found = lung_crop.lung_crop(wide, np.zeros(wide.shape))
    assert found == (28, 0, 200, 0, False)
    specks = lungs((10, 20, 10, 20))
    assert lung_crop.lung_crop(specks, SPINE).parts == 0
    kept = lung_crop.lung_crop(specks | lungs(LEFT, RIGHT), SPINE)
    assert kept == lung_crop.lung_crop(lungs(LEFT, RIGHT), SPINE)
    with pytest.raises(ValueError, match="boolean"):
        lung_crop.lung_crop(np.zeros((4, 4)), np.zeros((4, 4)))


def test_crops_are_squares_inside_the_image():
    rng = np.random.default_rng(0)
    for _ in range(50):
        top, left = rng.integers(0, 200, 2)
        mask = lungs((top, min(top + 90, 256), left, min(left + 60, 256)))
        found = lung_crop.lung_crop(mask, rng.random((256, 256)))
        assert found.top >= 0 and found.left >= 0
        assert found.top + found.side <= 256 and found.left + found.side <= 256
        assert found.of(mask).any()
