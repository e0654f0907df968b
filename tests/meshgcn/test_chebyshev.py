"""Chebyshev convolution: closed forms on the eigenbasis, dense matrices, gradients, symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meshgcn import chebyshev, operators
from meshgcn.laplacian import scaled_laplacian
from tests.meshgcn.shapes import icosphere, relabelled, two_spheres


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(seed, *shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def dense(x, weights, matrix):
    """The definition, in NumPy."""
    before, last = np.zeros_like(x), x
    total = np.einsum("vbi,io->vbo", x, weights[0])
    for k, weight in enumerate(weights[1:], 1):
        new = (1 if k == 1 else 2) * np.einsum("uv,vbi->ubi", matrix, last) - before
        before, last = last, new
        total += np.einsum("vbi,io->vbo", new, weight)
    return total


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("route", ["gather", "bcsr"])
@pytest.mark.parametrize("largest", [2.0, "exact"])
def test_value_and_gradients_against_the_definition(count, route, largest):
    matrix = scaled_laplacian(two_spheres(1), largest=largest)
    operator = chebyshev.operator_for(matrix, route, np.float64)
    x, weights = draw(0, matrix.shape[0], 3, 4), draw(1, count, 4, 5)
    g = draw(2, matrix.shape[0], 3, 5)
    found, back = jax.vjp(jax.jit(chebyshev.convolve), x, weights, operator)
    full = matrix.toarray()
    np.testing.assert_allclose(found, dense(np.array(x), np.array(weights), full), atol=1e-12)

    def definition(x, weights):
        stack = chebyshev.terms(x.reshape(len(full), -1), count, jnp.asarray(full))
        return jnp.einsum("kvbi,kio->vbo", stack.reshape(count, *x.shape), weights)

    expected = jax.vjp(jax.jit(definition), x, weights)[1](g)
    for ours, theirs in zip(back(g)[:2], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradient_where_the_laplacian_is_not_symmetric():
    matrix = scaled_laplacian(icosphere(1), "random_walk", 1.7)
    operator = chebyshev.operator_for(matrix, dtype=np.float64)
    assert operator.back_columns is not None
    x, weights = draw(0, matrix.shape[0], 2, 3), draw(1, 4, 3, 2)
    g = draw(2, matrix.shape[0], 2, 2)
    found = jax.vjp(jax.jit(chebyshev.convolve), x, weights, operator)[1](g)
    # The adjoint of a linear map: <g, C(x, w)> is <C'(g), x> and, as C is bilinear, <dw, w>.
    value = float(jnp.vdot(g, chebyshev.convolve(x, weights, operator)))
    assert float(jnp.vdot(found[0], x)) == pytest.approx(value, abs=1e-12)
    assert float(jnp.vdot(found[1], weights)) == pytest.approx(value, abs=1e-12)


def test_single_precision():
    matrix = scaled_laplacian(icosphere(3))
    operator = chebyshev.operator_for(matrix)
    x, weights = (
        draw(0, matrix.shape[0], 4, 16, dtype=np.float32),
        draw(1, 6, 16, 8, dtype=np.float32) / 10,
    )
    found = jax.jit(chebyshev.convolve)(x, weights, operator)
    expected = dense(np.float64(x), np.float64(weights), matrix.toarray())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_terms_are_cosines_on_the_eigenbasis():
    matrix = scaled_laplacian(icosphere(1), largest="exact")
    values, vectors = np.linalg.eigh(matrix.toarray())
    operator = chebyshev.operator_for(matrix, dtype=np.float64)
    found = chebyshev.terms(jnp.asarray(vectors), 7, operator)
    angles = np.arccos(np.clip(values, -1, 1))
    for k, term in enumerate(found):
        np.testing.assert_allclose(term, vectors * np.cos(k * angles), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_receptive_field_is_terms_minus_one():
    mesh = icosphere(2)
    operator = chebyshev.operator_for(scaled_laplacian(mesh), dtype=np.float64)
    impulse = jnp.zeros((len(mesh), 1, 1)).at[0].set(1.0)
    hops = np.full(len(mesh), 99)
    hops[0] = 0
    for step in range(1, 9):
        reached = mesh.edges()[(hops[mesh.edges()] < step).any(axis=1)].ravel()
        hops[reached] = np.minimum(hops[reached], step)
    for count in (1, 3, 4):
        found = chebyshev.convolve(impulse, jnp.ones((count, 1, 1)), operator)
        touched = np.abs(np.asarray(found)[:, 0, 0]) > 1e-14
        assert hops[touched].max() == count - 1


@pytest.mark.usefixtures("x64")
def test_renumbered_vertices_give_renumbered_results():
    mesh = icosphere(2)
    order = np.random.default_rng(3).permutation(len(mesh))
    x, weights = draw(0, len(mesh), 2, 3), draw(1, 4, 3, 2)
    one = chebyshev.operator_for(scaled_laplacian(mesh), dtype=np.float64)
    other = chebyshev.operator_for(scaled_laplacian(relabelled(mesh, order)), dtype=np.float64)
    np.testing.assert_allclose(
        chebyshev.convolve(x[order], weights, other),
        chebyshev.convolve(x, weights, one)[order],
        atol=1e-12,
    )


def test_mistakes_are_named():
    matrix = scaled_laplacian(icosphere(0))
    with pytest.raises(ValueError, match="'coo'"):
        chebyshev.operator_for(matrix, "coo")
    with pytest.raises(ValueError, match="symmetric"):
        chebyshev.operator_for(scaled_laplacian(two_spheres(1), "random_walk"), "bcsr")
    with pytest.raises(ValueError, match="for 3 channels, x has 2"):
        chebyshev.convolve(jnp.ones((12, 1, 2)), jnp.ones((2, 3, 4)), operators.from_matrix(matrix))
