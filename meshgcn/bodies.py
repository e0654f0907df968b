"""Shape of a subcortical body: its medial curve, and the distance of the surface from it.

The distance is to a body what thickness is to the cortex: one number per vertex, mm, that falls
where the body shrinks. It does not depend on where the body lies.
"""

import numpy as np

from meshgcn.meshes import Mesh

__all__ = ["medial_points"]


def medial_points(mesh: Mesh, knots: int = 33, width: float = 0.1) -> np.ndarray:
    """The point of the medial curve that belongs to each vertex, mm `[vertices, 3]`.

    The curve runs along the longest principal axis. Its point at a place on the axis is the mean of
    the surface near that place, weighted by area and by a Gaussian.

    Args:
      mesh: one closed surface.
      knots: places at which the curve is computed; linear between them.
      width: SD of the Gaussian, as a share of the body's length.
    """
    area = mesh.areas()
    centred = mesh.vertices - np.average(mesh.vertices, axis=0, weights=area)
    axis = np.linalg.eigh((centred * area[:, None]).T @ centred)[1][:, -1]
    along = centred @ axis
    places = np.linspace(along.min(), along.max(), knots)
    distance = (places[:, None] - along) / (width * (places[-1] - places[0]))
    weight = np.exp(-0.5 * distance**2) * area
    curve = weight @ mesh.vertices / weight.sum(axis=1, keepdims=True)
    return np.stack([np.interp(along, places, curve[:, i]) for i in range(3)], axis=1)
