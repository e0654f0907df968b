"""Template surfaces with labels and mean morphometry: the fsaverage family, subcortical bodies."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from common import registry
from meshgcn import files, pooling
from meshgcn.meshes import Mesh, check, check_same_topology, union

__all__ = ["MEDIAL_WALL", "SIDES", "SUBCORTEX", "Template", "fsaverage"]

SIDES = (("lh", "left"), ("rh", "right"))
MEDIAL_WALL = ("unknown", "corpuscallosum")
SUBCORTEX = ("accumbens", "amygdala", "caudate", "hippocampus", "pallidum", "putamen", "thalamus")
_LEVELS = {"fsaverage5": 0, "fsaverage4": 1, "fsaverage3": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """One topology that all subjects share, and what is known of its vertices.

    Attributes:
      name: for example "fsaverage4".
      mesh: the white surfaces of both hemispheres, and subcortical bodies where asked for.
      surfaces: other coordinates of the same vertices, mm `[vertices, 3]`: "pial", "inflated".
      thickness: mean cortical thickness, mm `[vertices]`; 0 off the cortex.
      sulcal: sulcal depth of the template, `[vertices]`.
      labels: region of each vertex, int32 `[vertices]`; -1 for the medial wall.
      regions: names of the regions, for example "lh.entorhinal".
    """

    name: str
    mesh: Mesh
    surfaces: dict[str, np.ndarray]
    thickness: np.ndarray
    sulcal: np.ndarray
    labels: np.ndarray
    regions: tuple[str, ...]

    def region(self, *names: str) -> np.ndarray:
        """Vertices of regions, bool `[vertices]`; a name without side means both sides.

        Raises:
          KeyError: no such region.
        """
        inside = np.zeros(len(self.mesh), bool)
        for name in names:
            found = [i for i, r in enumerate(self.regions) if name in (r, r.partition(".")[2])]
            if not found:
                raise KeyError(f"no region {name!r} on {self.name}")
            inside |= np.isin(self.labels, found)
        return inside

    def parcels(self) -> np.ndarray:
        """Averages over regions as a dense matrix, float64 `[regions, vertices]`."""
        matrix = np.zeros((len(self.regions), len(self.mesh)))
        inside = self.labels >= 0
        matrix[self.labels[inside], np.flatnonzero(inside)] = 1.0
        return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)


def fsaverage(name: str = "fsaverage5", subcortex: bool = False) -> Template:
    """Both hemispheres of a member of FreeSurfer's fsaverage family with Desikan-Killiany labels.

    fsaverage5 has 10,242 vertices on each side; fsaverage4 and 3 are its first 2,562 and 642.

    Args:
      name: "fsaverage5", "fsaverage4" or "fsaverage3".
      subcortex: add the 14 subcortical bodies (39,514 vertices in full; a GPL-3 package is
        fetched). Their thickness is 0 and each is a region of its own.

    Raises:
      ValueError: another name.
      common.registry.RegistryError: a package cannot be fetched.
    """
    if name not in _LEVELS:
        raise ValueError(f"template {name!r}: {', '.join(_LEVELS)}")
    parts = [_hemisphere(short, side, name) for short, side in SIDES]
    if subcortex:
        parts += _bodies(_LEVELS[name])
    return _joined(name, parts)


def _hemisphere(short: str, side: str, name: str) -> Template:
    """One hemisphere."""
    folder, atlas = registry.fetch("fsaverage5"), registry.fetch("desikan") / "fsaverage5"
    mesh = files.read_surface(folder / f"white_{side}.gii.gz", short)
    check(mesh, f"white_{side}")
    surfaces = {}
    for key, kind in (("pial", "pial"), ("inflated", "infl")):
        other = files.read_surface(folder / f"{kind}_{side}.gii.gz", short)
        check_same_topology(other, mesh, f"{kind}_{side}")
        surfaces[key] = other.vertices
    check_same_topology(files.read_surface(atlas / f"{short}.orig", short), mesh, f"{short}.orig")
    values = {
        kind: files.read_values(folder / f"{kind}_{side}.gii.gz") for kind in ("thick", "sulc")
    }
    numbers, names = files.read_labels(atlas / f"{short}.aparc.annot")
    kept = [n for n in names if n not in MEDIAL_WALL]
    position = np.array([kept.index(n) if n in kept else -1 for n in names] + [-1])
    full = Template(
        name,
        mesh,
        surfaces,
        np.maximum(values["thick"], 0.0),
        values["sulc"],
        position[numbers].astype(np.int32),
        tuple(f"{short}.{n}" for n in kept),
    )
    depth = _LEVELS[name]
    count = (len(mesh) - 2) // 4**depth + 2
    smaller = pooling.levels(mesh, depth, "nested")[-1].mesh if depth else mesh
    return dataclasses.replace(
        full,
        mesh=smaller,
        surfaces={key: value[:count] for key, value in surfaces.items()},
        thickness=full.thickness[:count] * (full.labels[:count] >= 0),
        sulcal=full.sulcal[:count],
        labels=full.labels[:count],
    )


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
            zero = np.zeros(len(mesh))
            surfaces = {"pial": mesh.vertices, "inflated": mesh.vertices}
            labels = np.zeros(len(mesh), np.int32)
            found.append(Template(name, mesh, surfaces, zero, zero, labels, (name,)))
    return found


def _joined(name: str, parts: Sequence[Template]) -> Template:
    offsets = np.cumsum([0, *(len(part.regions) for part in parts)])
    labels = [
        np.where(part.labels >= 0, part.labels + offset, -1)
        for part, offset in zip(parts, offsets, strict=False)
    ]
    return Template(
        name,
        union([part.mesh for part in parts]),
        {k: np.concatenate([p.surfaces[k] for p in parts]) for k in parts[0].surfaces},
        np.concatenate([part.thickness for part in parts]),
        np.concatenate([part.sulcal for part in parts]),
        np.concatenate(labels).astype(np.int32),
        tuple(region for part in parts for region in part.regions),
    )
