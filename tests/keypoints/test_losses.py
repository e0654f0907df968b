"""Edges and losses: closed forms, freedom from units, degenerate cases."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from keypoints import edges, losses


def test_an_edge_is_brightest_on_its_segment_and_symmetric():
    points = jnp.array([[[-0.5, -0.3], [0.6, 0.4], [0.9, -0.9]]])
    weights = jnp.array([1.0, 0.0, 0.0])
    image = np.asarray(edges.draw(points, weights, (40, 40), 0.1))[0]
    swapped = np.asarray(edges.draw(points[:, jnp.array([1, 0, 2])], weights, (40, 40), 0.1))[0]
    np.testing.assert_allclose(image, swapped, atol=1e-6)
    centres = (2 * (np.arange(40) + 0.5) - 40) / 40
    x, y = np.meshgrid(centres, centres)
    samples = np.linspace(0, 1, 2000)[:, None] * np.array([1.1, 0.7]) + np.array([-0.5, -0.3])
    distance = np.hypot(x[..., None] - samples[:, 0], y[..., None] - samples[:, 1]).min(axis=-1)
    np.testing.assert_allclose(image, np.exp(-(distance**2) / 0.02), atol=1e-4)


def test_gradients_of_drawing_equal_those_of_the_maximum():
    points = jax.random.uniform(jax.random.key(3), (2, 5, 2), minval=-0.8, maxval=0.8)
    weights = jax.random.uniform(jax.random.key(4), (10,), minval=0.5)
    y = x = (2.0 * (jnp.arange(16.0) + 0.5) - 16) / 16
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(1, 1, -1, 2)

    def plain(points, weights):
        a, b = (points[:, edges.pairs(5)[:, i], None] for i in (0, 1))  # [2, 10, 1, 2]
        share = jnp.sum((grid - a) * (b - a), -1) / jnp.sum((b - a) ** 2, -1)
        near = a + jnp.clip(share, 0.0, 1.0)[..., None] * (b - a)
        each = weights[None, :, None] * jnp.exp(-jnp.sum((grid - near) ** 2, -1) / 0.08)
        return each.max(axis=1).reshape(2, 16, 16)

    def drawn(points, weights):
        return edges.draw(points, weights, (16, 16), 0.2)

    np.testing.assert_allclose(drawn(points, weights), plain(points, weights), atol=1e-5)
    first, second = (
        jax.grad(lambda p, w: jnp.sum(jnp.sin(f(p, w))), argnums=(0, 1))(points, weights)  # noqa: B023
        for f in (drawn, plain))
    chex.assert_trees_all_close(first, second, atol=1e-4, rtol=1e-4)


def test_other_devices_draw_the_same(monkeypatch):
    """The loop over edges that CPUs run, and the reduction and the products of other devices."""
    points = jax.random.uniform(jax.random.key(5), (3, 6, 2), minval=-0.9, maxval=0.9)
    weights = jax.random.uniform(jax.random.key(6), (15,)).at[4].set(0.0)
    seen = jnp.ones((3, 6), bool).at[1, 2].set(False)

    def total(points, weights):
        return jnp.sum(jnp.sin(edges.draw(points, weights, (12, 17), 0.15, seen)))

    here = jax.value_and_grad(total, argnums=(0, 1))(points, weights)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = jax.value_and_grad(total, argnums=(0, 1))(points, weights)
    chex.assert_trees_all_close(here, there, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_lines_too_faint_for_float32_are_told_apart(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ends = np.array([[-0.9, -0.9, -0.8, -0.9, 1], [-0.9, -0.8, -0.8, -0.8, 1]], np.float32)
    grid = jnp.array([[0.9, 0.9], [0.9, -0.99]])
    faint = jnp.asarray(ends.T[None])
    np.testing.assert_array_equal(edges.largest(faint, grid, 0.03), [[1, 0]])
    unseen = faint.at[0, 4, 1].set(0.0)
    np.testing.assert_array_equal(edges.largest(unseen, grid, 0.03), [[0, 0]])


def test_a_long_image_has_round_dots():
    """Distances are isotropic: a degenerate edge is a round dot in an image that is not square."""
    points = jnp.zeros((1, 2, 2))
    image = np.asarray(edges.draw(points, jnp.ones(1), (20, 60), 0.2))[0]
    np.testing.assert_allclose(image[10, 30:35], image[10:15, 30], atol=1e-6)
    place = edges.normalised(jnp.array([[29.5, 9.5], [59.5, 9.5]]), jnp.array([60.0, 20.0]))
    np.testing.assert_allclose(place, [[0, 0], [1, 0]], atol=1e-6)


def test_hidden_ends_hide_their_edges_and_gradients_are_finite():
    points = jnp.zeros((1, 3, 2))
    seen = jnp.array([[True, False, False]])
    assert not np.asarray(edges.draw(points, jnp.ones(3), (4, 4), 0.1, seen)).any()
    total = jax.grad(lambda p: jnp.sum(edges.draw(p, jnp.ones(3), (4, 4), 0.1)))(points)
    assert np.isfinite(total).all()
    assert np.isfinite(jax.grad(lambda p: jnp.sum(edges.lengths(p)))(points)).all()


def test_change_is_the_contrast_term_of_ssim():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(2, 1, 24, 20, 3)).astype(np.float32)
    found = np.asarray(losses.change(x, y, 1.5, 0.0))[0]

    def blur(a):
        return gaussian_filter(a.astype(np.float64), (1.5, 1.5, 0), mode="nearest",
                               radius=(5, 5, 0))

    a, b = x[0].astype(np.float64), y[0].astype(np.float64)
    covariance = blur(a * b) - blur(a) * blur(b)
    variance = blur(a * a) - blur(a) ** 2 + blur(b * b) - blur(b) ** 2
    expected = (1 - (2 * covariance + 0.0009) / (variance + 0.0009)).mean(axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(losses.change(x, x), 0.0, atol=1e-4)


def test_reconstruction_counts_present_views_only():
    target = jnp.ones((1, 2, 3, 3))
    wrong = target.at[:, 1].set(9.0)
    present = jnp.array([[1.0, 0.0]])
    assert losses.reconstruction(wrong, target, present) == 0.0
    np.testing.assert_allclose(losses.reconstruction(0 * target, target, present), 1.0, rtol=1e-4)


def test_separation_falls_with_distance():
    near, far = jnp.zeros((1, 3, 3)), jnp.eye(3)[None]
    assert losses.separation(near) == 1.0
    assert losses.separation(far) < 1e-6
    assert np.isfinite(jax.grad(lambda p: losses.separation(p))(near)).all()


def test_length_loss_is_zero_for_rigid_motion_and_without_edges():
    rng = np.random.default_rng(1)
    pose = rng.normal(size=(4, 3)).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    frames = jnp.asarray(np.stack([pose, pose @ turn + 0.3]))
    running = edges.lengths(frames).mean(axis=0)
    every, none = jnp.ones(6), -jnp.ones(6)
    assert losses.length_consistency(frames, running, every)[0] < 1e-8
    stretched = frames.at[1].multiply(1.3)
    loss, now = losses.length_consistency(stretched, running, every)
    assert loss > 0.01 and now.shape == (6,)
    again, _ = losses.length_consistency(10 * stretched, 10 * running, every)
    np.testing.assert_allclose(loss, again, rtol=1e-3)  # no units
    assert losses.length_consistency(stretched, running, none)[0] == 0.0


def test_rotation_loss_is_zero_for_equivariant_keypoints():
    points = jax.random.normal(jax.random.key(0), (2, 5, 3))
    turn = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = points @ turn.T
    assert losses.rotation(points, turned, turn) < 1e-10
    assert losses.rotation(points, points, turn) > 0.1
    # in shares of the keypoints' spread: no units, and about 2 for unrelated points
    one, two = losses.rotation(points, points, turn), losses.rotation(9 * points, 9 * points, turn)
    np.testing.assert_allclose(one, two, rtol=5e-3)


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (10, 0.0), (15, 0.5), (99, 1.0)])
def test_curriculum_is_a_ramp(step, weight):
    assert losses.ramp(jnp.asarray(step), 10, 10) == weight
