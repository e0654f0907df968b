"""Meshes: what is wrong with a bad one is named; geometry of spheres; unions."""

import numpy as np
import pytest

from meshgcn import meshes
from meshgcn.meshes import Mesh, check, check_same_topology
from tests.meshgcn.shapes import icosphere, relabelled, two_spheres


def changed(mesh, vertices=None, faces=None):
    return Mesh(
        mesh.vertices if vertices is None else vertices,
        mesh.faces if faces is None else faces,
        mesh.structures,
    )


def test_geometry_of_a_sphere():
    mesh = icosphere(4, radius=10.0)
    check(mesh)
    assert mesh.euler() == 2
    assert mesh.volume() == pytest.approx(4 / 3 * np.pi * 1000, rel=0.01)
    assert mesh.areas().sum() == pytest.approx(4 * np.pi * 100, rel=0.01)
    np.testing.assert_allclose(mesh.normals(), mesh.vertices / 10, atol=0.01)


def test_union_and_split_are_inverse():
    mesh = two_spheres(1)
    check(mesh)
    assert mesh.structures == (("lh", 42), ("rh", 42))
    assert mesh.euler() == 4
    assert mesh.part("rh") == slice(42, 84)
    again = meshes.union(mesh.split())
    np.testing.assert_array_equal(again.faces, mesh.faces)
    np.testing.assert_array_equal(mesh.labels(), np.repeat([0, 1], 42))
    with pytest.raises(KeyError, match="'lh', 'rh'"):
        mesh.part("brainstem")
    with pytest.raises(meshes.MeshError, match="different names"):
        meshes.union([icosphere(0), icosphere(0)])


def test_digest_is_of_the_topology():
    mesh = icosphere(1)
    assert mesh.digest() == changed(mesh, mesh.vertices * 2).digest()
    assert mesh.digest() != icosphere(1, "other").digest()
    assert mesh.digest() != changed(mesh, faces=mesh.faces[::-1]).digest()


def test_what_is_wrong_is_named():
    mesh = icosphere(1)
    bad = mesh.vertices.copy()
    bad[5, 1] = np.nan
    with pytest.raises(meshes.NonFiniteError, match="lh.pial: 1 vertices not finite, first 5"):
        check(changed(mesh, bad), "lh.pial")
    faces = mesh.faces.copy()
    faces[3, 0] = 42
    with pytest.raises(meshes.TopologyError, match="0 to 42, there are 42"):
        check(changed(mesh, faces=faces))
    faces = mesh.faces.copy()
    faces[7, 1] = faces[7, 0]
    with pytest.raises(meshes.NonManifoldError, match="repeated vertex, first 7"):
        check(changed(mesh, faces=faces))
    extra = np.concatenate([mesh.faces, mesh.faces[:1]])
    with pytest.raises(meshes.NonManifoldError, match="3 edges of more than two faces"):
        check(changed(mesh, faces=extra))
    faces = mesh.faces.copy()
    faces[4] = faces[4, ::-1]
    with pytest.raises(meshes.FlippedFacesError, match="3 edges whose two faces"):
        check(changed(mesh, faces=faces))
    with pytest.raises(meshes.FlippedFacesError, match="point inwards"):
        check(changed(mesh, faces=mesh.faces[:, ::-1]))
    with pytest.raises(meshes.TopologyError, match="no faces"):
        check(Mesh(np.zeros((3, 3)), np.zeros((0, 3))))
    check(changed(mesh, faces=mesh.faces[1:]))  # a border is allowed


def test_correspondence_with_a_template():
    mesh = icosphere(1)
    check_same_topology(changed(mesh, faces=np.roll(mesh.faces, 1, axis=1)), mesh)
    with pytest.raises(meshes.VertexCountError, match="a.gii: 162 vertices, the template has 42"):
        check_same_topology(icosphere(2), mesh, "a.gii")
    with pytest.raises(meshes.TopologyError, match="79 faces, the template has 80"):
        check_same_topology(changed(mesh, faces=mesh.faces[1:]), mesh)
    with pytest.raises(meshes.FlippedFacesError, match="all faces"):
        check_same_topology(changed(mesh, faces=mesh.faces[:, ::-1]), mesh)
    order = np.random.default_rng(0).permutation(42)
    with pytest.raises(meshes.TopologyError, match="of 80 faces differ"):
        check_same_topology(relabelled(mesh, order), mesh)
