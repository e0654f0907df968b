"""Reading and writing surfaces and values per vertex: FreeSurfer, GIFTI, VTK, PLY, OBJ."""

import gzip
import os
import pathlib

import nibabel
import numpy as np
from nibabel import freesurfer, gifti

from meshgcn import vtk
from meshgcn.meshes import Mesh, MeshError, MissingSurfaceError, VertexCountError

__all__ = ["read_labels", "read_surface", "read_values", "write_surface", "write_values"]

_MESHIO = (".vtk", ".vtu", ".ply", ".obj", ".stl")
_POINTS, _TRIANGLES = "NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE"
Path = str | os.PathLike[str]


def read_surface(path: Path, name: str = "") -> Mesh:
    """Reads a surface; the suffix tells the format, no known suffix means FreeSurfer geometry.

    FreeSurfer coordinates stay in the surface's own (tkregister) frame.

    Args:
      path: `.gii`, `.gii.gz`, `.vtk`, `.vtu`, `.ply`, `.obj`, `.stl`, or `lh.pial` and the like.
      name: the structure's name; the file's name by default.

    Raises:
      MissingSurfaceError: no such file.
      MeshError: it cannot be read, or holds no triangles.
    """
    path = _existing(path)
    try:
        if _is_gifti(path):
            vertices, faces = _read_gifti_surface(path)
        elif path.suffix.lower() in _MESHIO:
            vertices, faces = _read_meshio(path)
        else:
            vertices, faces = freesurfer.read_geometry(path)
    except MeshError:
        raise
    except (Exception, SystemExit) as error:  # readers raise what they like; meshio even exits
        raise MeshError(f"{path}: cannot be read as a surface: {_line(error)}") from error
    return Mesh(vertices, faces, ((name or path.name, len(vertices)),))


def read_values(path: Path) -> np.ndarray:
    """Reads one number per vertex, float64 `[vertices]`: GIFTI, or FreeSurfer `curv` format.

    Raises:
      MissingSurfaceError: no such file.
      MeshError: it cannot be read, or holds more than one number per vertex.
    """
    path = _existing(path)
    try:
        if _is_gifti(path):
            arrays = [array.data for array in _load_gifti(path).darrays]
            values = np.squeeze(np.stack(arrays))
        elif path.suffix in (".mgh", ".mgz"):
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".mgz" else content
            image = freesurfer.MGHImage.from_bytes(content)  # loading by name leaves it open
            values = np.squeeze(np.asarray(image.dataobj))
        else:
            with open(path, "rb") as file:
                if file.read(3) != b"\xff\xff\xff":  # else read as the format before 1999
                    raise ValueError("not FreeSurfer's curv format")
            values = freesurfer.read_morph_data(path)
    except Exception as error:  # as above
        raise MeshError(f"{path}: cannot be read as values per vertex: {_line(error)}") from error
    if values.ndim != 1:
        raise MeshError(f"{path}: shape {values.shape}, expected one number per vertex")
    return np.asarray(values, np.float64)


def read_labels(path: Path) -> tuple[np.ndarray, list[str]]:
    """Reads a parcellation: (int32 `[vertices]` with -1 for none, names), from `.annot` or GIFTI.

    Raises:
      MissingSurfaceError: no such file.
      MeshError: it cannot be read.
    """
    path = _existing(path)
    try:
        if _is_gifti(path):
            image = _load_gifti(path)
            keys = np.asarray(image.darrays[0].data, np.int64)
            table = image.labeltable.get_labels_as_dict()
            order = sorted(table)
            position = {key: index for index, key in enumerate(order)}
            labels = np.array([position.get(int(key), -1) for key in keys], np.int32)
            return labels, [str(table[key]) for key in order]
        numbers, _, names = freesurfer.read_annot(path)
        return numbers.astype(np.int32), [name.decode() for name in names]
    except Exception as error:  # as above
        raise MeshError(f"{path}: cannot be read as labels: {_line(error)}") from error


def write_surface(path: Path, mesh: Mesh) -> pathlib.Path:
    """Writes a surface in the format of the suffix, as `read_surface` reads it."""
    path = pathlib.Path(path)
    if path.name.endswith(".gii"):
        points = gifti.GiftiDataArray(mesh.vertices.astype(np.float32), _POINTS)
        triangles = gifti.GiftiDataArray(mesh.faces.astype(np.int32), _TRIANGLES)
        nibabel.save(gifti.GiftiImage(darrays=[points, triangles]), path)  # type: ignore[attr-defined]
    elif path.suffix.lower() in _MESHIO:
        import meshio  # an optional format's reader: half a second to import

        meshio.Mesh(mesh.vertices, [("triangle", mesh.faces)]).write(path)
    else:
        freesurfer.write_geometry(path, mesh.vertices, mesh.faces)
    return path


def write_values(path: Path, values: np.ndarray) -> pathlib.Path:
    """Writes one number per vertex: `.shape.gii`/`.func.gii`, otherwise FreeSurfer `curv` format.

    Raises:
      VertexCountError: `values` is not of shape `[vertices]`.
    """
    path, values = pathlib.Path(path), np.asarray(values, np.float32)
    if values.ndim != 1:
        raise VertexCountError(f"{path}: values of shape {values.shape}, expected [vertices]")
    if path.name.endswith(".gii"):
        array = gifti.GiftiDataArray(values, "NIFTI_INTENT_SHAPE")
        nibabel.save(gifti.GiftiImage(darrays=[array]), path)  # type: ignore[attr-defined]
    else:
        freesurfer.write_morph_data(path, values)
    return path


def _existing(path: Path) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingSurfaceError(f"there is no file {path}")
    return path


def _is_gifti(path: pathlib.Path) -> bool:
    return path.name.endswith((".gii", ".gii.gz"))


def _load_gifti(path: pathlib.Path) -> gifti.GiftiImage:
    content = path.read_bytes()
    return gifti.GiftiImage.from_bytes(
        gzip.decompress(content) if path.name.endswith(".gz") else content
    )


def _read_gifti_surface(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays by their intent: their order in a file is not fixed."""
    image = _load_gifti(path)
    points = image.get_arrays_from_intent(_POINTS)
    triangles = image.get_arrays_from_intent(_TRIANGLES)
    if len(points) != 1 or len(triangles) != 1:
        raise MeshError(f"{path}: {len(points)} arrays of points, {len(triangles)} of triangles")
    return points[0].data, triangles[0].data


def _read_meshio(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix.lower() == ".vtk" and vtk.is_polydata(content := path.read_bytes()):
        try:
            return vtk.read_polydata(content)
        except MeshError as error:
            raise MeshError(f"{path}: {error}") from error
    import meshio  # as above

    found = meshio.read(path)
    triangles = [block.data for block in found.cells if block.type == "triangle"]
    others = {block.type for block in found.cells} - {"triangle", "vertex", "line"}
    if others:
        raise MeshError(f"{path}: holds {', '.join(sorted(others))}, not only triangles")
    if not triangles:
        raise MeshError(f"{path}: holds no triangles")
    return found.points[:, :3], np.concatenate(triangles)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
