"""Localisation metrics against their definitions on perfect, inverted, constant and random maps."""

import jax.numpy as jnp
import numpy as np
import pytest

from medical.explain import localise

RNG = np.random.default_rng(0)
MASKS = np.zeros((4, 6, 6), bool)
for _i in range(4):
    MASKS[_i, 1 + _i % 3:3 + _i % 3, 2:4] = True


def test_a_perfect_map_and_an_inverted_one():
    perfect, inverted = MASKS.astype(float), 1.0 - MASKS
    for metric in (localise.iou, localise.pointing, localise.relevance_mass, localise.pixel_auc):
        np.testing.assert_array_equal(metric(perfect, MASKS), 1)
        np.testing.assert_array_equal(metric(inverted, MASKS), 0)


def test_a_constant_map_scores_what_a_random_one_does():
    constant = np.ones((1, 6, 6)).repeat(4, 0)
    share = 4 / 36
    np.testing.assert_allclose(localise.pointing(constant, MASKS), share)
    np.testing.assert_allclose(localise.relevance_mass(constant, MASKS), share)
    np.testing.assert_allclose(localise.relevance_mass(0 * constant, MASKS), share)
    np.testing.assert_allclose(localise.pixel_auc(constant, MASKS), 0.5)
    overlap = 4 * share
    np.testing.assert_allclose(localise.iou(constant, MASKS), overlap / (8 - overlap))


def test_random_maps_have_their_expectations():
    maps = RNG.random((3000, 6, 6))
    masks = MASKS[:1].repeat(3000, 0)
    # The overlap of 4 random pixels of 36 with 4 others is hypergeometric.
    from scipy import stats

    k = np.arange(5)
    law = stats.hypergeom(36, 4, 4).pmf(k)
    values = k / (8 - k)
    mean = law @ values
    error = 3 * np.sqrt((law @ values**2 - mean**2) / 3000)
    assert abs(localise.iou(maps, masks).mean() - mean) < error
    assert localise.pointing(maps, masks).mean() == pytest.approx(4 / 36, abs=0.018)
    assert localise.pixel_auc(maps, masks).mean() == pytest.approx(0.5, abs=0.01)


def test_metrics_by_brute_force():
    maps = RNG.random((4, 6, 6)).round(1)  # with ties
    for i in range(4):
        values, mask = maps[i].ravel(), MASKS[i].ravel()
        wins = [(a > b) + 0.5 * (a == b) for a in values[mask] for b in values[~mask]]
        assert localise.pixel_auc(maps, MASKS)[i] == pytest.approx(np.mean(wins))
        overlaps = []
        for _ in range(4000):  # ties broken at random
            top = np.lexsort((RNG.random(36), -values))[:4]
            overlaps.append(mask[top].sum())
        mean = np.mean(overlaps)
        assert localise.iou(maps, MASKS)[i] == pytest.approx(mean / (8 - mean), abs=0.02)


def test_no_lesion_has_no_localisation():
    empty = np.zeros_like(MASKS)
    for metric in (localise.iou, localise.pointing, localise.relevance_mass, localise.pixel_auc):
        assert np.isnan(metric(RNG.random((4, 6, 6)), empty)).all()


def test_tolerance_enlarges_the_mask():
    maps = np.zeros((4, 6, 6))
    maps[:, 0, 0] = 1
    assert localise.pointing(maps, MASKS).sum() == 0
    np.testing.assert_array_equal(localise.pointing(maps, MASKS, 2), [1, 1, 0, 1])
    grown = localise.dilate(MASKS[:1], 1)[0]
    assert grown.sum() == 16 and grown[0:4, 1:5].all()


def test_sparsity_counts_pixels_near_the_maximum():
    maps = np.zeros((2, 2, 2))
    maps[0] = [[1.0, 0.1], [0.09, 0.0]]
    np.testing.assert_array_equal(localise.sparsity(maps), [0.5, 0.0])


def test_deletion_and_insertion_of_a_linear_score():
    images = jnp.ones((2, 2, 2, 1))
    maps = np.array([[[4.0, 3], [2, 1]], [[1.0, 2], [3, 4]]])
    weights = jnp.asarray([[1.0, 0], [0, 0]]).reshape(1, 2, 2, 1)

    def score(x):
        return jnp.sum(weights * x, axis=(1, 2, 3))

    black = jnp.zeros_like(images)
    deletion, insertion = localise.deletion_insertion(score, images, maps, black, 4)
    # The scoring pixel goes first (then last): values 1 0 0 0 0, and 1 1 1 1 0.
    np.testing.assert_allclose(deletion, [0.125, 0.875])
    np.testing.assert_allclose(insertion, [0.875, 0.125])


def test_bad_maps_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        localise.iou(-np.ones((4, 6, 6)), MASKS)
    with pytest.raises(ValueError, match="boolean"):
        localise.iou(np.ones((4, 6, 6)), MASKS.astype(int))
    np.testing.assert_array_equal(
        localise.magnitude(np.array([[[[1.0, -2.0]]]])), [[[3.0]]])


def test_equal_values_are_deleted_all_over_the_image():
    """A map that ranks nothing loses its score evenly, wherever in the image the score is."""
    images = jnp.ones((1, 16, 16, 1))
    flat = np.zeros((1, 16, 16))
    for rows in (slice(0, 4), slice(12, 16)):
        deletion, insertion = localise.deletion_insertion(
            lambda x, rows=rows: jnp.mean(x[:, rows], axis=(1, 2, 3)), images, flat, 0 * images)
        np.testing.assert_allclose([deletion[0], insertion[0]], 0.5, atol=0.1)
