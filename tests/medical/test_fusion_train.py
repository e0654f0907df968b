"""Training of DeepCOVID-Fuse: losses, frozen features, epochs, schedule, seeds."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from medical.fusion import methods, missing, models, stages, train
from medical.fusion.missing import Present
from medical.fusion.train import Patients, Recipe

# Small networks: they take longer to compile than to run.

class Trunk(nn.Module):
    """A small trunk with averages of batch normalisation."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), 2)(x)
        return nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))


@pytest.fixture(scope="module")
def patients():
    """48 patients of three levels that image and variables both tell."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 3
    images = rng.normal(size=(48, 8, 8, 1)) * 0.3 + (labels - 1)[:, None, None, None]
    clinical = rng.normal(size=(48, 5)) * 0.3
    clinical[:, 0] += labels - 1
    yes = jnp.ones(48, bool)
    return Patients(jnp.asarray(images, jnp.float32), jnp.asarray(clinical, jnp.float32),
                    Present(yes, yes), jnp.asarray(labels, jnp.int32))


def stack(tree, count=2):
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)


def begun(net, patients, recipe, count=2):
    variables = dict(net.init(jax.random.key(0), patients.images[:1], patients.clinical[:1])
                     if not isinstance(net, models.ClinicalNet)
                     else net.init(jax.random.key(0), patients.clinical[:1]))
    begin = functools.partial(train.begin, recipe=recipe)
    return jax.vmap(begin)(stack(variables, count), accuracy=jnp.full(count, -1.0))


def batch_of(patients):
    return {"train": patients, "valid": patients, "seed": jnp.asarray([0]),
            "stand_in": stages.stand_in_of(patients, "mean")}


def test_the_released_second_loss_is_binary_crossentropy_of_the_softmax():
    logits = jnp.asarray([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [90.0, -90.0, 0.0]])
    labels = jnp.asarray([0, 2, 1])
    p = np.asarray(jax.nn.softmax(logits), np.float64)[:2]
    truth = np.eye(3)[[0, 2]]
    expected = -np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p), axis=1)
    found = train.loss_of(logits, labels, "binary_of_softmax")
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5)
    assert np.isfinite(found).all()  # log(1 - p) where p rounds to 1
    slope = jax.grad(lambda x: jnp.sum(train.loss_of(x, labels, "binary_of_softmax")))(logits)
    assert np.isfinite(slope).all()
    plain = train.loss_of(logits, labels, "cross_entropy")
    np.testing.assert_allclose(plain[:2], -np.log(p[[0, 1], [0, 2]]), rtol=1e-5)
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        Recipe(1, 0.1, loss="hinge")


def test_frozen_features_give_the_same_logits(patients):
    net = models.FusionNet(Trunk())
    variables = dict(net.init(jax.random.key(1), patients.images, patients.clinical))
    stand_in = missing.fill_of(np.asarray(patients.images), np.asarray(patients.clinical), "mean")
    hidden = stages.as_view(patients, "clinical")
    trunk = {name: tree["trunk"] for name, tree in variables.items()}
    whole, stats = train.logits_of(net, variables, hidden, stand_in, False)
    assert stats.keys() == {"batch_stats"}
    given = hidden.replace(images=stages.features_of(net, trunk, hidden.images))
    fill = stand_in.replace(image=stages.features_of(net, trunk, stand_in.image[None])[0])
    head, _ = train.logits_of(net, variables, given, fill, True)
    np.testing.assert_allclose(head, whole, rtol=1e-4, atol=1e-5)
    # The image is hidden: only its stand-in counts.
    other, _ = train.logits_of(net, variables, hidden.replace(images=-hidden.images), stand_in,
                               False)
    np.testing.assert_array_equal(other, whole)


def test_the_whole_network_learns_and_its_averages_move(patients):
    net = models.FusionNet(Trunk())
    recipe = Recipe(6, 0.05, batch_size=16, hide_image=0.25, hide_clinical=0.25)
    state = begun(net, patients, recipe)
    stand_in = stages.stand_in_of(patients, "mean")
    before = state.variables["batch_stats"]
    batch = {"train": patients, "valid": patients, "stand_in": stand_in,
             "seed": jnp.asarray([0, 1])}
    epoch = jax.jit(train.make_epoch(net, recipe, "map"))
    for _ in range(6):
        state, metrics = epoch(state, batch, jax.random.key(0))
    assert metrics["validation"].min() > 0.9
    assert state.epoch.tolist() == [6, 6]
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before,
                         state.variables["batch_stats"])
    assert min(jax.tree.leaves(moved)) > 1e-3
    found = stages.probabilities(net, state.best, stages.as_view(patients, "image"), stand_in)
    assert found.shape == (2, 48, 3)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert np.mean(found[0].argmax(-1) == patients.labels) > 0.8
    # Seeds differ, and each is what it is alone.
    assert not np.allclose(found[0], found[1])


def test_a_seed_does_not_depend_on_the_others(patients):
    net = models.ClinicalNet(3)
    recipe = Recipe(2, 0.05, frozen=True)
    stand_in = stages.stand_in_of(patients, "mean")
    batch = {"train": patients, "valid": patients, "stand_in": stand_in}
    results = {}
    for mode, seeds in (("map", (0, 1)), ("vmap", (0, 1)), ("map", (1,))):
        state = begun(net, patients, recipe, len(seeds))
        state, _ = jax.jit(train.make_epoch(net, recipe, mode))(
            state, {**batch, "seed": jnp.asarray(seeds)}, jax.random.key(0))
        results[mode, len(seeds)] = state.variables["params"]["first"]["kernel"]
    np.testing.assert_allclose(results["map", 2], results["vmap", 2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(results["map", 2][1], results["map", 1][0], rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"config\.population 'pmap'"):
        train.make_epoch(net, recipe, "pmap")


def test_rate_falls_and_training_stops_where_nothing_improves(patients):
    net = models.ClinicalNet(3)
    recipe = Recipe(20, 0.0, frozen=True, lower_after=2, stop_after=4)
    state = begun(net, patients, recipe, 1)
    batch, epoch = batch_of(patients), jax.jit(train.make_epoch(net, recipe, "map"))
    history = []
    for _ in range(7):
        state, _ = epoch(state, batch, jax.random.key(0))
        history.append((float(state.scale[0]), bool(state.stopped[0]), int(state.epoch[0])))
    # The first epoch is the best (rate 0): then the rate falls after 2 and 4, and 4 is the end.
    np.testing.assert_allclose([h[0] for h in history[:5]], [1, 1, 0.1, 0.1, 0.01], rtol=1e-6)
    assert [h[1] for h in history] == [False, False, False, False, True, True, True]
    assert [h[2] for h in history] == [1, 2, 3, 4, 5, 5, 5]
    assert state.best_epoch.tolist() == [1]


def test_the_best_state_is_kept(patients):
    net = models.ClinicalNet(3)
    # A rate that destroys what it has learned.
    recipe = Recipe(4, 3.0, frozen=True, lower_after=99, stop_after=99)
    state = begun(net, patients, recipe, 1)
    batch, epoch = batch_of(patients), jax.jit(train.make_epoch(net, recipe, "map"))
    start = dict(accuracy=jnp.asarray([2.0]), best=jax.tree.map(jnp.copy, state.variables))
    kept, _ = epoch(state.replace(**start), batch, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, kept.best, start["best"])
    assert float(kept.accuracy[0]) == 2.0 and int(kept.since[0]) == 1
    better, _ = epoch(state, batch, jax.random.key(0))
    assert not np.array_equal(better.best["params"]["out"]["bias"],
                              state.best["params"]["out"]["bias"])


def test_who_takes_part():
    arrays = {
        "images": np.zeros((4, 2, 2, 1), np.float32), "labels": np.zeros(4, np.int32),
        "clinical": np.arange(8, dtype=np.float32).reshape(4, 2),
        "has_image": np.array([True, True, False, False]),
        "has_clinical": np.array([True, False, True, False]),
    }
    net = ConfigDict({"channels": 1})
    found = stages.patients_of(arrays, net, "clinical")
    np.testing.assert_array_equal(found.clinical, [[0, 1], [4, 5]])
    assert len(stages.patients_of(arrays, net, "image").labels) == 2
    assert len(stages.patients_of(arrays, net, "fusion").labels) == 4
    stand_in = stages.stand_in_of(stages.patients_of(arrays, net, "fusion"), "mean")
    np.testing.assert_array_equal(stand_in.clinical, [2, 3])  # of those who have variables
    arrays["has_image"][:] = False
    with pytest.raises(ValueError, match="kind 'image'"):
        stages.patients_of(arrays, net, "image")
    assert methods.METHODS["fusion"].views == ("both", "image", "clinical", "found")
