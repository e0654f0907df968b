"""A network and a recording small enough for tests."""

import numpy as np

from keypoints import data, volume
from keypoints.calibration import Calibration
from keypoints.models import ModelConfig
from tests.keypoints.rigs import ring

CONFIG = ModelConfig(
    keypoints=4, voxels=8, features=8, encoder=(8, 8, 8), pyramid=8, volume=(8, 8),
    decoder=(8, 8, 8), sigmas=(0.3, 0.2, 0.1),
)  # fmt: skip


def recording(frames=12, views=3, size=32, seed=0, span=2.0):
    """A bright ball on a noisy static background, its place as the only joint; two sequences."""
    rng = np.random.default_rng(seed)
    rig = ring(views, size=(size, size), focal=1.1 * size, target=(0, 0, 0))
    times = np.linspace(0, span, frames)
    joints = 0.35 * np.stack([np.sin(3 * times), np.cos(2 * times), np.sin(times)], axis=1)[:, None]
    from keypoints import cameras

    pixels = np.asarray(cameras.project(rig, joints[:, 0])[0])
    y, x = np.mgrid[:size, :size]
    square = (x - pixels[..., 0, None, None]) ** 2 + (y - pixels[..., 1, None, None]) ** 2
    blob = np.exp(-square / (2 * (0.06 * size) ** 2)).transpose(1, 0, 2, 3)[..., None]
    ground = rng.uniform(0.2, 0.4, (1, views, size, size, 3))
    images = np.round(255 * (ground * (1 - blob) + blob)).astype(np.uint8)
    half = np.repeat(np.array([0, 1], np.int32), frames // 2)
    names = tuple(f"v{i}" for i in range(views))
    return data.Recording(
        images, Calibration(names, rig), half, half.copy(), 10.0, "m", joints, ("ball",))


def cube():
    return volume.Volume(np.zeros(3), 1.4, np.eye(3))
