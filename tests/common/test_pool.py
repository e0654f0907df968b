"""Maximum over windows: equal to Flax's, with its gradients, also of gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nets import pool

FORMS = [
    ((2, 2), (2, 2), "VALID"), ((3, 3), (2, 2), "VALID"), ((3, 3), (2, 2), "SAME"),
    ((3, 3), (2, 2), ((1, 1), (1, 1))), ((3, 3), (1, 1), ((1, 1), (1, 1))),
    ((3, 2), (2, 3), ((1, 0), (0, 2))),
]  # fmt: skip


def images(ties):
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype(np.float32)
    # Rectified and rounded values are often equal, zeros most of all.
    return jnp.asarray(np.maximum(np.round(x), 0.0) if ties else x)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_flax(form, ties):
    x = images(ties)

    def both(function):
        y, back = jax.vjp(lambda x: function(x, *form), x)
        slope = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.float32)
        return y, back(slope)[0]

    for found, expected in zip(both(pool.max_pool), both(nn.max_pool), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_gradient_of_a_gradient():
    x = images(False)

    def penalty(function):
        def score(x):
            return jnp.sum(jnp.sin(function(x**2, (3, 3), (2, 2), "SAME")))

        return jax.grad(lambda x: jnp.sum(jax.grad(score)(x) ** 2))(x)

    np.testing.assert_allclose(penalty(pool.max_pool), penalty(nn.max_pool), rtol=1e-4, atol=1e-5)


def test_no_scalar_loop_is_in_the_program_and_batches_of_networks_work():
    x = images(False)
    slopes = jax.grad(lambda x: jnp.sum(pool.max_pool(x, (2, 2), (2, 2)) ** 2))
    text = jax.jit(slopes).lower(x).as_text()
    assert ("select_and_scatter" in text) == (jax.default_backend() != "cpu")
    stacked = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(jax.vmap(slopes)(stacked)[1], slopes(2 * x), rtol=1e-6)
    assert pool.max_pool(x[0], (2, 2), (2, 2)).shape == (4, 4, 3)  # one image: left to Flax
