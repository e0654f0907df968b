"""Keypoints of all frames of a recording, in batches of one compiled program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import sharding
from keypoints.cameras import Cameras
from keypoints.models import KeypointNet, Keypoints


@functools.lru_cache(maxsize=8)
def _compiled(model: KeypointNet) -> Any:
    """The jitted forward pass; any number of views, compiled once for each."""

    def forward(params: dict, images: jax.Array, cameras: Cameras, present: jax.Array) -> Keypoints:
        floats = images.astype(jnp.float32) / 255.0
        found: Any = model.apply(
            {"params": params}, floats, cameras, present, method=KeypointNet.keypoints
        )
        return found

    return jax.jit(forward)


def predict(
    model: KeypointNet,
    params: dict,
    images: np.ndarray,
    cameras: Cameras,
    present: np.ndarray | None = None,
    batch: int = 16,
) -> Keypoints:
    """Keypoints in the volume's coordinates.

    Args:
        model, params: the trained network.
        images: uint8 `[frames, views, height, width, 3]`.
        cameras: `[views]`, world = volume.
        present: `[frames, views]`, 1 where a view is to be used; all by default.
        batch: frames at once, split over the devices.

    Returns:
        NumPy arrays.
    """
    given = np.ones(images.shape[:2], np.float32) if present is None else present
    # the devices of this process alone: evaluation runs on one process while others wait
    devices = jax.local_devices()
    mesh = sharding.make_mesh(devices=devices)
    batch = -(-batch // len(devices)) * len(devices)
    whole = sharding.place((params, cameras), jax.tree.map(
        lambda _: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
        (params, cameras)))
    function = _compiled(model)
    parts = []
    for start in range(0, len(images), batch):
        real = min(batch, len(images) - start)
        index = np.minimum(np.arange(start, start + batch), len(images) - 1)
        rows = sharding.shard_batch({"images": images[index], "present": given[index]}, mesh)
        found = function(whole[0], rows["images"], whole[1], rows["present"])
        parts.append(jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[:real], found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
