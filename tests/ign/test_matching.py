"""The bank of samples: what is nearest, what is replaced, what is taken out, and the step's use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ign import losses, matching, models, train


def filled(places, dims=4, labels=None, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    noise, images = (jax.random.normal(k, (places, dims)) for k in keys)
    return matching.make_bank(noise, images, labels)


def rows_in(chosen, noise):
    """Index of each chosen noise in the bank."""
    return np.array([int(np.flatnonzero((np.asarray(noise) == row).all(axis=1))[0])
                     for row in np.asarray(chosen)])


def test_the_nearest_sample_is_chosen():
    bank = filled(18)
    x = jax.random.normal(jax.random.key(5), (6, 4))
    chosen, images, after = matching.choose(bank, x)
    distances = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(bank.images)[None], axis=-1)
    np.testing.assert_array_equal(chosen, np.asarray(bank.noise)[distances.argmin(axis=1)])
    np.testing.assert_array_equal(images, np.asarray(bank.images)[distances.argmin(axis=1)])
    assert after is bank


def test_a_sample_is_taken_once():
    bank = filled(18)
    x = bank.images[:1] + 1e-3
    seen = []
    for _ in range(5):
        chosen, _, bank = matching.choose(bank, x, once=True)
        seen.append(int(rows_in(chosen, bank.noise)[0]))
    assert seen[0] == 0 and len(set(seen)) == 5


def test_samples_of_other_labels_do_not_compete():
    bank = filled(18, labels=jnp.arange(18) % 3)
    labels = jnp.array([0, 1, 2, 2])
    chosen, _, _ = matching.choose(bank, jax.random.normal(jax.random.key(5), (4, 4)), labels)
    np.testing.assert_array_equal(rows_in(chosen, bank.noise) % 3, labels)


def test_refilling_replaces_the_oldest_and_empty_places_are_never_chosen():
    bank = matching.empty_bank(6, (4,), conditional=True)
    for step in range(4):
        fresh = filled(2, labels=jnp.full(2, step), seed=step)
        bank = matching.refill(bank, fresh, jnp.int32(step))
        if step == 0:
            chosen, _, _ = matching.choose(bank, jax.random.normal(jax.random.key(9), (50, 4)))
            assert set(rows_in(chosen, bank.noise)) == {0, 1}
    np.testing.assert_array_equal(bank.labels, [3, 3, 1, 1, 2, 2])
    np.testing.assert_array_equal(bank.images[2:4], filled(2, seed=1).images)
    with pytest.raises(ValueError, match="bank of 6 is no multiple of the 4 samples"):
        matching.refill(bank, filled(4, labels=jnp.zeros(4, jnp.int32)), jnp.int32(0))


@pytest.mark.usefixtures("standard_promotion")  # optax's Adam: 1 - decay**count
def test_the_step_fills_the_bank_and_trains_what_it_chose():
    net = models.Perceptron((8,))
    recipe = train.Recipe(10, 1e-2, pool=2, bank=32, once=True)
    variables = models.init(net, jax.random.key(0), (2,))
    weights = losses.Weights(0.0, 0.0, 0.0, 1.0)
    objective = losses.Objective(losses.l2, use_matching=True)
    state = train.init_state(variables, recipe, weights, None, matching.empty_bank(32, (2,)))
    step = jax.jit(train.make_train_step(net, objective, recipe))
    x = jax.random.normal(jax.random.key(1), (8, 2))
    new, metrics = step(state, {"image": x}, jax.random.key(2))
    fresh = np.asarray(new.bank.noise[:16])
    assert (np.asarray(new.bank.noise[16:]) == 0).all() and len(np.unique(fresh, axis=0)) == 16
    # The images were drawn by the parameters before the step; the chosen ones are taken out.
    drawn = np.asarray(net.apply(variables, fresh))
    distances = np.square(np.asarray(x)[:, None] - drawn[None]).sum(axis=-1)
    taken = np.zeros(16, bool)
    taken[distances.argmin(axis=1)] = True
    np.testing.assert_array_equal(np.isinf(new.bank.squares[:16]), taken)
    np.testing.assert_allclose(new.bank.images[:16], drawn, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["matching"], distances.min(axis=1).mean() / 2, rtol=1e-4)
    pairs = zip(*map(jax.tree.leaves, (state.params, new.params)), strict=True)
    assert all((a != b).any() for a, b in pairs)
    with pytest.raises(ValueError, match="needs a state with a bank"):
        train.make_train_step(net, objective, recipe)(
            state.replace(bank=None), {"image": x}, jax.random.key(2)
        )
