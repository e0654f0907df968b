"""Phantoms: what is known of them is true, and no patient is on both sides of a split."""

import numpy as np
import pytest

from medical.data import phantom, pieces

COUNTS = {"train": 60, "validation": 20, "test": 40}


@pytest.fixture
def drawn_pieces(monkeypatch):
    """Drawn stand-ins for the real pieces, so that nothing is fetched: two ellipses as lungs."""
    y, x = np.mgrid[: pieces.SIDE, : pieces.SIDE] / pieces.SIDE
    masks = []
    for i in range(40):
        width = 0.12 + 0.001 * i
        lungs = [((x - c) / width) ** 2 + ((y - 0.5) / 0.33) ** 2 < 1 for c in (0.3, 0.7)]
        masks.append(255 * (lungs[0] | lungs[1]).astype(np.uint8))
    names = np.array([f"p{i // 2}" for i in range(40)])
    monkeypatch.setattr(pieces, "lungs", lambda: pieces.Lungs(np.stack(masks), names))
    texture = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    monkeypatch.setattr(pieces, "radiograph", lambda: texture)
    monkeypatch.setattr(pieces, "finding_sizes", lambda: np.array([0.05, 0.1, 0.2]))
    head = np.zeros((181, 96, 96), np.float32)
    head[:, 10:86, 20:76] = 0.7
    monkeypatch.setattr(pieces, "brain", lambda: (head, head > 0))


@pytest.mark.usefixtures("drawn_pieces")
@pytest.mark.parametrize("source", ["chest", "brain"])
def test_the_truth_of_a_phantom(source):
    config = phantom.PhantomConfig(source=source)
    parts = phantom.make(config, COUNTS, np.random.default_rng(0))
    for name, count in COUNTS.items():
        part = parts[name]
        assert part.images.shape == (count, 32, 32, 1) and part.images.dtype == np.float32
        assert abs(part.images).max() <= 1
        np.testing.assert_array_equal(part.masks.any((1, 2)), part.labels == 1)
        assert part.labels.sum() == count // 2
        change = (part.images - part.healthy)[..., 0]
        assert not change[part.labels == 0].any()
        sick = part.labels == 1
        # The lesion is where the mask says: brighter inside, almost nothing far outside.
        assert change[sick][part.masks[sick]].mean() > 0.2
        assert np.abs(change[sick][~part.masks[sick]]).mean() < 0.02
        assert (part.masks[sick].sum((1, 2)) >= 6).all()
    train, test = set(parts["train"].patients), set(parts["test"].patients)
    assert train and test and not train & test
    if source == "brain":  # blocks of slices, not slices
        assert max(train | test) < (136 - 64) // phantom.BLOCK and phantom.BLOCK > 1


@pytest.mark.usefixtures("drawn_pieces")
def test_phantoms_follow_from_the_seed():
    config = phantom.PhantomConfig()
    first, again, other = (
        phantom.make(config, COUNTS, np.random.default_rng(seed))["train"].images
        for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.5


@pytest.mark.usefixtures("drawn_pieces")
def test_the_shortcut_marks_positives_only():
    config = phantom.PhantomConfig(shortcut=1.0)
    part = phantom.make(config, COUNTS, np.random.default_rng(0))["train"]
    corner = phantom.corner(32)
    marked = (part.images[..., 0][:, corner] == 1).all(axis=1)
    np.testing.assert_array_equal(marked, part.labels == 1)
    assert not (part.healthy[..., 0][:, corner] == 1).all(axis=1).any()


@pytest.mark.usefixtures("drawn_pieces")
def test_distractors_are_in_both_classes():
    config = phantom.PhantomConfig(distractors=True)
    part = phantom.make(config, COUNTS, np.random.default_rng(0))["train"]
    plain = phantom.make(phantom.PhantomConfig(), COUNTS, np.random.default_rng(0))["train"]
    for label in (0, 1):
        of = part.healthy[part.labels == label].std()
        assert of > plain.healthy[plain.labels == label].std()


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="knee"):
        phantom.make(phantom.PhantomConfig(source="knee"), COUNTS, np.random.default_rng(0))
