"""An articulated animal for tests and demonstrations: proportions, smooth motion, capsules.

No data set and no simulator: a four-legged body of rat size whose joint angles, place and heading
are sums of slow sines. Lengths are in millimetres, z is up, the floor is z = 0.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation


class Joint(NamedTuple):
    """One joint: where it sits on its parent, how thick the bone to the parent is, how it moves.

    Attributes:
        name: what it is.
        parent: index of the parent, -1 for the root.
        offset: from the parent at rest, millimetres (x forward, y left, z up).
        radius: of the capsule between parent and joint, millimetres.
        swing: amplitude of the bone's rotation about x, y and z, degrees.
    """

    name: str
    parent: int
    offset: tuple[float, float, float]
    radius: float
    swing: tuple[float, float, float]


def _legs(front: bool, first: int, parent: int) -> list[Joint]:
    joints = []
    name, reach = ("fore", 12.0) if front else ("hind", 4.0)
    for index, side in enumerate((1.0, -1.0)):
        start = first + 3 * index
        letter = "left" if side > 0 else "right"
        swing = (14.0, 38.0, 8.0)
        joints += [
            Joint(f"{name} hip {letter}", parent, (reach, 24 * side, -14), 15.0, (0.0, 0.0, 0.0)),
            Joint(f"{name} knee {letter}", start, (-12, 8 * side, -26), 10.0, swing),
            Joint(f"{name} paw {letter}", start + 1, (16, 2 * side, -26), 7.0, (4.0, 30.0, 4.0)),
        ]
    return joints


RAT: tuple[Joint, ...] = (
    Joint("pelvis", -1, (0, 0, 76), 0.0, (8.0, 10.0, 0.0)),
    Joint("spine", 0, (45, 0, 6), 27.0, (6.0, 14.0, 22.0)),
    Joint("chest", 1, (45, 0, -2), 25.0, (6.0, 14.0, 22.0)),
    Joint("neck", 2, (26, 0, 8), 17.0, (8.0, 16.0, 22.0)),
    Joint("head", 3, (24, 0, 4), 16.0, (10.0, 20.0, 30.0)),
    Joint("nose", 4, (26, 0, -5), 9.0, (0.0, 8.0, 0.0)),
    Joint("ear left", 4, (-4, 15, 14), 7.0, (0.0, 0.0, 0.0)),
    Joint("ear right", 4, (-4, -15, 14), 7.0, (0.0, 0.0, 0.0)),
    Joint("tail base", 0, (-30, 0, 0), 17.0, (4.0, 14.0, 24.0)),
    Joint("tail middle", 8, (-50, 0, -8), 8.0, (4.0, 16.0, 34.0)),
    Joint("tail tip", 9, (-50, 0, -8), 5.0, (4.0, 16.0, 34.0)),
    *_legs(True, 11, 2),
    *_legs(False, 17, 0),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clip:
    """One animal moving.

    Attributes:
        joints: `[frames, joints, 3]`, millimetres.
        starts, ends: of each capsule, `[frames, capsules, 3]`.
        radii: `[capsules]`, millimetres.
    """

    joints: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    radii: np.ndarray


def smooth(rng: np.random.Generator, times: np.ndarray, count: int, fastest: float) -> np.ndarray:
    """`count` signals of unit amplitude made of four slow sines, `[frames, count]`."""
    rates = rng.uniform(0.1, fastest, (4, count))
    phases = rng.uniform(0, 2 * np.pi, (4, count))
    sines = np.sin(2 * np.pi * rates[None] * times[:, None, None] + phases[None])
    return sines.mean(axis=1) * 1.6


def move(seed: int, frames: int, rate: float = 30.0, proportions: float = 0.12) -> Clip:
    """A new animal and its motion.

    Args:
        seed: of animal and motion.
        frames: number of frames.
        rate: frames a second.
        proportions: spread of the bones' lengths and of the size between animals.

    Returns:
        The clip; its root stays within 110 mm of the z axis in x and in y.
    """
    rng = np.random.default_rng([0x7A7, seed])
    times = np.arange(frames) / rate
    size = 1.0 + proportions * rng.uniform(-1, 1)
    lengths = size * (1.0 + proportions * rng.uniform(-1, 1, len(RAT)))
    angles = smooth(rng, times, 3 * len(RAT), 0.9).reshape(frames, len(RAT), 3)
    heading = np.pi * smooth(rng, times, 1, 0.12)[:, 0] + rng.uniform(0, 2 * np.pi)
    place = 110.0 * np.clip(smooth(rng, times, 2, 0.2), -1, 1)
    turns: list[Rotation] = []
    joints = np.empty((frames, len(RAT), 3))
    for index, joint in enumerate(RAT):
        own = Rotation.from_euler("xyz", angles[:, index] * np.asarray(joint.swing), degrees=True)
        offset = np.asarray(joint.offset) * lengths[index]
        if joint.parent < 0:
            yaw = Rotation.from_euler("z", heading[:, None])
            joints[:, index] = np.column_stack([place, np.full(frames, offset[2])])
            turns.append(yaw * own)
            continue
        # the bone to this joint turns about the parent, then carries what hangs on it
        turns.append(turns[joint.parent] * own)
        joints[:, index] = joints[:, joint.parent] + turns[index].apply(offset)
    bones = np.asarray([(i, j.parent) for i, j in enumerate(RAT) if j.parent >= 0])
    radii = size * np.asarray([RAT[i].radius for i in bones[:, 0]])
    return Clip(joints, joints[:, bones[:, 1]], joints[:, bones[:, 0]], radii)


_HOOD, _FUR, _SKIN = (0.16, 0.13, 0.11), (0.80, 0.76, 0.68), (0.82, 0.52, 0.46)


def colours() -> np.ndarray:
    """Colour of each capsule, RGB in [0, 1] `[capsules, 3]`: a hooded (Long-Evans) rat.

    Head and shoulders are dark, the rest of the fur is pale, tail, paws and ears are bare skin.
    Left and right are the same.
    """
    found = []
    for joint in RAT:
        if joint.parent < 0:
            continue
        if any(part in joint.name for part in ("tail middle", "tail tip", "paw", "ear")):
            found.append(_SKIN)
        elif joint.name in ("chest", "neck", "head", "nose") or joint.name.startswith("fore hip"):
            found.append(_HOOD)
        else:
            found.append(_FUR)
    return np.asarray(found)


def bones() -> np.ndarray:
    """Pairs (joint, parent), int `[bones, 2]`."""
    return np.asarray([(i, j.parent) for i, j in enumerate(RAT) if j.parent >= 0], np.int32)


def names() -> tuple[str, ...]:
    """Names of the joints in order."""
    return tuple(joint.name for joint in RAT)
