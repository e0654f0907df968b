"""DeepCOVID-Fuse: published sizes, absent modalities, alarms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medical.explain import grad_cam
from medical.fusion import alarms, missing, models

# Small networks: they take longer to compile than to run.
IMAGE = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
TABLE = jax.ShapeDtypeStruct((2, 99), jnp.float32)


class Trunk(nn.Module):
    """A small trunk."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(nn.Conv(6, (3, 3), 2)(x))


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_published_sizes():
    fusion = models.FusionNet(models.paper_trunk())
    shapes = jax.eval_shape(fusion.init, jax.random.key(0), IMAGE, TABLE)
    assert size(shapes) == 7_140_995 and size(shapes["params"]) == 7_057_347
    image = models.ImageNet(models.paper_trunk())
    shapes = jax.eval_shape(image.init, jax.random.key(0), IMAGE)
    assert size(shapes) == 7_177_155 and size(shapes["params"]) == 7_093_507
    clinical = jax.eval_shape(models.ClinicalNet().init, jax.random.key(0), TABLE)
    assert size(clinical) == 99 * 128 + 128 + 128 * 64 + 64 + 64 * 3 + 3


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    net = models.FusionNet(Trunk(), learned=True)
    return net, net.init(jax.random.key(0), images, table), images, table


def test_a_learned_stand_in_hides_the_input(small):
    net, variables, images, table = small
    some = missing.Present(jnp.asarray([True, False, True, False]),
                           jnp.asarray([True, True, False, False]))
    first = net.apply(variables, images, table, some)
    second = net.apply(variables, -images, table, some)
    third = net.apply(variables, images, -table, some)
    same = [np.allclose(first[i], second[i]) for i in range(4)]
    assert same == [False, True, False, True]
    assert [np.allclose(first[i], third[i]) for i in range(4)] == [False, False, True, True]


def test_grad_cam_of_a_network_with_two_inputs(small):
    net, variables, images, table = small

    def head(features, clinical):
        return net.apply(variables, features, clinical, method="head")[:, 1]

    features = net.apply(variables, images, method="features")
    found = grad_cam.grad_cam(head, features, table, relu=False)
    assert found.shape == (4, 4, 4)
    # The maps depend on the clinical variables through the rectifiers behind them.
    assert not np.allclose(found, grad_cam.grad_cam(head, features, 9 * table, relu=False))


def test_stand_ins(small):
    _, _, images, table = small
    some = missing.Present(jnp.asarray([True, False, True, True]),
                           jnp.asarray([True, True, True, False]))
    filled = missing.fill(images, table, some, missing.fill_of(
        np.asarray(images), np.asarray(table), "mean"))
    np.testing.assert_allclose(filled[0][1], images.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(filled[1][3], table.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(filled[0][0], images[0])
    zeros = missing.fill_of(np.asarray(images), np.asarray(table), "zeros")
    assert not np.any(zeros.image) and not np.any(zeros.clinical)
    with pytest.raises(ValueError, match="unknown policy 'median'"):
        missing.fill_of(np.asarray(images), np.asarray(table), "median")


def test_modality_dropout_leaves_one_modality():
    n = 4000
    has = missing.Present(jnp.arange(n) % 4 != 0, jnp.arange(n) % 4 != 1)
    found = missing.drop(jax.random.key(0), has, 0.25, 0.25)
    assert (found.image | found.clinical).all()
    both = has.image & has.clinical
    assert np.mean(~found.image[both]) == pytest.approx(0.25, abs=0.03)
    assert np.mean(~found.clinical[both]) == pytest.approx(0.25, abs=0.03)
    assert not (found.image & ~has.image).any()
    with pytest.raises(ValueError, match="exceed 1"):
        missing.drop(jax.random.key(0), has, 0.7, 0.7)


def test_informative_absence_is_found():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    told = missing.association(labels, rng.random(400) < 0.1 + 0.2 * labels, rng, 300)
    assert told.p < 0.01 and told.strength > 0.15
    assert told.share[2] > told.share[0]
    chance = [missing.association(labels, rng.random(400) < 0.2, rng, 100).p for _ in range(40)]
    assert 0.3 < np.mean(chance) < 0.7
    assert missing.association(labels, np.zeros(400, bool), rng).p == 1.0


def test_the_published_clinical_baseline_is_a_collapse():
    labels = np.repeat([0, 1, 2], [101, 193, 145])
    found = alarms.collapse(labels, np.ones(439, int))
    assert found.collapsed and found.predicted == 1
    assert round(found.accuracy, 3) == round(found.majority_accuracy, 3) == 0.440
    spread = alarms.collapse(labels, labels)
    assert not spread.collapsed and spread.accuracy == 1.0
    with pytest.raises(ValueError, match="predictions"):
        alarms.collapse(labels, labels[:5])
