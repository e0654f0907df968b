"""MuJoCo's creatures: what is filmed lies where the cameras say (needs the extra `sim`)."""

import os

import numpy as np
import pytest
from ml_collections import ConfigDict

os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo chooses when it is imported
pytest.importorskip("mujoco", reason="extra sim")
pytest.importorskip("dm_control", reason="extra sim")

from keypoints import cameras, creatures, data, regression, simulation  # noqa: E402

CONFIG = dict(subjects=1, frames=2, views=3, size=48, rate=5.0)


@pytest.mark.parametrize("name", creatures.CREATURES)
def test_joints_project_onto_the_creature(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFOLDRY_CACHE", str(tmp_path))
    config = ConfigDict(CONFIG | {"source": name})
    try:
        found = data.SOURCES[name](config, 0)
    except (ImportError, RuntimeError, AttributeError) as error:  # no EGL on this machine
        if "gl" in str(error).lower():
            pytest.skip(f"no off-screen rendering here: {error}")
        raise
    creature = creatures.CREATURES[name]
    assert found.images.shape == (2, 3, 48, 48, 3) and found.joint_names == tuple(creature.joints)
    assert found.joints[..., 2].min() > -0.1 * regression.body_size(found.joints)
    assert len(regression.sides(found.joint_names)) >= 8
    pixels, depth = cameras.project(found.calibration.cameras, found.joints.reshape(-1, 3))
    assert (np.asarray(depth) > 0).all()
    inside = (np.asarray(pixels) > -0.5) & (np.asarray(pixels) < 47.5)
    assert inside.all(), "the creature leaves the picture"
    # the second time it comes from the cache, and it is the same
    monkeypatch.setattr(simulation, "render", None)
    again = data.SOURCES[name](config, 0)
    np.testing.assert_array_equal(again.images, found.images)
    np.testing.assert_array_equal(again.joints, found.joints)
