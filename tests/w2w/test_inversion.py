"""Inversion: gradients, masks, batching over people, and recovery of a planted model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.w2w import small
from w2w import inversion, subspace

# optax.adam: 1 - decay**count
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def setting():
    tree = small.params()
    layout = small.layout(tree)
    space = subspace.fit(np.asarray(small.adapters(tree, 9)), 4)
    images = np.random.default_rng(5).normal(size=(3, 2, *small.MODEL.latent_shape))
    return tree, small.shared(tree), layout, space, jnp.asarray(images, jnp.float32)


def recipe(**changes):
    values = dict(num_steps=5, batch=2, learning_rate=0.1, prior=0.01, schedule=small.SCHEDULE)
    return inversion.InversionRecipe(**{**values, **changes})


def solve(setting, images, key, **changes):
    _, shared, layout, space, _ = setting
    return inversion.invert(
        images, key, space, shared, layout, small.MODEL, small.LORA, recipe(**changes)
    )


@functools.partial(jax.jit, static_argnames="layout")
def loss_and_gradient(beta, images, mask, key, space, shared, layout):
    return jax.value_and_grad(inversion.inversion_loss)(
        beta, images, mask, key, space, shared, layout, small.MODEL, small.LORA, recipe()
    )


def evaluate(setting, beta, images, mask=None, key=0):
    """The loss and its gradient: one program for all tests, another one with a mask."""
    _, shared, layout, space, _ = setting
    return loss_and_gradient(beta, images, mask, jax.random.key(key), space, shared, layout)


def loss(setting, *args, **kwargs):
    return evaluate(setting, *args, **kwargs)[0]


def test_people_at_once_equal_people_one_by_one(setting):
    images = setting[-1]
    together = solve(setting, images, jax.random.key(0))
    first = solve(setting, images[:1], jax.random.key(0))
    np.testing.assert_allclose(together[0], first[0], atol=1e-5)
    assert float(jnp.abs(together[0] - together[1]).max()) > 1e-3


def test_spaces_of_any_number_of_models_share_one_compilation(setting, monkeypatch):
    _, shared, layout, space, images = setting
    original, traced = inversion.inversion_loss, []

    def counted(*args):
        traced.append(len(args))
        return original(*args)

    monkeypatch.setattr(inversion, "inversion_loss", counted)
    own = recipe(learning_rate=0.11)  # of no other test: its step has not been traced
    counts = []
    for models in (9, 5):
        one = space.replace(n=models)
        inversion.invert(
            images, jax.random.key(0), one, shared, layout, small.MODEL, small.LORA, own
        )
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


def test_gradient_equals_finite_differences(setting):
    images = setting[-1][0]
    beta = 0.3 * jax.random.normal(jax.random.key(4), (4,))
    _, gradient = evaluate(setting, beta, images)
    for i in range(4):
        step = 1e-2 * jax.nn.one_hot(i, 4)
        numeric = (loss(setting, beta + step, images) - loss(setting, beta - step, images)) / 2e-2
        np.testing.assert_allclose(gradient[i], numeric, rtol=2e-2, atol=2e-4)


def test_masked_loss_ignores_the_target_outside_the_mask(setting):
    images = setting[-1][0]
    mask = jnp.zeros((2, 4, 4)).at[:, 1:3, 1:3].set(1.0)
    beta = jnp.zeros(4)
    # A denoiser sees the whole noisy image, so only the target outside the mask may change freely.
    from w2w.diffusion import flow

    predicted = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 3)), jnp.float32)
    changed = target.at[:, :1].add(3.0)
    times = jnp.array([0.4, 0.8])
    one = flow.velocity_loss(predicted, target, times, mask[..., None])
    other = flow.velocity_loss(predicted, changed, times, mask[..., None])
    np.testing.assert_array_equal(one, other)
    by_hand = (((predicted - target) * mask[..., None]) ** 2).sum((1, 2, 3)) / 48 / times**2
    np.testing.assert_allclose(one, by_hand, rtol=1e-5)
    full = loss(setting, beta, images, jnp.ones((2, 4, 4)))
    np.testing.assert_allclose(full, loss(setting, beta, images), rtol=1e-6)
    assert float(loss(setting, beta, images, mask)) < float(full)


def test_more_steps_fit_better_than_the_mean_model(setting):
    images = setting[-1][:1]
    found = solve(setting, images, jax.random.key(1))
    _, _, _, space, _ = setting
    scaled = found[0] / jnp.sqrt(space.variances)
    keys = range(20, 52)
    start = np.mean([loss(setting, jnp.zeros(4), images[0], key=k) for k in keys])
    end = np.mean([loss(setting, scaled, images[0], key=k) for k in keys])
    assert end < start
