"""Tests of TrainState: updates, moving average, populations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.train_state import TrainState


def _params():
    return {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}


def _grads():
    return jax.tree.map(lambda x: jnp.full_like(x, 0.5), _params())


def test_sgd_update_is_the_closed_form():
    state = TrainState.create(_params(), optax.sgd(0.1)).apply_gradients(_grads())
    chex.assert_trees_all_close(state.params, jax.tree.map(lambda x: x - 0.05, _params()))
    assert state.step == 1 and state.step.dtype == jnp.int32
    assert state.eval_params is state.params


def test_moving_average_with_warm_up():
    decay_limit, value, average = 0.3, 0.0, 0.0
    state = TrainState.create({"x": jnp.zeros(())}, optax.sgd(1.0), ema_decay=decay_limit)
    for step in range(8):
        state = state.apply_gradients({"x": -jnp.ones(())})
        value += 1.0
        decay = min(decay_limit, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
        np.testing.assert_allclose(state.eval_params["x"], average, rtol=1e-6)
    assert (1 + 7) / (10 + 7) > decay_limit > 1 / 10  # both branches of the minimum were taken


def test_donation_finds_no_aliases():
    params = _params()
    state = TrainState.create(params, optax.sgd(0.1), ema_decay=0.9)
    update = jax.jit(lambda s: s.apply_gradients(_grads()), donate_argnums=0)
    assert update(state).step == 1  # an aliased buffer would be donated twice
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    chex.assert_trees_all_equal(params, _params())  # the caller's parameters are still there


def test_low_precision_average_keeps_its_dtype():
    params = {"x": jnp.ones(3, jnp.bfloat16)}
    state = TrainState.create(params, optax.sgd(0.125), ema_decay=0.5)
    state = state.apply_gradients({"x": jnp.ones(3, jnp.bfloat16)})
    assert state.ema["x"].dtype == state.params["x"].dtype == jnp.bfloat16


@pytest.mark.usefixtures("standard_promotion")  # optax.adam: a float to the power of its count
def test_population_equals_single_runs():
    tx = optax.adam(0.1)
    inits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))

    def train(x):
        state = TrainState.create({"x": x}, tx, ema_decay=0.9)
        for _ in range(5):
            state = state.apply_gradients(jax.grad(lambda p: jnp.sum(p["x"] ** 2))(state.params))
        return state

    population = jax.vmap(train)(inits)
    assert population.step.shape == (4,)
    for index in range(4):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], population)
        chex.assert_trees_all_close(one, train(inits[index]), rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_decay_outside_the_open_interval_is_refused(decay):
    with pytest.raises(ValueError, match="ema_decay must be in"):
        TrainState.create(_params(), optax.sgd(0.1), ema_decay=decay)
