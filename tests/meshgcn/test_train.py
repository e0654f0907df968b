"""Trials: leak-free statistics, one program for all, reproducible, and able to learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import loop
from meshgcn import evaluate, models, splits, train
from tests.meshgcn.small import operators, subjects

# Small networks: they take longer to compile than to run.
RECIPE = train.Recipe(epochs=6, batch=8, learning_rate=1e-2, weight_decay=0.01, eval_batch=32)
MODEL = models.MeshNet((4, 4), terms=2, hidden=8)


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """optax's bias correction is a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def problem():
    made = subjects()
    roles = splits.monte_carlo(made.subject, made.label, 3, (0.6, 0.2, 0.2), 0)
    labels = np.tile(made.label, (3, 1))
    return jnp.asarray(made.thickness[..., None]), labels, roles


@pytest.fixture(scope="module")
def fitted(problem):
    x, labels, roles = problem
    return train.fit_trials(MODEL, RECIPE, np.arange(3), roles, labels, x, operators())


def test_learns_what_is_planted(problem, fitted):
    _, labels, roles = problem
    score = fitted.logits[..., 1] - fitted.logits[..., 0]
    found = [
        evaluate.auc(s[r == 2], y[r == 2] == 1)
        for s, r, y in zip(score, roles, labels, strict=True)
    ]
    assert np.mean(found) > 0.9
    assert (fitted.train_loss[:, -1] < fitted.train_loss[:, 0]).all()
    np.testing.assert_array_equal(fitted.epoch, fitted.validation_loss.argmin(axis=1))


def test_the_kept_epochs_loss_is_that_of_a_trials_own_validation_scans(problem, fitted):
    _, labels, roles = problem
    counts = (roles == 1).sum(axis=1)
    assert (counts % RECIPE.eval_batch).any()  # some rows of the program do not count
    right = np.take_along_axis(np.asarray(fitted.logits), labels[..., None], 2)[..., 0]
    each = jax.nn.logsumexp(fitted.logits, axis=2) - right
    expected = [row[role == 1].mean() for row, role in zip(each, roles, strict=True)]
    kept = np.asarray(fitted.validation_loss)[np.arange(len(roles)), fitted.epoch]
    np.testing.assert_allclose(kept, np.stack(expected), rtol=1e-4)


def test_trials_are_the_same_side_by_side_and_alone(problem, fitted):
    """All devices, one after the other, or `vmap`: the same trials."""
    x, labels, roles = problem
    assert jax.device_count() == 4  # three trials on three devices above
    side = train.fit_trials(MODEL, RECIPE, np.arange(3), roles, labels, x, operators(), 3)
    # Adam amplifies the rounding of small gradients over five epochs.
    np.testing.assert_allclose(side.logits, fitted.logits, rtol=2e-3, atol=2e-2)
    counts = int((roles == 0).sum(axis=1).min()), int((roles[1] == 1).sum())
    run = jax.jit(train.fit_trial, static_argnums=(0, 1, 2))
    arguments = (jnp.int32(1), jnp.int32(roles[1]), jnp.int32(labels[1]), x, operators())
    alone = run(MODEL, RECIPE, counts, *arguments)
    np.testing.assert_allclose(alone.logits, fitted.logits[1], rtol=2e-3, atol=2e-2)
    again = run(MODEL, RECIPE, counts, *arguments)
    np.testing.assert_array_equal(alone.logits, again.logits)  # bit for bit


def test_test_scans_are_never_looked_at(problem, fitted):
    x, labels, roles = problem
    test = roles[0] == 2
    other = jnp.where(test[:, None, None], 99.0, x)
    flipped = np.where(test, 1 - labels[0], labels[0])
    changed = train.fit_trials(
        MODEL, RECIPE, np.arange(3), roles, np.stack([flipped, *labels[1:]]), other, operators()
    )
    np.testing.assert_array_equal(changed.mean[0], fitted.mean[0])
    np.testing.assert_array_equal(changed.scale[0], fitted.scale[0])
    np.testing.assert_array_equal(changed.validation_loss[0], fitted.validation_loss[0])
    np.testing.assert_array_equal(changed.logits[0, ~test], fitted.logits[0, ~test])


def test_statistics_are_of_training_scans(problem):
    x, _, roles = problem
    mean, scale = train.standardiser(x, jnp.asarray(roles[0] == 0, jnp.float32))
    rows = np.asarray(x)[roles[0] == 0].astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-5)
    sd = rows.std(axis=0)
    np.testing.assert_allclose(scale[sd > 0], 1 / sd[sd > 0], rtol=1e-3)
    assert (np.asarray(scale)[sd == 0] == 0).all() and (sd == 0).any()  # the medial wall


def test_a_loss_that_is_not_finite_is_named(problem):
    """Else the untrained weights of the start would be kept as the best ones."""
    x, labels, roles = problem
    bad = x.at[int(np.flatnonzero(roles[1] == 0)[0]), 5].set(jnp.inf)
    with pytest.raises(loop.NonFiniteLoss, match=r"nan at step 0 \(epochs counted\), trial 0"):
        train.fit_trials(MODEL, RECIPE, np.arange(3), roles, labels, bad, operators())


def test_too_few_scans_are_named(problem):
    x, labels, roles = problem
    with pytest.raises(ValueError, match="do not fill a batch of 500"):
        train.fit_trials(
            MODEL, train.Recipe(batch=500), np.arange(3), roles, labels, x, operators()
        )


def test_a_prepared_first_level_changes_no_training(problem, monkeypatch):
    x, labels, roles = problem
    model = models.MeshNet((4,), terms=3, stem=3, hidden=8, preact=True)
    assert model.linear_start(operators())
    recipe = train.Recipe(epochs=2, batch=8, weight_decay=0.01, eval_batch=32)
    arguments = (recipe, np.arange(2), roles[:2], labels[:2], x, operators())
    early = train.fit_trials(model, *arguments)
    # A static argument of its own, so that the program is another.
    whole = models.MeshNet((4,), terms=3, stem=3, hidden=8, preact=True, name="whole")
    calls = []
    monkeypatch.setattr(
        models.MeshNet, "linear_start", lambda self, hierarchy: calls.append(self.name)
    )
    late = train.fit_trials(whole, *arguments)
    assert calls
    np.testing.assert_array_equal(early.epoch, late.epoch)
    for a, b in zip(*map(jax.tree.leaves, (early.variables, late.variables)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)  # half a step of Adam
    np.testing.assert_allclose(early.logits, late.logits, atol=1e-2)
    assert np.abs(late.logits).max() > 0.1
