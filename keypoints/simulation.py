"""MuJoCo's rodent, moving at random before calibrated cameras (extra `sim`).

The model is dm_control's (Merel et al., "Deep neuroethology of a virtual rodent", ICLR 2020). No
physics runs: joint angles, place and heading are smooth random curves within the joints' limits.
World units are turned from metres into millimetres. Rendering is off screen: set `MUJOCO_GL=egl` or
`osmesa` where there is no display.
"""

import os
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.spatial.transform import Rotation

from keypoints import agent, cameras
from keypoints.calibration import Calibration
from keypoints.data import Recording

SITES = (
    "head",
    *(
        f"{name}_{side}"
        for side in "LR"
        for name in ("shoulder", "elbow", "wrist", "finger", "palm", "hip", "knee", "ankle",
                     "toe", "sole")
    ),
)  # fmt: skip
BONES = tuple(
    (f"{a}_{side}", f"{b}_{side}")
    for side in "LR"
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("wrist", "finger"), ("palm", "wrist"),
                 ("hip", "knee"), ("knee", "ankle"), ("ankle", "toe"), ("sole", "ankle"))
) + (("head", "shoulder_L"), ("head", "shoulder_R"), ("shoulder_L", "hip_L"),
     ("shoulder_R", "hip_R"), ("hip_L", "hip_R"))  # fmt: skip
_PREFIX = "walker/"


def scene(views: int, radius: float = 0.75, height: float = 0.06) -> Any:
    """A compiled MuJoCo model: floor, rodent on a free joint, cameras `view0`, `view1`, ...

    Args:
        views: number of cameras on a ring.
        radius: of the ring around (0, 0, height), metres.
        height: metres.

    Raises:
        ModuleNotFoundError: the extra `sim` is not installed.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    import mujoco
    from dm_control.locomotion.arenas import floors
    from dm_control.locomotion.walkers import rodent as walkers

    arena = floors.Floor(size=(4, 4), reflectance=0.0)
    walker = walkers.Rat(name="walker")
    arena.attach(walker).add("freejoint")
    angles = 2 * np.pi * (np.arange(views) + 0.15) / views
    for index, angle in enumerate(angles):
        up = radius * (0.75 if index % 2 else 0.4)
        flat = np.sqrt(radius**2 - up**2)
        eye = np.array([flat * np.cos(angle), flat * np.sin(angle), up + height])
        # the camera's x and y axes in the world, from the same geometry as everywhere else
        pose = cameras.look_at(eye, (0, 0, height), (0, 0, 1), 1.0, (2, 2)).rotation
        arena.mjcf_model.worldbody.add(
            "camera", name=f"view{index}", pos=eye, xyaxes=[*pose[0], *-pose[1]], fovy=38.0
        )
    xml = arena.mjcf_model.to_xml_string()
    return mujoco.MjModel.from_xml_string(xml, arena.mjcf_model.get_assets())


def poses(model: Any, seed: int, frames: int, rate: float, liveliness: float = 0.45) -> np.ndarray:
    """Smooth random configurations, `qpos` `[frames, nq]`.

    Args:
        model: from `scene`.
        seed: of the motion.
        frames: number of frames.
        rate: frames a second.
        liveliness: amplitude of a joint as a share of half its range.
    """
    import mujoco

    rng = np.random.default_rng([0x7A8, seed])
    times = np.arange(frames) / rate
    qpos = np.tile(model.qpos0, (frames, 1))
    for joint in range(model.njnt):
        address = model.jnt_qposadr[joint]
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            heading = np.pi * agent.smooth(rng, times, 1, 0.12)[:, 0] + rng.uniform(0, 2 * np.pi)
            x, y, z, w = Rotation.from_euler("z", heading[:, None]).as_quat().T
            qpos[:, address : address + 2] = 0.12 * np.clip(
                agent.smooth(rng, times, 2, 0.2), -1, 1
            )
            qpos[:, address + 2] = 0.06
            qpos[:, address + 3 : address + 7] = np.stack([w, x, y, z], axis=1)
            continue
        low, high = model.jnt_range[joint] if model.jnt_limited[joint] else (-0.3, 0.3)
        rest = np.clip(model.qpos0[address], low, high)
        swing = liveliness * (high - low) / 2 * agent.smooth(rng, times, 1, 0.9)[:, 0]
        qpos[:, address] = np.clip(rest + swing, low, high)
    return qpos


def rodent(config: ConfigDict, seed: int) -> Recording:
    """Renders the rodent.

    Args:
        config: `subjects` (clips of one animal: MuJoCo's rodent has one body), `frames` of each,
            `views`, `size`, `rate`.
        seed: of the motion.

    Returns:
        A recording in millimetres with 21 sites as ground truth.
    """
    model = scene(config.views)
    import mujoco

    state = mujoco.MjData(model)
    size = config.size
    model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
    model.vis.global_.offheight = max(size, model.vis.global_.offheight)
    option = mujoco.MjvOption()
    names = [f"view{index}" for index in range(config.views)]
    sites = [
        mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, _PREFIX + name) for name in SITES
    ]
    if min(sites) < 0:
        raise RuntimeError(f"the rodent has no site {SITES[int(np.argmin(sites))]!r}")
    total = config.subjects * config.frames
    images = np.empty((total, config.views, size, size, 3), np.uint8)
    joints = np.empty((total, len(sites), 3))
    renderer = mujoco.Renderer(model, size, size)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    try:
        for clip in range(config.subjects):
            moving = poses(model, 1000 * seed + clip, config.frames, config.rate)
            for index, qpos in enumerate(moving):
                row = clip * config.frames + index
                state.qpos[:] = qpos
                mujoco.mj_kinematics(model, state)
                mujoco.mj_camlight(model, state)
                lowest = state.geom_xpos[1:, 2].min()
                state.qpos[2] += 0.01 - lowest  # feet near the floor
                mujoco.mj_kinematics(model, state)
                mujoco.mj_camlight(model, state)
                joints[row] = 1000.0 * state.site_xpos[sites]
                for view, name in enumerate(names):
                    renderer.update_scene(state, name, option)
                    images[row, view] = renderer.render()
    finally:
        renderer.close()  # before the interpreter ends, or EGL prints exceptions
    ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name) for name in names]
    rig = cameras.from_mujoco(
        1000.0 * state.cam_xpos[ids], state.cam_xmat[ids], model.cam_fovy[ids], (size, size)
    )
    clips = np.repeat(np.arange(config.subjects, dtype=np.int32), config.frames)
    bones = np.asarray([(SITES.index(a), SITES.index(b)) for a, b in BONES], np.int32)
    return Recording(
        images, Calibration(tuple(names), rig), clips, clips.copy(), float(config.rate), "mm",
        joints, SITES, bones,
    )  # fmt: skip
