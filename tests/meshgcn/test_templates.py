"""Templates read from small files with the names that the packages' files have."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from nibabel import cifti2, freesurfer

from common import registry
from meshgcn import bodies, files, templates
from meshgcn.meshes import Mesh, MeshError
from tests.meshgcn.shapes import icosphere

FINE = 3  # subdivisions of what stands for fsaverage5


def zipped(path, written):
    path.write_bytes(gzip.compress(written.read_bytes()))
    written.unlink()


def annot(path, labels, names):
    colours = np.array([[i + 1, 2, 3, 0, 0] for i in range(len(names))])
    freesurfer.write_annot(path, labels, colours, names, fill_ctab=True)


def bands(mesh, count):
    """Labels by height, 0 the lowest."""
    height = mesh.vertices[:, 2]
    return np.minimum(((height + 10) / 20 * count).astype(int), count - 1)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Folders in the place of fetched packages."""
    for name in ("fsaverage5", "desikan/fsaverage5", "desikan/fsaverage6", "fsaverage", "fslr32k"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "subcortex").mkdir()
    mesh = icosphere(FINE)
    for short, side in templates.SIDES:
        for kind, scale in (("white", 1.0), ("pial", 1.2), ("infl", 2.0)):
            surface = Mesh(scale * mesh.vertices, mesh.faces)
            written = files.write_surface(tmp_path / "a.gii", surface)
            zipped(tmp_path / f"fsaverage5/{kind}_{side}.gii.gz", written)
        thickness = mesh.vertices[:, 2] / 10 + 2
        for kind, values in (("thick", thickness), ("sulc", mesh.vertices[:, 0])):
            written = files.write_values(tmp_path / "a.shape.gii", values)
            zipped(tmp_path / f"fsaverage5/{kind}_{side}.gii.gz", written)
        for folder, levels in (
            ("desikan/fsaverage5", 0), ("desikan/fsaverage6", 1), ("fsaverage", 2),
        ):  # fmt: skip
            finer = icosphere(FINE + levels)
            files.write_surface(tmp_path / folder / f"{short}.orig", finer)
            names = ["unknown", "insula", "corpuscallosum", "cuneus"]
            annot(tmp_path / folder / f"{short}.aparc.annot", bands(finer, 4), names)
        letter = side[0].upper()
        names = ["???", f"{letter}_V1_ROI", f"{letter}_MST_ROI"]
        annot(tmp_path / f"fsaverage/{short}.HCP-MMP1.annot", bands(finer, 3), names)
    monkeypatch.setattr(registry, "fetch", lambda name: tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "name, count",
    [("fsaverage", 10242), ("fsaverage6", 2562), ("fsaverage5", 642), ("fsaverage4", 162),
     ("fsaverage3", 42)],
)  # fmt: skip
def test_the_family_is_nested(name, count, packages):
    found = templates.load(name)
    assert found.mesh.structures == (("lh", count), ("rh", count)) and found.nested
    assert found.regions == ("lh.insula", "lh.cuneus", "rh.insula", "rh.cuneus")
    assert (found.thickness[found.labels < 0] == 0).all()
    # Interpolation and selection keep linear functions of the coordinates, the sphere aside.
    part = found.mesh.part("rh")
    inside = found.labels[part] >= 0
    expected = found.mesh.vertices[part, 2] / 10 + 2
    np.testing.assert_allclose(found.thickness[part][inside], expected[inside], atol=0.03)
    np.testing.assert_allclose(found.surfaces["pial"], 1.2 * found.mesh.vertices, atol=0.3)
    middle = found.labels[part] == found.regions.index("rh.insula")
    assert middle.any() and (np.abs(found.mesh.vertices[part][middle, 2] + 2.5) <= 2.6).all()


def test_areas_of_mmp(packages):
    found = templates.load("fsaverage4", "mmp")
    assert found.regions == ("lh.V1", "lh.MST", "rh.V1", "rh.MST")
    height = found.mesh.vertices[:, 2]
    assert height[found.region("MST")].min() > 3 and height[found.labels < 0].max() < -3


def test_a_finer_mesh_must_be_a_subdivision(packages):
    other = icosphere(FINE + 1)
    order = np.concatenate([np.arange(642)[::-1], np.arange(642, 2562)])
    place = np.argsort(order)
    files.write_surface(
        packages / "desikan/fsaverage6/lh.orig", Mesh(other.vertices[order], place[other.faces])
    )
    with pytest.raises(MeshError, match="lh.orig: not a subdivision of fsaverage5"):
        templates.load("fsaverage6")


