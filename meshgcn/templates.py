"""Template surfaces with labels and mean morphometry: fsaverage, fs_LR 32k, subcortical bodies."""

import dataclasses
from collections.abc import Sequence

import nibabel
import numpy as np
import scipy.sparse as sp

from common import registry
from meshgcn import files, pooling
from meshgcn.bodies import medial_points
from meshgcn.meshes import Mesh, MeshError, check, check_same_topology, union

__all__ = [
    "ATLASES",
    "MEDIAL_WALL",
    "NAMES",
    "SIDES",
    "SUBCORTEX",
    "Template",
    "fsaverage",
    "fslr32k",
    "load",
]

SIDES = (("lh", "left"), ("rh", "right"))
MEDIAL_WALL = ("unknown", "corpuscallosum", "???")
SUBCORTEX = ("accumbens", "amygdala", "caudate", "hippocampus", "pallidum", "putamen", "thalamus")
ATLASES = ("desikan", "mmp")
# How much coarser than fsaverage5; the finer ones have negative numbers.
_LEVELS = {"fsaverage": -2, "fsaverage6": -1, "fsaverage5": 0, "fsaverage4": 1, "fsaverage3": 2}
NAMES = (*_LEVELS, "fslr32k")


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """One topology that all subjects share, and what is known of its vertices.

    Attributes:
      name: for example "fsaverage4".
      mesh: the white surfaces of both hemispheres, and subcortical bodies where asked for.
      surfaces: other coordinates of the same vertices, mm `[vertices, 3]`: "pial", "inflated".
      thickness: mean cortical thickness, mm `[vertices]`; 0 off the cortex. Of a subcortical body
        the distance from its medial curve, see `meshgcn.bodies`.
      sulcal: sulcal depth of the template, `[vertices]`.
      labels: region of each vertex, int32 `[vertices]`; -1 for the medial wall.
      regions: names of the regions, for example "lh.entorhinal".
      medial: `[vertices, 3]`, from where the thickness of bodies is measured; None without bodies.
    """

    name: str
    mesh: Mesh
    surfaces: dict[str, np.ndarray]
    thickness: np.ndarray
    sulcal: np.ndarray
    labels: np.ndarray
    regions: tuple[str, ...]
    medial: np.ndarray | None = None

    @property
    def nested(self) -> bool:
        """Whether the cortex is one of fsaverage's family: finer files begin with its vertices."""
        return self.name != "fslr32k"

    @property
    def bodies(self) -> tuple[str, ...]:
        """Names of the subcortical structures."""
        cortex = [short for short, _ in SIDES]
        return tuple(name for name, _ in self.mesh.structures if name not in cortex)

    @property
    def inner(self) -> np.ndarray:
        """Where thickness is measured from, mm `[vertices, 3]`: white surface or medial curve."""
        return self.mesh.vertices if self.medial is None else self.medial

    def region(self, *names: str) -> np.ndarray:
        """Vertices of regions, bool `[vertices]`; a name without side means both sides.

        Raises:
          KeyError: no such region.
        """
        inside = np.zeros(len(self.mesh), bool)
        for name in names:
            found = [i for i, r in enumerate(self.regions) if name in (r, r.partition(".")[2])]
            if not found:
                known = sorted({r.partition(".")[2] for r in self.regions})
                some = ", ".join(known[:6]) + (", ..." if len(known) > 6 else "")
                raise KeyError(f"no region {name!r} on {self.name} among {len(known)}: {some}")
            inside |= np.isin(self.labels, found)
        return inside

    def parcels(self) -> np.ndarray:
        """Averages over regions as a dense matrix, float64 `[regions, vertices]`."""
        matrix = np.zeros((len(self.regions), len(self.mesh)))
        inside = self.labels >= 0
        matrix[self.labels[inside], np.flatnonzero(inside)] = 1.0
        return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)


def load(name: str, atlas: str = "desikan", subcortex: bool = False) -> Template:
    """The template `name`, one of `NAMES`.

    Args:
      name: a member of the fsaverage family (see `fsaverage`) or "fslr32k" (see `fslr32k`).
      atlas: "desikan" or "mmp", the 180 areas a side of Glasser et al. 2016.
      subcortex: add the 14 subcortical bodies (39,514 vertices in full; a GPL-3 package is
        fetched), reduced as often as the cortex is. Each is a region of its own.

    Raises:
      ValueError: another name or atlas, or one that the template does not come with.
      common.registry.RegistryError: a package cannot be fetched.
    """
    if name not in NAMES:
        raise ValueError(f"template {name!r}: {', '.join(NAMES)}")
    if name == "fslr32k":
        return fslr32k(atlas, subcortex)
    return fsaverage(name, subcortex, atlas)


