"""Ensembles: weights that validation chooses, and test-time augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medical.fusion import ensemble
from medical.statistics import multiclass


@pytest.fixture
def members():
    """Five members on 300 patients: the fourth knows, the others hardly."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    logits = rng.normal(size=(5, 300, 3))
    logits += np.array([0.1, 0.1, 0.1, 3.0, 0.1])[:, None, None] * np.eye(3)[labels]
    p = np.exp(logits)
    return labels, p / p.sum(-1, keepdims=True)


def test_the_search_finds_who_knows(members):
    labels, p = members
    found = ensemble.search(multiclass.multiclass_auc, labels, p, np.random.default_rng(1), 300)
    assert found.weights.argmax() == 3 and found.weights[3] > 0.5
    assert found.weights.sum() == pytest.approx(1) and (found.weights >= 0).all()
    assert found.score > found.equal + 0.02
    combined = ensemble.combine(found.weights, p)
    assert multiclass.multiclass_auc(labels, combined) == pytest.approx(found.score)


def test_the_plain_mean_takes_part(members):
    labels, p = members
    same = np.repeat(p[3:4], 4, axis=0)
    found = ensemble.search(multiclass.multiclass_auc, labels, same, np.random.default_rng(1), 20)
    np.testing.assert_allclose(found.weights, 0.25)
    assert found.score == found.equal


def test_combine(members):
    _, p = members
    np.testing.assert_allclose(ensemble.combine(np.eye(5)[2], p), p[2])
    for wrong in (np.ones(5), np.array([2.0, -1, 0, 0, 0]), np.full(4, 0.25), np.full(5, np.nan)):
        with pytest.raises(ValueError, match="weights"):
            ensemble.combine(wrong, p)


def test_augmentation_moves_a_little_and_keeps_the_range():
    side = 40
    y, x = np.mgrid[:side, :side]
    spot = np.exp(-((y - 12) ** 2 + (x - 20) ** 2) / 8) * 1.6 - 0.8
    images = jnp.asarray(np.repeat(spot[None, ..., None], 24, 0), jnp.float32)
    moved = np.asarray(ensemble.augment(jax.random.key(0), images))
    assert moved.shape == images.shape and moved.min() >= -1 and moved.max() <= 1
    places = np.array([np.unravel_index(m[..., 0].argmax(), (side, side)) for m in moved])
    # Rotation about the middle, shift and zoom together: some pixels, not many.
    assert 0.5 < places.std(axis=0).max() and np.abs(places - [12, 20]).max() <= 6
    assert len({m.tobytes() for m in moved}) == 24
    # Corners that come into view have the lowest value: nothing brighter than the background.
    assert moved[:, 0, 0].max() <= (images.min() + 1) * 1.2 - 1 + 1e-5


def test_a_pass_is_a_prediction_of_augmented_images():
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)), jnp.float32)

    def predict(x):
        mean = jnp.mean(x, axis=(1, 2, 3))
        return jnp.stack([mean, 1 - mean], axis=-1)

    key = jax.random.key(3)
    found = ensemble.averaged(predict, key, images, 4)
    each = [predict(ensemble.augment(k, images)) for k in jax.random.split(key, 4)]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(ensemble.averaged(predict, key, images, 0), predict(images))
    assert not np.allclose(found, predict(images))
