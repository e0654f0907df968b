"""Round trips of surfaces and values through every format, and unreadable files."""

import gzip

import meshio
import nibabel as nib
import numpy as np
import pytest
from nibabel import freesurfer, gifti

from meshgcn import files
from meshgcn.meshes import MeshError, MissingSurfaceError
from tests.meshgcn.shapes import icosphere


@pytest.mark.parametrize("name", ["lh.pial", "a.surf.gii", "a.vtk", "a.ply", "a.obj"])
def test_surfaces(name, tmp_path):
    mesh = icosphere(1)
    found = files.read_surface(files.write_surface(tmp_path / name, mesh), "lh")
    np.testing.assert_allclose(found.vertices, mesh.vertices, atol=1e-5)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    assert found.structures == (("lh", 42),)


def polydata(mesh, version, binary, faces=None):
    """Bytes of a legacy VTK file as VTK 8 (4.2) or VTK 9 (5.1) writes it."""
    faces = mesh.faces if faces is None else faces

    def numbers(values, kind):
        values = np.asarray(values)
        if binary:
            return values.astype(kind).tobytes() + b"\n"
        return " ".join(map(str, values.ravel().tolist())).encode() + b"\n"

    count, size = faces.shape
    parts = [
        f"# vtk DataFile Version {version}\nhere\n{'BINARY' if binary else 'ASCII'}\n".encode(),
        f"DATASET POLYDATA\nPOINTS {len(mesh)} float\n".encode(),
        numbers(mesh.vertices, ">f4"),
        b"METADATA\nINFORMATION 1\nNAME L2_NORM_RANGE LOCATION vtkDataArray\nDATA 2 0 1\n\n",
    ]
    if version == "5.1":
        parts += [
            f"POLYGONS {count + 1} {faces.size}\nOFFSETS vtktypeint64\n".encode(),
            numbers(size * np.arange(count + 1), ">i8"),
            b"CONNECTIVITY vtktypeint64\n",
            numbers(faces, ">i8"),
        ]
    else:
        rows = np.concatenate([np.full((count, 1), size), faces], axis=1)
        parts += [f"POLYGONS {count} {rows.size}\n".encode(), numbers(rows, ">i4")]
    normals = b"POINT_DATA %d\nNORMALS n float\n" % len(mesh) + numbers(mesh.vertices, ">f4")
    return b"".join([*parts, normals])


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("version", ["4.2", "5.1"])
def test_polydata(version, binary, tmp_path):
    mesh, path = icosphere(1), tmp_path / "a.vtk"
    content = polydata(mesh, version, binary)
    path.write_bytes(content)
    found = files.read_surface(path, "lh")
    np.testing.assert_allclose(found.vertices, mesh.vertices, atol=1e-5)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    path.write_bytes(content[: content.index(b"POLYGONS") + 60])
    with pytest.raises(MeshError, match="a.vtk: cannot be read as a surface"):
        files.read_surface(path)
    path.write_bytes(content.replace(b"POLYGONS", b"TRIANGLE_STRIPS"))
    with pytest.raises(MeshError, match="a.vtk: holds TRIANGLE_STRIPS, not only"):
        files.read_surface(path)
    path.write_bytes(polydata(mesh, version, binary, mesh.faces.reshape(-1, 4)))
    with pytest.raises(MeshError, match="a.vtk: holds polygons of 4 vertices"):
        files.read_surface(path)


@pytest.mark.parametrize("name", ["lh.thickness", "lh.map.shape.gii"])
def test_values(name, tmp_path):
    values = np.random.default_rng(0).normal(size=42)
    found = files.read_values(files.write_values(tmp_path / name, values))
    np.testing.assert_allclose(found, values, atol=1e-6)


@pytest.mark.parametrize("suffix", ["mgh", "mgz"])
def test_mgh_values(suffix, tmp_path):
    values = np.arange(12, dtype=np.float32)
    image = freesurfer.MGHImage(values[:, None, None], np.eye(4))
    nib.save(image, tmp_path / f"lh.thickness.{suffix}")
    found = files.read_values(tmp_path / f"lh.thickness.{suffix}")
    np.testing.assert_array_equal(found, values)


def test_order_of_arrays_in_gifti_does_not_matter(tmp_path):
    mesh = icosphere(0)
    points = gifti.GiftiDataArray(np.float32(mesh.vertices), "NIFTI_INTENT_POINTSET")
    faces = gifti.GiftiDataArray(np.int32(mesh.faces), "NIFTI_INTENT_TRIANGLE")
    content = gifti.GiftiImage(darrays=[faces, points]).to_bytes()
    (tmp_path / "a.surf.gii.gz").write_bytes(gzip.compress(content))
    found = files.read_surface(tmp_path / "a.surf.gii.gz")
    np.testing.assert_array_equal(found.faces, mesh.faces)
    (tmp_path / "half.gii").write_bytes(gifti.GiftiImage(darrays=[points]).to_bytes())
    with pytest.raises(MeshError, match="1 arrays of points, 0 of triangles"):
        files.read_surface(tmp_path / "half.gii")


def test_labels(tmp_path):
    names = ["unknown", "entorhinal"]
    colours = np.array([[25, 5, 25, 0, 0], [20, 30, 40, 0, 0]])
    path = tmp_path / "lh.aparc.annot"
    freesurfer.write_annot(path, np.array([0, 1, 1]), colours, names, fill_ctab=True)
    found, read = files.read_labels(path)
    np.testing.assert_array_equal(found, [0, 1, 1])
    assert read == names


def test_faces_that_are_no_triangles_are_not_passed_over(tmp_path):
    cells = [("triangle", [[0, 1, 2]]), ("quad", [[0, 1, 2, 3]])]
    meshio.Mesh(np.eye(4)[:, :3], cells).write(tmp_path / "a.vtk")
    with pytest.raises(MeshError, match="a.vtk: holds quad, not only triangles"):
        files.read_surface(tmp_path / "a.vtk")


@pytest.mark.parametrize("name", ["lh.white", "a.gii", "a.vtk", "a.ply"])
def test_damaged_files_are_named(name, tmp_path):
    with pytest.raises(MissingSurfaceError, match=f"no file .*{name}"):
        files.read_surface(tmp_path / name)
    (tmp_path / name).write_bytes(b"no surface")
    with pytest.raises(MeshError, match=f"{name}: cannot be read"):
        files.read_surface(tmp_path / name)
    with pytest.raises(MeshError, match=f"{name}: cannot be read"):
        files.read_values(tmp_path / name)
    with pytest.raises(MeshError, match=f"{name}: cannot be read"):
        files.read_labels(tmp_path / name)


def test_values_need_one_number_a_vertex(tmp_path):
    with pytest.raises(MeshError, match="expected \\[vertices\\]"):
        files.write_values(tmp_path / "lh.a", np.zeros((3, 2)))