def fsaverage(
    name: str = "fsaverage5", subcortex: bool = False, atlas: str = "desikan"
) -> Template:
    """Both hemispheres of a member of FreeSurfer's fsaverage family.

    fsaverage5 has 10,242 vertices on each side; fsaverage4 and 3 are its first 2,562 and 642.
    fsaverage6 (40,962) and fsaverage (163,842) have their own "orig" surface in the place of the
    white one and their own labels, but no package has their other surfaces: pial and inflated
    coordinates, thickness and sulcal depth are interpolated from fsaverage5's.

    Args:
      name: "fsaverage", "fsaverage6", "fsaverage5", "fsaverage4" or "fsaverage3".
      subcortex, atlas: see `load`.

    Raises:
      ValueError, common.registry.RegistryError: see `load`.
    """
    if name not in _LEVELS:
        raise ValueError(f"template {name!r}: {', '.join(_LEVELS)}")
    if atlas not in ATLASES:
        raise ValueError(f"atlas {atlas!r}: {', '.join(ATLASES)}")
    parts = [_hemisphere(short, side, name, atlas) for short, side in SIDES]
    if subcortex:
        parts += _bodies(max(_LEVELS[name], 0))
    return _joined(name, parts)


def _hemisphere(short: str, side: str, name: str, atlas: str) -> Template:
    """One hemisphere."""
    folder, level = registry.fetch("fsaverage5"), _LEVELS[name]
    mesh = files.read_surface(folder / f"white_{side}.gii.gz", short)
    check(mesh, f"white_{side}")
    surfaces = {}
    for key, kind in (("pial", "pial"), ("inflated", "infl")):
        other = files.read_surface(folder / f"{kind}_{side}.gii.gz", short)
        check_same_topology(other, mesh, f"{kind}_{side}")
        surfaces[key] = other.vertices
    thickness, sulcal = (
        files.read_values(folder / f"{kind}_{side}.gii.gz") for kind in ("thick", "sulc")
    )
    if level < 0:
        mesh, up = _finer(short, name, mesh)
        surfaces = {key: up @ value for key, value in surfaces.items()}
        thickness, sulcal = up @ thickness, up @ sulcal
    elif level > 0:
        mesh = pooling.levels(mesh, level, "nested")[-1].mesh
    count = len(mesh)
    labels, names = _labels(short, name, atlas, mesh)
    return Template(
        name,
        mesh,
        {key: value[:count] for key, value in surfaces.items()},
        np.maximum(thickness[:count], 0.0) * (labels >= 0),
        sulcal[:count],
        labels,
        tuple(f"{short}.{n}" for n in names),
    )


def _finer(short: str, name: str, coarse: Mesh) -> tuple[Mesh, sp.csr_array]:
    """A finer member of the family, and interpolation to it from fsaverage5 `coarse`.

    Raises:
      MeshError: fsaverage5 is not the mesh that its subdivision comes from.
    """
    if name == "fsaverage":
        path = registry.fetch("fsaverage") / f"{short}.orig"
    else:
        path = registry.fetch("desikan") / name / f"{short}.orig"
    mesh = files.read_surface(path, short)
    check(mesh, path.name)
    levels = pooling.levels(mesh, -_LEVELS[name], "nested")
    if not np.array_equal(levels[-1].mesh.edges(), coarse.edges()):
        raise MeshError(f"{path}: not a subdivision of fsaverage5")
    up = levels[0].up
    for level in levels[1:]:
        up = sp.csr_array(up @ level.up)
    return mesh, up


def _labels(short: str, name: str, atlas: str, mesh: Mesh) -> tuple[np.ndarray, list[str]]:
    """(region of each vertex, -1 for the medial wall; names) of a hemisphere of the family."""
    if atlas == "mmp":
        path = registry.fetch("fsaverage") / f"{short}.HCP-MMP1.annot"
    elif name == "fsaverage":
        path = registry.fetch("fsaverage") / f"{short}.aparc.annot"
    else:
        own = "fsaverage6" if name == "fsaverage6" else "fsaverage5"
        path = registry.fetch("desikan") / own / f"{short}.aparc.annot"
    numbers, names = files.read_labels(path)
    kept = [n for n in names if n not in MEDIAL_WALL]
    position = np.array([kept.index(n) if n in kept else -1 for n in names] + [-1])
    # A coarser member is the first vertices of a finer one.
    labels = position[numbers[: len(mesh)]].astype(np.int32)
    return labels, [n[2:].removesuffix("_ROI") if atlas == "mmp" else n for n in kept]


