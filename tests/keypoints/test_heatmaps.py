"""The soft visual hull, the mass of heat maps inside it, and their overlap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keypoints import data, heatmaps, volume
from keypoints.v2v import coordinates
from tests.keypoints.small import cube, recording


@pytest.fixture(scope="module")
def scene():
    own = recording(frames=4)
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    return own, rig, own.images.min(axis=-1) > 150


def test_soft_hull_is_the_hull_with_soft_edges(scene):
    own, rig, masks = scene
    soft = np.asarray(heatmaps.soft_hull(jnp.asarray(masks), rig, 24, jnp.ones((4, 3)), 0.7))
    hard = np.asarray(volume.hull(jnp.asarray(masks), rig, 24)).reshape(4, -1)
    assert soft.min() >= 0 and soft.max() <= 1
    assert soft[hard].mean() > 0.6 and soft[~hard].mean() < 0.01
    assert soft.max() > 0.95
    ball = cube().from_world(own.joints[:, 0])
    centre = soft @ np.asarray(coordinates(24)).reshape(-1, 3) / soft.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(centre, ball, atol=0.06)


def test_absent_views_are_not_held_against_a_voxel(scene):
    _, rig, masks = scene
    blind = masks.copy()
    blind[:, 0] = False
    present = jnp.ones((4, 3)).at[:, 0].set(0.0)
    everything = heatmaps.soft_hull(jnp.asarray(blind), rig, 16, jnp.ones((4, 3)), 0.7)
    without = heatmaps.soft_hull(jnp.asarray(blind), rig, 16, present, 0.7)
    assert float(everything.max()) < 0.01 and float(without.max()) > 0.5
    # one view alone bounds nothing
    alone = heatmaps.soft_hull(jnp.asarray(masks), rig, 12, present.at[:, 1].set(0.0))
    assert float(alone.max()) == 0.0


def test_soft_masks_are_block_means():
    masks = np.zeros((1, 2, 8, 8), bool)
    masks[0, 1, :, 4:] = True
    small = np.asarray(heatmaps.soft_masks(jnp.asarray(masks), (2, 4), 0.3)).reshape(2, 2, 4)
    np.testing.assert_allclose(small[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(small[1], [[0, 0, 1, 1]] * 2, atol=0.02)


def test_loss_is_minus_log_of_the_mass_and_skips_empty_maps():
    inside = jnp.asarray([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    flat = jnp.zeros((2, 4, 3))
    np.testing.assert_allclose(heatmaps.silhouette(flat, inside), np.log(2), rtol=1e-3)
    sure = flat.at[:, 0].set(50.0)
    np.testing.assert_allclose(heatmaps.silhouette(sure, inside), 0.0, atol=2e-4)
    assert float(heatmaps.silhouette(flat, jnp.zeros((2, 4)))) == 0.0


def test_a_map_that_is_sure_of_a_place_outside_is_still_drawn_in():
    """With a least mass inside under the logarithm the gradient would be nil: exp(-40) of it."""
    inside = jnp.asarray([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    sure = jnp.zeros((2, 4, 1)).at[:, 3].set(40.0)
    value, slope = jax.value_and_grad(heatmaps.silhouette)(sure, inside)
    np.testing.assert_allclose(value, 40.0 - np.log(1.5), rtol=1e-5)
    np.testing.assert_allclose(slope[0, :, 0], [-2 / 3, -1 / 3, 0.0, 1.0], atol=1e-5)
    np.testing.assert_array_equal(slope[1], 0.0)  # nothing to be drawn to


def test_overlap_is_the_mean_cosine_of_two_maps():
    rng = np.random.default_rng(0)
    heat = rng.normal(size=(2, 5, 3))
    maps = np.exp(heat) / np.exp(heat).sum(axis=1, keepdims=True)
    unit = maps / np.linalg.norm(maps, axis=1, keepdims=True)
    expected = [unit[:, :, i] * unit[:, :, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    found = heatmaps.overlap(jnp.asarray(heat, jnp.float32))
    np.testing.assert_allclose(found, np.sum(expected, axis=2).mean(), rtol=1e-5)
    np.testing.assert_allclose(heatmaps.overlap(jnp.zeros((1, 7, 4))), 1.0, rtol=1e-5)


def test_coverage_is_the_divergence_of_the_mean_map():
    inside = np.array([[0.0, 0.5, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]], np.float32)
    goal = inside[0] / inside[0].sum()
    rng = np.random.default_rng(1)
    heat = rng.normal(size=(2, 4, 3))
    mean = (np.exp(heat[0]) / np.exp(heat[0]).sum(axis=0)).mean(axis=1)
    expected = sum(u * np.log(u / m) for u, m in zip(goal, mean, strict=True) if u > 0)
    found = heatmaps.coverage(jnp.asarray(heat, jnp.float32), jnp.asarray(inside))
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # the map without an object is skipped
    # one keypoint for each part covers as well as equal keypoints do
    parts = np.full((1, 4, 4), -50.0, np.float32)
    parts[0, [1, 2, 2, 3], [0, 1, 2, 3]] = 0.0
    np.testing.assert_allclose(heatmaps.coverage(jnp.asarray(parts), inside[:1]), 0.0, atol=1e-5)
    same = jnp.log(jnp.asarray(goal) + 1e-12)[None, :, None] * jnp.ones((1, 1, 4))
    np.testing.assert_allclose(heatmaps.coverage(same, inside[:1]), 0.0, atol=1e-5)
