"""Coarser levels: invariants of the matrices on nested and on collapsed meshes."""

import numpy as np
import pytest

from meshgcn import pooling
from meshgcn.meshes import Mesh, MeshError, check
from tests.meshgcn.shapes import icosphere, relabelled, two_spheres


def test_nested_levels_are_the_coarser_icospheres():
    levels = pooling.levels(icosphere(3), 3, "nested")
    assert [len(level.mesh) for level in levels] == [162, 42, 12]
    for level, subdivisions in zip(levels, (2, 1, 0), strict=True):
        expected = icosphere(subdivisions)
        np.testing.assert_allclose(level.mesh.vertices, expected.vertices)
        assert set(map(frozenset, level.mesh.faces.tolist())) == set(
            map(frozenset, expected.faces.tolist())
        )
        check(level.mesh)
        assert level.mesh.euler() == 2


def test_interpolation_is_exact_at_midpoints():
    (level,) = pooling.levels(icosphere(2), 1, "nested")
    flat = level.up @ level.mesh.vertices  # chord midpoints, before they were put on the sphere
    ends = level.up[[50]].indices
    assert len(ends) == 2
    np.testing.assert_allclose(flat[50], level.mesh.vertices[ends].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("method", ["nested", "collapse"])
def test_invariants(method):
    mesh = two_spheres(3)
    fine = mesh
    for level in pooling.levels(mesh, 2, method):
        coarse = level.mesh
        assert len(coarse) < 0.3 * len(fine)
        for matrix in (level.mean, level.select, level.up):
            np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
            assert matrix.data.min() >= 0
        assert (np.asarray(level.mean.sum(axis=0)).ravel() > 0).all()  # nobody is left out
        assert level.select.nnz == len(coarse)
        of_coarse, of_fine = coarse.labels(), fine.labels()
        for matrix, rows, columns in (
            (level.mean, of_coarse, of_fine),
            (level.select, of_coarse, of_fine),
            (level.up, of_fine, of_coarse),
        ):
            entries = matrix.tocoo()
            np.testing.assert_array_equal(rows[entries.row], columns[entries.col])
        check(coarse)
        fine = coarse


def test_selection_undoes_interpolation_where_nested():
    (level,) = pooling.levels(icosphere(2), 1, "nested")
    difference = level.select @ level.up - np.eye(len(level.mesh))
    np.testing.assert_allclose(difference, 0, atol=1e-15)


@pytest.mark.parametrize("method, bound", [("nested", 0.08), ("collapse", 0.15)])
def test_smooth_functions_survive_the_round_trip(method, bound):
    mesh = icosphere(3)
    (level,) = pooling.levels(mesh, 1, method)
    for function in mesh.vertices.T:
        back = level.up @ (level.mean @ function)
        assert np.linalg.norm(back - function) < bound * np.linalg.norm(function)


def test_barycentric_weights_reproduce_points_of_the_coarse_mesh():
    triangle = np.array([[[0.0, 0, 0], [2, 0, 0], [0, 2, 0]]])
    points = np.array([[0.5, 0.5, 0], [1, 1, 3], [-1, -1, 0], [1, -2, 0], [4, 0.5, 1]])
    weights, distance = pooling._nearest_in_triangle(points, np.repeat(triangle, 5, axis=0))
    nearest = np.einsum("nc,cd->nd", weights, triangle[0])
    expected = [[0.5, 0.5, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0]]
    np.testing.assert_allclose(nearest, expected, atol=1e-12)
    np.testing.assert_allclose(distance, ((points - expected) ** 2).sum(1), atol=1e-12)


def test_deterministic_and_cached(tmp_path, monkeypatch):
    mesh = two_spheres(2)
    first = pooling.levels(mesh, 2, "collapse")
    saved = pooling.levels(mesh, 2, "collapse", tmp_path)
    monkeypatch.setattr(pooling, "collapse", None)  # must not be needed again
    loaded = pooling.levels(mesh, 2, "collapse", tmp_path)
    for a, b, c in zip(first, saved, loaded, strict=True):
        for name in ("mean", "select", "up"):
            assert abs(getattr(a, name) - getattr(b, name)).sum() == 0
            assert abs(getattr(a, name) - getattr(c, name)).sum() == 0
        assert a.mesh.structures == c.mesh.structures


def test_auto_takes_what_fits():
    mesh = icosphere(2)
    nested = pooling.levels(mesh, 1)[0]
    assert len(nested.mesh) == 42
    order = np.random.default_rng(0).permutation(len(mesh))
    shuffled = relabelled(mesh, order)
    assert 30 < len(pooling.levels(shuffled, 1)[0].mesh) < 60
    with pytest.raises(MeshError, match="midpoints"):
        pooling.levels(shuffled, 1, "nested")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'graclus'"):
        pooling.levels(icosphere(1), 1, "graclus")
    with pytest.raises(MeshError, match="not 4 n - 6"):
        pooling.levels(icosphere(0), 1, "nested")
    tetrahedron = Mesh(np.eye(4)[:, :3], [[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    with pytest.raises(MeshError, match="could not be reduced|not map"):
        pooling.levels(tetrahedron, 1, "collapse")
