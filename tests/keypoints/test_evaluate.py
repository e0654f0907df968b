"""Measures with known answers: hull, oracle, shares, smoothness, controls."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import keypoints as keypoints_config
from keypoints import baselines, data, evaluate, figures, models, volume
from keypoints.models import KeypointNet
from keypoints.predict import predict
from tests.keypoints.small import CONFIG, cube, recording


@pytest.fixture(scope="module")
def scene():
    own = recording(frames=20, span=6.0)  # the ball rests in no view
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    return own, rig, volume.motion_masks(own.images, 0.3)


def test_the_hull_follows_the_ball(scene):
    own, rig, masks = scene
    features = baselines.hull_features(masks, rig, n=24, batch=8)
    found = cube().to_world(features[:, :3])
    assert np.linalg.norm(found - own.joints[:, 0], axis=1).mean() < 0.06
    table = baselines.table(
        own.joints, masks, rig, np.arange(14), {"later": np.arange(14, 20)}, 0.01)
    hull = table["hull centroid"]["later"]["mpjpe"]
    assert hull < 0.3 * table["mean pose"]["later"]["mpjpe"]
    assert table["4 true sites"]["later"]["mpjpe"] < 0.1


def test_an_empty_hull_has_the_mean(scene):
    _, rig, masks = scene
    empty = masks.copy()
    empty[3] = False
    features = baselines.hull_features(empty, rig, n=12)
    rest = np.delete(features, 3, axis=0)
    np.testing.assert_allclose(features[3], rest.mean(axis=0), atol=1e-9)
    assert not baselines.hull_features(np.zeros_like(masks), rig, n=12).any()


def test_share_inside_the_mask(scene):
    own, rig, masks = scene
    ball = evaluate.project(cube().from_world(own.joints), rig)
    share, chance = baselines.inside_share(ball, masks)
    assert share == 1.0 and 0.0 < chance < 0.2
    assert baselines.inside_share(ball + 1000.0, masks)[0] == 0.0


def test_points_that_a_camera_cannot_see_have_no_pixels(scene, caplog):
    own, rig, masks = scene
    ball = cube().from_world(own.joints)
    behind = np.asarray(rig.centres[1] - 0.5 * rig.axes[1])
    points = np.where(np.arange(20)[:, None, None] == 3, behind, ball)
    pixels = evaluate.project(points, rig)
    assert np.isnan(pixels[3, 1]).all() and np.isfinite(np.delete(pixels, 3, axis=0)).all()
    share, _ = baselines.inside_share(pixels, masks)
    assert share <= 1.0 - 1 / 60  # counts as outside
    with caplog.at_level(logging.WARNING):
        assert evaluate.hidden_share(pixels) == pytest.approx(1 / 60)
    assert "1.7 % of the projections lie behind a camera" in caplog.text
    assert evaluate.hidden_share(pixels[4:]) == 0.0
    picture = figures.overlay(own.images[3, 1], pixels[3, 1], [(0, 0)], 2)
    np.testing.assert_array_equal(
        picture, figures.overlay(own.images[3, 1], np.zeros((0, 2)), [], 2))


def test_oracle_sites_are_spread():
    joints = np.zeros((4, 5, 3))
    joints[:, :, 0] = [0.0, 1.0, 1.1, 1.2, 10.0]
    assert set(baselines.oracle_sites(joints, 2, np.arange(4)).tolist()) == {4, 0}
    assert len(baselines.oracle_sites(joints, 9, np.arange(4))) == 5


def test_smoothness_of_a_line_and_of_noise():
    line = np.arange(30.0)[:, None, None] * np.ones((1, 2, 3))
    assert evaluate.temporal(line, np.zeros(30, int))["ratio"] == 0.0
    noise = np.random.default_rng(0).normal(size=(4000, 2, 3))
    assert abs(evaluate.temporal(noise, np.zeros(4000, int))["ratio"] - 3**0.5) < 0.05
    jump = np.concatenate([line, line + 100])
    sequence = np.repeat([0, 1], 30)
    assert evaluate.temporal(jump, sequence)["ratio"] < 1e-9  # not across sequences


def test_prediction_in_batches_and_controls(scene):
    own, rig, _ = scene
    model = KeypointNet(CONFIG)
    params = models.init(model, jax.random.key(0), (32, 32), rig)
    found = predict(model, params, own.images, rig, batch=8)
    assert found.points.shape == (20, 4, 3)
    images = jnp.asarray(own.images[17:18], jnp.float32) / 255
    one = model.apply({"params": params}, images, rig, jnp.ones((1, 3)), method="keypoints")
    np.testing.assert_allclose(found.points[17:18], one.points, atol=1e-5)
    left = evaluate.leave_one_view_out(model, params, own.images[:4], rig, jax.tree.map(
        lambda leaf: leaf[:4], found))
    assert left["pixels"] > 0 and np.isfinite(list(left.values())).all()
    rows = evaluate.skeleton(params, found.points, 3)
    weights = [row["weight"] for row in rows]
    assert len(rows) == 3 and weights == sorted(weights, reverse=True)


def test_every_variant_is_a_whole_configuration():
    names = set(keypoints_config.get_config().keys())
    for variant in keypoints_config._CHANGES:
        config = keypoints_config.get_config(variant)
        assert set(config.keys()) == names
    with pytest.raises(ValueError, match="no variant 'tiny'"):
        keypoints_config.get_config("tiny")
