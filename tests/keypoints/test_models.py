"""The whole network: symmetries of its input, one compilation, parity of its parts."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from keypoints import cameras as cameras_lib
from keypoints import data, models, v2v, volume
from keypoints.models import KeypointNet
from keypoints.norms import GroupNorm
from tests.keypoints.small import CONFIG, cube, recording


@pytest.fixture(scope="module")
def scene():
    own = recording()
    rig = data.on_device(cube().cameras(own.calibration.cameras))
    model = KeypointNet(CONFIG)
    params = models.init(model, jax.random.key(0), (32, 32), rig)
    images = jnp.asarray(own.images[:3], jnp.float32) / 255

    @jax.jit
    @chex.assert_max_traces(2)  # three views, and two
    def run(images, cameras, present):
        return model.apply({"params": params}, images, cameras, present, method="keypoints")

    return own, rig, model, params, images, run


def test_views_may_come_in_any_order(scene):
    _, rig, _, _, images, run = scene
    order = np.array([2, 0, 1])
    one = run(images, rig, jnp.ones((3, 3)))
    two = run(images[:, order], rig[order], jnp.ones((3, 3)))
    chex.assert_trees_all_close(one, two, atol=2e-5)
    assert (np.asarray(one.confidence) > 0).all()
    assert (np.linalg.eigvalsh(one.covariance) > -1e-5).all()


def test_a_missing_view_is_a_smaller_rig_and_degrades_only(scene):
    _, rig, _, _, images, run = scene
    present = jnp.ones((3, 3)).at[:, 2].set(0.0)
    hidden = run(images, rig, present)
    smaller = run(images[:, :2], rig[:2], jnp.ones((3, 2)))
    chex.assert_trees_all_close(hidden, smaller, atol=2e-5)
    assert np.isfinite(hidden.points).all()


def test_frames_do_not_depend_on_their_batch(scene):
    _, rig, _, _, images, run = scene
    other = images.at[1:].set(0.5)
    np.testing.assert_allclose(
        run(images, rig, jnp.ones((3, 3))).points[0],
        run(other, rig, jnp.ones((3, 3))).points[0], atol=1e-6)


def test_units_and_pose_of_the_world_do_not_matter(scene):
    own, rig, _, _, images, run = scene
    turn = Rotation.from_rotvec([0.5, -0.4, 1.0]).as_matrix()
    shift = np.array([300.0, -100.0, 50.0])
    moved = cameras_lib.transform(own.calibration.cameras, turn, shift, 1000.0)
    base = cube()
    other = volume.Volume(
        1000.0 * turn @ base.centre + shift, 1000.0 * base.side, base.rotation @ turn.T)
    as_numpy = jax.tree.map(np.asarray, moved)
    far = data.on_device(other.cameras(as_numpy))
    one = run(images, rig, jnp.ones((3, 3))).points
    two = run(images, far, jnp.ones((3, 3))).points
    np.testing.assert_allclose(one, two, atol=2e-4)
    np.testing.assert_allclose(
        other.to_world(two), 1000.0 * base.to_world(one) @ turn.T + shift, atol=0.3)


@pytest.mark.parametrize("lifting", ["volume", "triangulation"])
def test_a_second_world_is_as_a_second_run(scene, lifting):
    """One pass of the encoder for both; the keypoints are those of two."""
    _, rig, _, _, images, _ = scene
    model = KeypointNet(dataclasses.replace(CONFIG, lifting=lifting))
    params = models.init(model, jax.random.key(1), (32, 32), rig)
    turned = cameras_lib.transform(
        rig, jnp.asarray(Rotation.from_rotvec([0, 0, 1.2]).as_matrix(), jnp.float32), jnp.zeros(3))
    shown = jnp.ones((2, 3)).at[0, 1].set(0.0)
    found = jax.jit(model.apply)({"params": params}, images[:2], images[1:], rig, shown, turned)
    alone = jax.jit(functools.partial(model.apply, method="keypoints"))
    chex.assert_trees_all_close(
        found.first, alone({"params": params}, images[:2], rig, shown), atol=2e-5)
    chex.assert_trees_all_close(
        found.second, alone({"params": params}, images[1:], rig, shown), atol=2e-5)
    chex.assert_trees_all_close(
        found.turned, alone({"params": params}, images[:2], turned, shown), atol=2e-5)
    assert np.abs(found.turned.points - found.first.points).max() > 1e-3
    assert len(found.heat) == 4


@pytest.mark.parametrize(
    "change",
    [dict(lifting="triangulation"), dict(aggregation="confidence", sigmas=(0.0, 0.2, 0.0))],
)
def test_variants_give_finite_gradients(scene, change):
    _, rig, _, _, images, _ = scene
    model = KeypointNet(dataclasses.replace(CONFIG, **change))
    params = models.init(model, jax.random.key(0), (32, 32), rig)

    @jax.jit
    @jax.grad
    def gradient(params):
        found = model.apply(
            {"params": params}, images[:2], images[1:], rig, jnp.ones((2, 3)))
        total = jnp.sum(found.first.points) + jnp.sum(found.second.confidence)
        return total + jnp.sum(jnp.square(found.change))

    norms = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient(params))
    assert all(np.isfinite(n) for n in jax.tree.leaves(norms))
    assert norms["skeleton"] > 0


def test_group_norm_and_its_gradients_equal_flax():
    import flax.linen as nn

    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6, 16)) * 3 + 2
    reference = nn.GroupNorm(num_groups=2, epsilon=1e-5)
    params = reference.init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)
    np.testing.assert_allclose(
        GroupNorm(8).apply(params, x), reference.apply(params, x), atol=2e-5)

    def gradients(norm):
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(norm.apply(p, x))), argnums=(0, 1))(params, x)

    chex.assert_trees_all_close(gradients(GroupNorm(8)), gradients(reference), atol=5e-4, rtol=1e-4)


def test_pool_is_the_maximum_with_its_gradient_at_one_voxel():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 8, 3)).at[0, 0, 0, :2].set(9.0)
    blocks = x.reshape(2, 2, 2, 3, 2, 4, 2, 3).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    flat = np.asarray(blocks).reshape(2, 2, 3, 4, 3, 8)
    np.testing.assert_array_equal(v2v.pool(x), flat.max(-1))
    weights = jax.random.normal(jax.random.key(1), (2, 2, 3, 4, 3))
    found = jax.grad(lambda x: jnp.sum(v2v.pool(x) * weights))(x)
    expected = (np.arange(8) == flat.argmax(-1)[..., None]) * np.asarray(weights)[..., None]
    expected = expected.reshape(2, 2, 3, 4, 3, 2, 2, 2).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    np.testing.assert_array_equal(found, expected.reshape(x.shape))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="both must divide by 8"):
        CONFIG.check_images(36, 32)
    with pytest.raises(ValueError, match="unknown lifting"):
        dataclasses.replace(CONFIG, lifting="magic")
    with pytest.raises(ValueError, match="drawn at no level"):
        dataclasses.replace(CONFIG, sigmas=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="do not fit"):
        dataclasses.replace(CONFIG, sigmas=(0.1,))
    assert CONFIG.change_stride == 2
