"""Unprojection: voxels see the pixels they project to, for any image, lens and set of views."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keypoints import cameras, unprojection
from keypoints.data import on_device
from keypoints.v2v import coordinates, soft_argmax
from tests.keypoints.rigs import ring

LENS = (-0.12, 0.05, 0.002, -0.001, 0.0)
TARGET = np.array([[0.31, -0.22, 0.4]])
N = 20


def rig(lens=(0.0,) * 5, size=(96, 64)):
    return on_device(ring(size=size, focal=50.0, lens=lens, target=(0, 0, 0)))


def blobs(own, shape, sigma=1.5):
    """Maps `[1, views, h, w, 1]` with a Gaussian where the target is seen."""
    height, width = shape
    pixels = np.asarray(cameras.project(own, TARGET)[0])[:, 0]
    scale = np.array([width, height]) / np.asarray(own.size)
    centre = (pixels + 0.5) * scale - 0.5
    y, x = np.mgrid[:height, :width]
    square = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2
    return jnp.asarray(np.exp(-square / (2 * sigma**2))[None, ..., None], jnp.float32)


@pytest.mark.parametrize("mode", ["sum", "mean", "softmax"])
@pytest.mark.parametrize(
    ("shape", "lens"), [((64, 96), LENS), ((32, 48), (0.0,) * 5), ((48, 36), LENS)])
def test_a_blob_in_every_view_becomes_a_blob_at_its_place(mode, shape, lens):
    own = rig(lens, size=(2 * shape[1], 2 * shape[0]))
    maps = blobs(own, shape)
    volume = unprojection.unproject(maps, own, N, jnp.ones((1, 4)), mode)
    points, _, _ = soft_argmax(60.0 * volume / volume.max())
    assert np.abs(points[0, 0] - TARGET[0]).max() < 0.5 * 2 / N


def test_samples_equal_interpolation_by_hand():
    maps = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    pixels = np.random.default_rng(1).uniform(-1.5, 8.0, (200, 2)).astype(np.float32)
    found = np.asarray(jax.jit(unprojection.bilinear)(maps, pixels))
    padded = np.pad(np.asarray(maps), ((0, 0), (3, 5), (3, 5), (0, 0)))
    for index, (x, y) in enumerate(pixels):
        c, r = int(np.floor(x)), int(np.floor(y))
        block = padded[:, r + 3 : r + 5, c + 3 : c + 5]
        across = block[:, :, 0] * (1 - (x - c)) + block[:, :, 1] * (x - c)
        expected = across[:, 0] * (1 - (y - r)) + across[:, 1] * (y - r)
        np.testing.assert_allclose(found[:, index], expected, atol=2e-5)


@pytest.fixture(scope="module")
def scene():
    own = rig(LENS)
    maps = jax.random.normal(jax.random.key(1), (2, 4, 16, 24, 3))
    return own, maps, jax.jit(unprojection.unproject, static_argnums=(2, 4))


def test_views_may_come_in_any_order(scene):
    own, maps, run = scene
    order = np.array([2, 0, 3, 1])
    first = run(maps, own, 8, jnp.ones((2, 4)), "softmax")
    second = run(maps[:, order], own[order], 8, jnp.ones((2, 4)), "softmax")
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_missing_view_equals_a_smaller_rig(scene):
    own, maps, run = scene
    present = jnp.ones((2, 4)).at[:, 1].set(0.0)
    kept = np.array([0, 2, 3])
    first = run(maps, own, 8, present, "softmax")
    second = unprojection.unproject(maps[:, kept], own[kept], 8, jnp.ones((2, 3)), "softmax")
    np.testing.assert_allclose(first, second, atol=1e-5)
    # what a missing view shows is of no consequence
    np.testing.assert_allclose(run(maps.at[:, 1].set(1e3), own, 8, present, "softmax"), first)


@pytest.mark.parametrize("mode", ["softmax", "mean"])
def test_gradients_equal_those_of_the_definition(scene, mode):
    own, maps, run = scene
    present = jnp.ones((2, 4)).at[0, 1].set(0.0)
    pixels, visible = unprojection.locate(own, 8, maps.shape[2:4])

    def weight(x, at):
        distance = jnp.abs(x[..., None] - jnp.arange(float(at)).reshape(1, 1, -1))
        return jnp.maximum(0.0, 1.0 - distance)

    table = weight(pixels[..., 1], 16)[..., :, None] * weight(pixels[..., 0], 24)[..., None, :]

    def definition(maps):
        values = jnp.einsum("vphw,fvhwc->fvpc", table, maps, precision="highest")
        counts = (visible[None] & (present > 0)[..., None])[..., None]
        logits = values if mode == "softmax" else jnp.zeros_like(values)
        weights = jnp.where(counts, jnp.exp(logits), 0.0)
        mass = weights.sum(axis=1)
        total = (weights * values).sum(axis=1) / jnp.where(mass > 0, mass, 1.0)
        return total.reshape(2, 8, 8, 8, 3)

    np.testing.assert_allclose(run(maps, own, 8, present, mode), definition(maps), atol=1e-5)
    first, second = (
        jax.grad(lambda m: jnp.sum(jnp.sin(3 * lift(m))))(maps)  # noqa: B023
        for lift in (lambda m: run(m, own, 8, present, mode), definition))
    np.testing.assert_allclose(first, second, atol=2e-4)


def test_gradient_of_places_equals_differences():
    maps = jax.random.normal(jax.random.key(5), (2, 6, 7, 3))
    pixels = jnp.array([[1.3, 2.6], [4.45, 0.7], [5.6, -0.4]])
    chex.assert_numerical_grads(
        lambda p: jnp.sin(unprojection.bilinear(maps, p)), (pixels,), order=1, modes=("rev",),
        atol=2e-2, eps=1e-2)


def test_voxels_outside_all_images_are_zero_and_gradients_finite(scene):
    own, maps, run = scene
    away = own.replace(matrix=own.matrix.at[:, 0, 2].set(-1e4))
    assert not np.asarray(run(maps, away, 8, jnp.ones((2, 4)), "softmax")).any()
    gradient = jax.grad(lambda m: jnp.sum(run(m, own, 8, jnp.zeros((2, 4)), "softmax")))(maps)
    assert np.isfinite(gradient).all()


def test_confidence_weighs_views(scene):
    own, maps, _ = scene
    logits = jnp.zeros((2, 4, 16, 24, 1)).at[:, 2].set(50.0)
    found = unprojection.unproject(maps, own, 8, jnp.ones((2, 4)), "confidence", logits)
    only = jnp.zeros((2, 4)).at[:, 2].set(1.0)
    expected = unprojection.unproject(maps, own, 8, only, "mean")
    _, visible = unprojection.locate(own, 8, (16, 24))
    inside = np.asarray(visible).all(axis=0).reshape(8, 8, 8)
    assert inside.any()
    np.testing.assert_allclose(found[:, inside], expected[:, inside], atol=1e-4)
    with pytest.raises(ValueError, match="unknown aggregation 'median'"):
        unprojection.unproject(maps, own, 8, jnp.ones((2, 4)), "median")


def test_soft_argmax_moments_against_numpy():
    logits = 3.0 * jax.random.normal(jax.random.key(2), (2, 6, 6, 6, 4))
    points, covariance, confidence = soft_argmax(logits)
    grid = np.asarray(coordinates(6), np.float64).reshape(-1, 3)
    p = np.exp(np.asarray(logits, np.float64).reshape(2, -1, 4))
    p /= p.sum(axis=1, keepdims=True)
    mean = np.einsum("npk,pc->nkc", p, grid)
    np.testing.assert_allclose(points, mean, atol=1e-5)
    offset = grid[None, :, None] - mean[:, None]
    expected = np.einsum("npk,npki,npkj->nkij", p, offset, offset)
    np.testing.assert_allclose(covariance, expected, atol=1e-5)
    np.testing.assert_allclose(confidence, p.max(axis=1), rtol=1e-4)
