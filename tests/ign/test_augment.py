"""Random distortions of images: exact where they must be, inverse to what they say, bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from common import config as config_lib
from ign import augment, baseline, data, models, settings, stages

IMAGES = jnp.asarray(
    ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, 20, 20, 2)), (0, 3, 3, 0))
    * 5.0
).clip(-1.0, 1.0)


def test_no_strength_changes_nothing():
    found = augment.affine(IMAGES, jax.random.key(0), 0.0)
    np.testing.assert_allclose(found, IMAGES, atol=1e-6)


def test_constants_stay_and_sizes_too():
    one = augment.affine(jnp.full((2, 12, 16, 1), 0.3), jax.random.key(1), 2.0)
    np.testing.assert_allclose(one, np.full((2, 12, 16, 1), 0.3), atol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_pass_moves_pixels_as_it_says(axis):
    """Against SciPy's interpolation of the same places, away from the border."""
    scale, shear, shift = 0.07, -0.12, 0.05
    x = np.asarray(IMAGES)
    moved = x if axis == 2 else x.swapaxes(1, 2)
    values = [jnp.full(3, v) for v in (scale, shear, shift)]
    found = np.asarray(augment._along_rows(jnp.asarray(moved), *values))
    row, column = np.meshgrid(np.arange(20) - 9.5, np.arange(20) - 9.5, indexing="ij")
    place = 9.5 + (1 + scale) * column + shear * row + 20 * shift
    inside = (place > 2) & (place < 17)
    for image, result in zip(moved, found, strict=True):
        for channel in range(2):
            expected = ndimage.map_coordinates(image[..., channel], [row + 9.5, place], order=3)
            gap = np.abs(result[..., channel] - expected)[inside]
            assert gap.max() < 0.02
    assert inside.sum() > 200
    assert np.abs(found - moved).max() > 0.1


def test_images_are_distorted_each_in_its_own_way():
    same = jnp.broadcast_to(IMAGES[:1], (8, 20, 20, 2))
    found = np.asarray(augment.affine(same, jax.random.key(2)))
    assert np.abs(found).max() <= 1.0
    change = np.abs(found - np.asarray(same)).mean(axis=(1, 2, 3))
    assert change.min() > 1e-3
    assert min(np.abs(found[i] - found[j]).max() for i in range(8) for j in range(i)) > 1e-2


@pytest.mark.parametrize("axis", [1, 2])
def test_both_axes_are_distorted_and_neither_exchanged(axis):
    """Stripes along an axis change, so pixels move across them, and remain stripes along it."""
    wave = jnp.sin(jnp.arange(20.0))
    stripes = jnp.expand_dims(wave, (0, 3 - axis, 3)) + jnp.zeros((4, 20, 20, 1))
    found = np.asarray(augment.affine(stripes, jax.random.key(3)))
    assert np.abs(found - stripes).reshape(4, -1).max(axis=1).min() > 0.05
    across, along = np.abs(np.diff(found, axis=axis)), np.abs(np.diff(found, axis=3 - axis))
    assert across.mean() > 3 * along.mean()


def test_points_are_no_images():
    with pytest.raises(ValueError, match="height"):
        augment.affine(jnp.zeros((4, 2)), jax.random.key(0))


@pytest.mark.usefixtures("standard_promotion")  # optax's schedule mixes int32 and float32
def test_baselines_see_distorted_images_too():
    config = models.NetConfig(kind="patch", width=8, latent=4, hidden=8)
    state = baseline.init_state(jax.random.key(0), config, 1e-3, 4, 0.0)
    key = jax.random.key(1)
    images = jax.random.uniform(key, (3, 28, 28, 1), minval=-1.0)
    _, metrics = jax.jit(baseline.make_train_step(config, 1.0))(state, {"image": images}, key)
    distorted = augment.affine(images, jax.random.fold_in(key, 7))
    outputs = models.build(config).apply({"params": state.params}, distorted)
    expected = float(jnp.abs(outputs - distorted).mean())
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert abs(float(jnp.abs(outputs - images).mean()) - expected) > 1e-4


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_the_stage_trains_baselines_with_their_own_strength(strength, monkeypatch, tmp_path):
    config = config_lib.load("configs/ign.py:smoke")
    config.train.augment, config.baseline.augment = 1.0, strength
    images = np.zeros((32, 28, 28, 1), np.uint8)
    digits = data.ImageSet(images, images, np.zeros(32, int), np.zeros(32, int), ("0",))
    monkeypatch.setattr(settings, "load_images", lambda folder: digits)
    monkeypatch.setattr(settings, "components", lambda *_: None)
    monkeypatch.setattr(baseline, "make_train_step", lambda net, distortion: distortion)
    monkeypatch.setattr(baseline, "init_state", lambda *_: None)
    given = []

    def fit(own, state, step, *_):
        given.append(step)
        raise InterruptedError  # what follows needs a trained state

    monkeypatch.setattr(stages, "fit", fit)
    with pytest.raises(InterruptedError):
        stages.train_baselines(config, {"data": tmp_path}, tmp_path)
    assert given == [strength]