def fslr32k(atlas: str = "mmp", subcortex: bool = False) -> Template:
    """Both hemispheres of fs_LR 32k: mean surfaces of the Human Connectome Project's S1200 release.

    32,492 vertices on each side, with the MMP1 areas. Thickness is the distance between the mean
    white and the mean pial surface.

    Raises:
      ValueError: another atlas than "mmp".
      common.registry.RegistryError: a package cannot be fetched.
    """
    if atlas != "mmp":
        raise ValueError(f"atlas {atlas!r}: fslr32k comes with mmp")
    folder = registry.fetch("fslr32k")
    with np.load(folder / "vertices.npz") as file:
        cortex = [file["grayl"], file["grayr"]]
    with np.load(folder / "mmp.npz") as file:
        areas, names = file["map_all"], file["labels"]
    depth = np.asarray(nibabel.load(folder / "sulc.dscalar.nii").dataobj)[0]  # type: ignore[attr-defined]
    parts, start = [], 0
    for (short, side), own in zip(SIDES, cortex, strict=True):
        letter = side[0].upper()
        mesh = files.read_surface(folder / f"{letter}.white.gii", short)
        check(mesh, f"{letter}.white")
        surfaces = {}
        for kind in ("pial", "inflated"):
            other = files.read_surface(folder / f"{letter}.{kind}.gii", short)
            check_same_topology(other, mesh, f"{letter}.{kind}")
            surfaces[kind] = other.vertices
        labels, sulcal = np.full(len(mesh), -1, np.int32), np.zeros(len(mesh))
        here = slice(start, start + len(own))
        first = int(areas[here].min(initial=10_000, where=areas[here] > 0))
        labels[own] = np.where(areas[here] > 0, areas[here] - first, -1)
        sulcal[own] = depth[here]
        thickness = np.linalg.norm(surfaces["pial"] - mesh.vertices, axis=1) * (labels >= 0)
        regions = [f"{short}.{n[2:]}" for n in names if n.startswith(f"{letter}_")]
        parts.append(Template("fslr32k", mesh, surfaces, thickness, sulcal, labels, tuple(regions)))
        start += len(own)
    if subcortex:
        parts += _bodies(0)
    return _joined("fslr32k", parts)


def _bodies(depth: int) -> list[Template]:
    """The subcortical structures, reduced by collapses as often as the cortex is."""
    folder = registry.fetch("subcortex")
    found = []
    for short, _ in SIDES:
        for body in SUBCORTEX:
            name = f"{short}.{body}"
            mesh = files.read_surface(folder / f"{body}_{short[0].upper()}.vtk", name)
            if mesh.volume() < 0:
                mesh = Mesh(mesh.vertices, mesh.faces[:, ::-1], mesh.structures)
            for level in pooling.levels(mesh, depth, "collapse"):
                mesh = level.mesh
            medial = medial_points(mesh)
            radius = np.linalg.norm(mesh.vertices - medial, axis=1)
            surfaces = {"pial": mesh.vertices, "inflated": mesh.vertices}
            labels = np.zeros(len(mesh), np.int32)
            sulcal = np.full(len(mesh), -1.0)  # drawn as gyri are
            found.append(Template(name, mesh, surfaces, radius, sulcal, labels, (name,), medial))
    return found


def _joined(name: str, parts: Sequence[Template]) -> Template:
    offsets = np.cumsum([0, *(len(part.regions) for part in parts)])
    labels = [
        np.where(part.labels >= 0, part.labels + offset, -1)
        for part, offset in zip(parts, offsets, strict=False)
    ]
    some = any(part.medial is not None for part in parts)
    return Template(
        name,
        union([part.mesh for part in parts]),
        {k: np.concatenate([p.surfaces[k] for p in parts]) for k in parts[0].surfaces},
        np.concatenate([part.thickness for part in parts]),
        np.concatenate([part.sulcal for part in parts]),
        np.concatenate(labels).astype(np.int32),
        tuple(region for part in parts for region in part.regions),
        np.concatenate([part.inner for part in parts]) if some else None,
    )
