"""Small rigs of cameras for tests."""

import numpy as np

from keypoints import cameras


def ring(views=4, size=(64, 48), focal=60.0, radius=3.0, lens=(0.0,) * 5, target=(0.0, 0.0, 0.3)):
    """Cameras on a ring of this radius around the target, slightly above it."""
    angles = np.arange(views) * 2 * np.pi / views + 0.3
    heights = 0.9 + 0.3 * (np.arange(views) % 2)
    eyes = np.stack([radius * np.cos(angles), radius * np.sin(angles), heights], axis=1)
    rig = cameras.look_at(eyes, target, (0, 0, 1), focal, size)
    return rig.replace(distortion=np.broadcast_to(np.asarray(lens, float), (views, 5)).copy())
