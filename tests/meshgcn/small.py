"""A small template with regions, its operators, and a cohort; no package is fetched."""

import functools

import numpy as np

from meshgcn import cohort, hierarchy
from meshgcn.meshes import Mesh, union
from meshgcn.templates import Template
from tests.meshgcn.shapes import icosphere, two_spheres

PEOPLE = cohort.CohortConfig(
    subjects=80,
    repeated=0.2,
    scales=(1, 4),
    region_a=("front",),
    region_b=("top",),
)


@functools.cache
def template(subdivisions=2):
    """Two spheres with four regions each: front, back, top, bottom; a medial wall at the side."""
    mesh = two_spheres(subdivisions)
    labels = np.full(len(mesh), -1, np.int32)
    regions, pial = [], []
    for side, part in zip(("lh", "rh"), mesh.split(), strict=True):
        centre = part.vertices.mean(axis=0)
        unit = part.vertices - centre
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        where = mesh.part(side)
        kinds = [unit[:, 1] > 0.5, unit[:, 1] < -0.5, unit[:, 2] > 0, unit[:, 2] <= 0]
        names = ("front", "back", "top", "bottom")
        own = np.select(kinds, range(len(regions), len(regions) + 4), -1)
        labels[where] = np.where(np.abs(unit[:, 0]) > 0.95, -1, own)
        regions += [f"{side}.{name}" for name in names]
        pial.append(part.vertices + 2.5 * unit)
    surfaces = {"pial": np.concatenate(pial), "inflated": np.concatenate(pial)}
    thickness = np.where(labels >= 0, 2.5, 0.0)
    sulcal = np.sin(mesh.vertices[:, 2])
    return Template("spheres", mesh, surfaces, thickness, sulcal, labels, tuple(regions))


def with_bodies(subdivisions=2):
    """The template with a body beside each sphere."""
    cortex = template(subdivisions)
    own = []
    for side, place in (("lh", -30.0), ("rh", 60.0)):
        mesh = icosphere(1, f"{side}.hippocampus", 4.0)
        own.append(Mesh(mesh.vertices + [place, 0, 0], mesh.faces, mesh.structures))
    mesh = union([cortex.mesh, *own])
    points = np.concatenate([body.vertices for body in own])
    medial = np.concatenate([np.tile(body.vertices.mean(axis=0), (42, 1)) for body in own])
    labels = np.concatenate([cortex.labels, np.repeat([8, 9], 42)]).astype(np.int32)
    return Template(
        "spheres and bodies",
        mesh,
        {key: np.concatenate([value, points]) for key, value in cortex.surfaces.items()},
        np.concatenate([cortex.thickness, np.full(84, 4.0)]),
        np.concatenate([cortex.sulcal, np.full(84, -1.0)]),
        labels,
        (*cortex.regions, "lh.hippocampus", "rh.hippocampus"),
        np.concatenate([cortex.mesh.vertices, medial]),
    )


def operators(depth=1, **settings):
    """Operators of the template; the usual ones are built once."""
    return _usual(depth) if not settings else hierarchy.build(template().mesh, depth, **settings)


@functools.cache
def _usual(depth):
    return hierarchy.build(template().mesh, depth)


@functools.cache
def subjects(plant="additive", effect=0.4, seed=0):
    """A cohort on the template."""
    return cohort.make(template(), PEOPLE, plant, effect, seed)
