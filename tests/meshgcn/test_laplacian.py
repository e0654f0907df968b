"""Laplacians against SciPy, closed forms and dense eigenvalues."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse import csgraph

from meshgcn.laplacian import adjacency, laplacian, largest_eigenvalue, scaled_laplacian
from tests.meshgcn.shapes import icosphere, two_spheres


@pytest.mark.parametrize("normalisation", ["symmetric", "combinatorial"])
def test_against_scipy(normalisation):
    mesh = icosphere(2)
    matrix = adjacency(mesh.edges(), len(mesh))
    found = laplacian(matrix, normalisation).toarray()
    expected = csgraph.laplacian(matrix, normed=normalisation == "symmetric").toarray()
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_random_walk_columns_sum_to_zero():
    edges, weights = np.array([[0, 1], [1, 2], [0, 2], [2, 3]]), np.array([1.0, 2.0, 0.5, 3.0])
    matrix = laplacian(adjacency(edges, 5, weights), "random_walk").toarray()
    np.testing.assert_allclose(matrix[:, :4].sum(axis=0), 0, atol=1e-15)
    assert matrix[0, 1] == pytest.approx(-1 / 3)  # edge of weight 1, vertex 1 has degree 3


def test_a_vertex_without_neighbours_keeps_the_identity():
    for normalisation in ("symmetric", "random_walk"):
        row = laplacian(adjacency(np.array([[0, 1]]), 3), normalisation).toarray()[2]
        np.testing.assert_array_equal(row, [0, 0, 1])


def test_cycle_has_known_eigenvalues():
    n = 100
    edges = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
    matrix = laplacian(adjacency(edges, n), "combinatorial")
    expected = np.sort(2 - 2 * np.cos(2 * np.pi * np.arange(n) / n))
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix.toarray()), expected, atol=1e-12)
    assert largest_eigenvalue(matrix) == pytest.approx(4, abs=1e-9)


@pytest.mark.parametrize("normalisation", ["symmetric", "random_walk", "combinatorial"])
def test_spectrum_of_the_scaled_laplacian_fills_the_interval(normalisation):
    matrix = scaled_laplacian(icosphere(2), normalisation, "exact").toarray()
    values = np.sort(np.linalg.eigvals(matrix).real)
    assert values[0] == pytest.approx(-1, abs=1e-9)
    assert values[-1] == pytest.approx(1, abs=1e-9)


def test_bound_of_two_leaves_an_empty_diagonal():
    matrix = scaled_laplacian(icosphere(1))
    assert matrix.nnz == 2 * len(icosphere(1).edges())
    np.testing.assert_array_equal(matrix.diagonal(), 0)
    assert np.linalg.eigvalsh(matrix.toarray())[-1] < 0.6  # of [-1, 1]: half of it is unused


def test_union_is_block_diagonal():
    matrix = scaled_laplacian(two_spheres(1), largest="exact")
    half = len(icosphere(1))
    assert abs(matrix[:half, half:]).sum() == 0
    assert sp.csgraph.connected_components(matrix)[0] == 2


@pytest.mark.parametrize(
    "edges, message",
    [([[0, 0]], "join a vertex to itself"), ([[0, 1], [1, 0]], "repeated"), ([[0, 7]], "0 to 7")],
)
def test_bad_edges_are_named(edges, message):
    with pytest.raises(ValueError, match=message):
        adjacency(np.array(edges), 3)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="'cot'"):
        scaled_laplacian(icosphere(0), "cot")
    with pytest.raises(ValueError, match="positive, got 0"):
        scaled_laplacian(icosphere(0), largest=0.0)


def test_a_bound_that_is_none_is_refused():
    """With it the terms of a convolution would grow with their number."""
    mesh = icosphere(1)
    with pytest.raises(ValueError, match="2 is no bound of the combinatorial .* is 8.37"):
        scaled_laplacian(mesh, "combinatorial")
    with pytest.raises(ValueError, match=r"1.2 is no bound of the symmetric"):
        scaled_laplacian(mesh, "symmetric", 1.2)
    values = np.linalg.eigvalsh(scaled_laplacian(mesh, "combinatorial", 12.0).toarray())
    assert values.min() >= -1 - 1e-12 and values.max() <= 1
