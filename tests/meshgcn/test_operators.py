"""Sparse products and maxima against dense matrices, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from meshgcn import operators


def matrix(rows, columns, seed=0, density=0.3):
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, columns)) * (random.random((rows, columns)) < density)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(7, 7), (5, 11), (11, 5)])
def test_product_and_its_gradient(shape):
    full = matrix(*shape)
    full[2] = 0  # an empty row
    operator = operators.from_matrix(full, np.float64)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(shape[1], 3)))
    g = jnp.asarray(np.random.default_rng(2).normal(size=(shape[0], 3)))
    found, back = jax.vjp(jax.jit(operators.multiply), operator, x)
    np.testing.assert_allclose(found, full @ x, atol=1e-13)
    np.testing.assert_allclose(back(g)[1], full.T @ g, atol=1e-13)
    np.testing.assert_allclose(operators.to_matrix(operator, shape[1]).toarray(), full, atol=1e-15)


def test_symmetry_is_found():
    full = matrix(6, 6)
    assert operators.from_matrix(full + full.T).back_columns is None
    assert operators.from_matrix(full).back_columns is not None


def test_maximum_and_its_gradient():
    members = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1]]) / 2
    operator = operators.from_matrix(sp.csr_array(members))
    x = jnp.array([[3.0, -1], [2, -2], [5, 0], [7, 9], [1, 4], [8, 2]])
    found, back = jax.vjp(jax.jit(operators.maximum), operator, x)
    np.testing.assert_array_equal(found, [[3, -1], [7, 9], [8, 4]])
    g = back(jnp.array([[1.0, 2], [3, 4], [5, 6]]))[1]
    np.testing.assert_array_equal(g, [[1, 2], [0, 0], [0, 0], [3, 4], [0, 6], [5, 0]])


def test_products_map_over_an_axis():
    full = matrix(5, 6)
    operator = operators.from_matrix(full)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 3)), jnp.float32)
    found = jax.vmap(lambda x: operators.multiply(operator, x))(x)
    np.testing.assert_allclose(found, np.einsum("rc,ncj->nrj", full, x), atol=1e-5)


def test_entries_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        operators.from_matrix(np.array([[0, np.nan], [1, 0]]))