def test_mean_surfaces_of_the_connectome_project(packages):
    mesh = icosphere(2)
    folder = packages / "fslr32k"
    kept = [np.arange(0, 150), np.arange(10, 162)]
    axes = []
    for (_, side), own in zip(templates.SIDES, kept, strict=True):
        for kind, scale in (("white", 1.0), ("pial", 1.25), ("inflated", 2.0)):
            surface = Mesh(scale * mesh.vertices, mesh.faces)
            files.write_surface(folder / f"{side[0].upper()}.{kind}.gii", surface)
        structure = f"CIFTI_STRUCTURE_CORTEX_{side.upper()}"
        axes.append(cifti2.BrainModelAxis.from_surface(own, 162, structure))
    areas = np.concatenate([1 + own % 2 + 2 * i for i, own in enumerate(kept)])
    areas[0] = 0  # in no area
    np.savez(folder / "vertices.npz", grayl=kept[0], grayr=kept[1])
    names = np.array(["", "L_V1", "L_MST", "R_V1", "R_MST", "hippocampus_left"])
    np.savez(folder / "mmp.npz", map_all=np.append(areas, [5, 5]), labels=names)
    depth = np.arange(len(areas), dtype=np.float32)[None]
    image = cifti2.Cifti2Image(depth, (cifti2.ScalarAxis(["sulc"]), axes[0] + axes[1]))
    nib.save(image, folder / "sulc.dscalar.nii")
    found = templates.load("fslr32k", "mmp")
    assert found.regions == ("lh.V1", "lh.MST", "rh.V1", "rh.MST") and not found.nested
    assert found.labels[:3].tolist() == [-1, 1, 0] and (found.labels[150:172] == -1).all()
    assert found.labels[162 + 10] == 2 and found.labels[162 + 11] == 3
    np.testing.assert_allclose(found.thickness[found.labels >= 0], 2.5, atol=1e-5)
    assert found.sulcal[162 + 10] == 150
    with pytest.raises(ValueError, match="fslr32k comes with mmp"):
        templates.load("fslr32k", "desikan")


def ellipsoid(axes, subdivisions=4):
    mesh = icosphere(subdivisions, radius=1.0)
    return Mesh(mesh.vertices * axes, mesh.faces)


def test_subcortical_bodies(packages):
    for body in templates.SUBCORTEX:
        for letter, side in (("L", -1), ("R", 1)):
            mesh = ellipsoid((3.0, 12.0, 4.0), 3)
            faces = mesh.faces[:, ::-1] if body == "caudate" else mesh.faces  # turned inside out
            moved = Mesh(mesh.vertices + [20 * side, 0, 0], faces)
            files.write_surface(packages / f"subcortex/{body}_{letter}.vtk", moved)
    found = templates.load("fsaverage4", subcortex=True)
    assert len(found.bodies) == 14 and found.bodies[3] == "lh.hippocampus"
    where = found.mesh.part("rh.caudate")
    assert 140 < where.stop - where.start < 180  # a quarter, as the cortex
    assert found.region("hippocampus").sum() > 280
    np.testing.assert_array_equal(found.inner[found.mesh.part("lh")], found.mesh.vertices[:162])
    length = np.linalg.norm(found.surfaces["pial"] - found.inner, axis=1)
    np.testing.assert_allclose(found.thickness[where], length[where])
    assert all(part.volume() > 0 for part in found.mesh.split())


def test_distance_from_the_medial_curve():
    body = ellipsoid((3.0, 12.0, 4.0))
    radius = np.linalg.norm(body.vertices - bodies.medial_points(body), axis=1)
    middle = np.abs(body.vertices[:, 1]) < 6
    across = np.hypot(body.vertices[:, 0], body.vertices[:, 2])
    np.testing.assert_allclose(radius[middle], across[middle], atol=0.05)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    moved = Mesh(0.9 * body.vertices @ turn.T + [5, -3, 2], body.faces)
    smaller = np.linalg.norm(moved.vertices - bodies.medial_points(moved), axis=1)
    np.testing.assert_allclose(smaller, 0.9 * radius, atol=1e-9)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'fsaverage2': fsaverage, fsaverage6"):
        templates.load("fsaverage2")
    with pytest.raises(ValueError, match="'aal': desikan, mmp"):
        templates.load("fsaverage5", "aal")
