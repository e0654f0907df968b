"""MuJoCo's animals, moving at random before calibrated cameras (extra `sim`).

No physics runs: joint angles, place and heading are smooth random curves within the joints' limits.
World units are turned into millimetres. Rendering is off screen: set `MUJOCO_GL=egl` or `osmesa`
where there is no display. What was rendered is kept in the cache (`common.registry.cache_root`).
"""

import dataclasses
import hashlib
import json
import logging
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.spatial.transform import Rotation

from common.registry import cache_root
from keypoints import agent, cameras
from keypoints.calibration import Calibration
from keypoints.creatures import CREATURES, Creature
from keypoints.data import Recording

_LOG = logging.getLogger(__name__)

_PREFIX = "walker/"
_VERSION = 3  # of the pictures; raise it when they change
_OVERSAMPLE = 2  # pixels rendered along each axis for one of the image


def scene(creature: Creature, views: int) -> tuple[Any, np.ndarray]:
    """A compiled MuJoCo model: floor, creature on a free joint, cameras `view0`, `view1`, ...

    Args:
        creature: see `creatures`.
        views: number of cameras on a ring, in turn low and high.

    Returns:
        (model, quaternion (w, x, y, z) in which the creature stands upright).

    Raises:
        ModuleNotFoundError: the extra `sim` is not installed.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    import mujoco
    from dm_control.locomotion.arenas import floors

    arena = floors.Floor(size=(5.5 * creature.radius,) * 2, reflectance=0.0)
    walker = creature.walker()
    upright = walker.upright_pose.xquat
    arena.attach(walker).add("freejoint")
    angles = 2 * np.pi * (np.arange(views) + 0.15) / views
    target = np.array([0.0, 0.0, creature.height])
    for index, angle in enumerate(angles):
        up = creature.radius * (0.75 if index % 2 else 0.4)
        flat = np.sqrt(creature.radius**2 - up**2)
        eye = target + [flat * np.cos(angle), flat * np.sin(angle), up]
        # the camera's x and y axes in the world, from the same geometry as everywhere else
        pose = cameras.look_at(eye, target, (0, 0, 1), 1.0, (2, 2)).rotation
        arena.mjcf_model.worldbody.add(
            "camera", name=f"view{index}", pos=eye, xyaxes=[*pose[0], *-pose[1]], fovy=38.0
        )
    xml = arena.mjcf_model.to_xml_string()
    model = mujoco.MjModel.from_xml_string(xml, arena.mjcf_model.get_assets())
    return model, np.asarray((1.0, 0, 0, 0) if upright is None else upright, float)


def poses(
    model: Any, creature: Creature, upright: np.ndarray, seed: int, frames: int, rate: float
) -> np.ndarray:
    """Smooth random configurations, `qpos` `[frames, nq]`.

    Args:
        model, upright: from `scene`.
        creature: of that scene.
        seed: of the motion.
        frames: number of frames.
        rate: frames a second.
    """
    import mujoco

    rng = np.random.default_rng([0x7A8, seed])
    times = np.arange(frames) / rate
    qpos = np.tile(model.qpos0, (frames, 1))
    rests = model.qpos_spring if creature.at_springs else model.qpos0
    stand = Rotation.from_quat(np.roll(upright, -1))
    for joint in range(model.njnt):
        address = model.jnt_qposadr[joint]
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            heading = np.pi * agent.smooth(rng, times, 1, 0.12)[:, 0] + rng.uniform(0, 2 * np.pi)
            x, y, z, w = (Rotation.from_euler("z", heading[:, None]) * stand).as_quat().T
            place = np.clip(agent.smooth(rng, times, 2, 0.2), -1, 1)
            qpos[:, address : address + 2] = creature.reach * place
            qpos[:, address + 2] = creature.height
            qpos[:, address + 3 : address + 7] = np.stack([w, x, y, z], axis=1)
            continue
        low, high = model.jnt_range[joint] if model.jnt_limited[joint] else (-0.3, 0.3)
        rest = np.clip(rests[address], low, high)
        swing = agent.smooth(rng, times, 1, 0.9)[:, 0] * (high - low) / 2
        qpos[:, address] = np.clip(rest + creature.liveliness * swing, low, high)
    return qpos


class _Film:
    """The off-screen renderer: the scene is built once a frame, then seen by every camera."""

    def __init__(self, model: Any, views: int, size: int) -> None:
        import mujoco

        self._mujoco, self._model = mujoco, model
        self._side = _OVERSAMPLE * size
        visual = model.vis
        visual.global_.offwidth = visual.global_.offheight = self._side
        visual.quality.offsamples = 0  # averaging over pixels does it
        visual.quality.shadowsize = 0
        visual.quality.numslices, visual.quality.numstacks = 16, 8  # limbs are few pixels wide
        self._renderer = mujoco.Renderer(model, self._side, self._side)
        flags = self._renderer.scene.flags
        for name in ("SHADOW", "REFLECTION", "FOG", "HAZE", "SKYBOX"):
            flags[getattr(mujoco.mjtRndFlag, f"mjRND_{name}")] = False
        self._cameras: list[Any] = []
        for view in range(views):
            camera = mujoco.MjvCamera()
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = mujoco.mj_name2id(
                model, mujoco.mjtObj.mjOBJ_CAMERA, f"view{view}")
            self._cameras.append(camera)

    def shoot(self, state: Any) -> np.ndarray:
        """Images of all cameras, uint8 `[views, size, size, 3]`."""
        size, found = self._side // _OVERSAMPLE, []
        scene = self._renderer.scene
        for index, camera in enumerate(self._cameras):
            if index == 0:
                self._renderer.update_scene(state, camera)
            else:  # what stands in the scene is the same: camera and its light move
                self._mujoco.mjv_updateCamera(self._model, state, camera, scene)
                self._mujoco.mjv_makeLights(self._model, state, scene)
            picture = self._renderer.render().reshape(size, _OVERSAMPLE, size, _OVERSAMPLE, 3)
            total = sum(
                picture[:, row, :, column].astype(np.uint16)
                for row in range(_OVERSAMPLE) for column in range(_OVERSAMPLE)
            )
            found.append(((total + _OVERSAMPLE**2 // 2) // _OVERSAMPLE**2).astype(np.uint8))
        return np.stack(found)

    def close(self) -> None:
        """Must be called before the interpreter ends, or EGL prints exceptions."""
        self._renderer.close()


def render(config: ConfigDict, seed: int, creature: Creature) -> Recording:
    """Renders a creature; see `recording`."""
    model, upright = scene(creature, config.views)
    import mujoco

    state = mujoco.MjData(model)
    kind, places = {
        "site": (mujoco.mjtObj.mjOBJ_SITE, state.site_xpos),
        "body": (mujoco.mjtObj.mjOBJ_BODY, state.xpos),
    }[creature.kind]
    ids = [mujoco.mj_name2id(model, kind, _PREFIX + name) for name in creature.joints.values()]
    if min(ids) < 0:
        missing = list(creature.joints.values())[int(np.argmin(ids))]
        raise RuntimeError(f"the model has no {creature.kind} {missing!r}")
    total = config.subjects * config.frames
    images = np.empty((total, config.views, config.size, config.size, 3), np.uint8)
    joints = np.empty((total, len(ids), 3))
    film = _Film(model, config.views, config.size)
    try:
        for clip in range(config.subjects):
            moving = poses(
                model, creature, upright, 1000 * seed + clip, config.frames, config.rate)
            for index, qpos in enumerate(moving):
                row = clip * config.frames + index
                state.qpos[:] = qpos
                mujoco.mj_kinematics(model, state)
                lowest = state.geom_xpos[1:, 2].min()
                state.qpos[2] += 0.013 * creature.radius - lowest  # feet near the floor
                mujoco.mj_kinematics(model, state)
                mujoco.mj_camlight(model, state)
                joints[row] = creature.millimetres * places[ids]
                images[row] = film.shoot(state)
    finally:
        film.close()
    names = tuple(f"view{index}" for index in range(config.views))
    own = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name) for name in names]
    rig = cameras.from_mujoco(
        creature.millimetres * state.cam_xpos[own], state.cam_xmat[own], model.cam_fovy[own],
        (config.size, config.size),
    )
    clips = np.repeat(np.arange(config.subjects, dtype=np.int32), config.frames)
    labels = tuple(creature.joints)
    bones = np.asarray([(labels.index(a), labels.index(b)) for a, b in creature.bones], np.int32)
    return Recording(
        images, Calibration(names, rig), clips, clips.copy(), float(config.rate), "mm", joints,
        labels, bones,
    )  # fmt: skip


def recording(config: ConfigDict, seed: int) -> Recording:
    """The creature `config.source` before a ring of cameras, from the cache if it was there before.

    Args:
        config: `source`, `subjects` (clips of one animal: MuJoCo's models have one body each),
            `frames` of each, `views`, `size`, `rate`.
        seed: of the motion.

    Returns:
        A recording in millimetres with the creature's joints as ground truth.

    Raises:
        ModuleNotFoundError: the extra `sim` is not installed.
    """
    path = cached(config, seed)
    if path.exists():
        _LOG.info("rendered before: %s", path)
        return Recording.load(path)
    found = render(config, seed, CREATURES[config.source])
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def cached(config: ConfigDict, seed: int) -> Path:
    """Where the cache holds a recording with these settings; see `recording`."""
    own = {k: v for k, v in dataclasses.asdict(CREATURES[config.source]).items() if k != "walker"}
    settings = {name: config[name] for name in ("subjects", "frames", "views", "size", "rate")}
    try:
        versions = {name: metadata.version(name) for name in ("dm-control", "mujoco")}
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: MuJoCo's scenes need the extra `sim`") from error
    key = json.dumps([_VERSION, own, settings, seed, versions], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_root() / "keypoints" / f"{config.source}-{digest}.safetensors"
