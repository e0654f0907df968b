"""Synchronised recordings of one animal by several calibrated cameras, their split and their pairs.

A recording comes from a renderer (`capsules` here, `keypoints.simulation`), from the registry
(`pose2sim`) or from a user's own files (`keypoints.recordings`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from common import storage
from keypoints import agent, cameras, render
from keypoints.calibration import Calibration
from keypoints.cameras import Cameras


@dataclasses.dataclass(frozen=True)
class Recording:
    """All frames of all sequences, one after the other.

    Attributes:
        images: uint8 `[frames, views, height, width, 3]`.
        calibration: cameras of these images (after any resizing), shared by all frames.
        sequence: int32 `[frames]`; frames of a sequence follow each other in time.
        subject: int32 `[frames]`, who is seen.
        rate: frames a second.
        unit: of the world, for people ("mm").
        joints: ground truth `[frames, joints, 3]` in world units, NaN where it is not known, or
            None.
        joint_names: of the ground truth.
        bones: pairs of joints to draw, int32 `[bones, 2]`.
    """

    images: np.ndarray
    calibration: Calibration
    sequence: np.ndarray
    subject: np.ndarray
    rate: float
    unit: str = ""
    joints: np.ndarray | None = None
    joint_names: tuple[str, ...] = ()
    bones: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))

    def __post_init__(self) -> None:
        frames, views = self.images.shape[:2]
        if self.images.ndim != 5 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise ValueError(
                "images must be uint8 [frames, views, height, width, 3], got"
                f" {self.images.dtype} {self.images.shape}"
            )
        if views < 2:
            raise ValueError("a recording of one view: places in space need two or more")
        if views != len(self.calibration.names):
            raise ValueError(f"{views} views for {len(self.calibration.names)} calibrated cameras")
        sizes = np.asarray(self.calibration.cameras.size)
        if (sizes != [self.images.shape[3], self.images.shape[2]]).any():
            raise ValueError(
                f"the calibration is for images of {sizes.astype(int).tolist()} (width, height),"
                f" the images are {self.images.shape[3]} x {self.images.shape[2]}"
            )
        for name in ("sequence", "subject"):
            shape = getattr(self, name).shape
            if shape != (frames,):
                raise ValueError(f"{name} has shape {shape} for {frames} frames")

    def save(self, path: Path) -> None:
        """Writes images, ground truth and calibration as one safetensors file."""
        cameras = {
            f"cameras.{field.name}": np.asarray(getattr(self.calibration.cameras, field.name))
            for field in dataclasses.fields(self.calibration.cameras)
        }
        arrays = {"images": self.images, "sequence": self.sequence, "subject": self.subject,
                  "bones": self.bones, **cameras}  # fmt: skip
        if self.joints is not None:
            arrays["joints"] = self.joints
        header = {"names": self.calibration.names, "rate": self.rate, "unit": self.unit,
                  "joint_names": self.joint_names}  # fmt: skip
        storage.save_arrays(path, arrays, header)

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Reads what `save` wrote."""
        arrays, header = storage.load_arrays(path)
        fields = {name[8:]: arrays.pop(name) for name in list(arrays) if name[:8] == "cameras."}
        calibration = Calibration(tuple(header.pop("names")), Cameras(**fields))
        header["joint_names"] = tuple(header["joint_names"])
        values: dict[str, Any] = {**arrays, **header}
        return cls(calibration=calibration, **values)


def ring(views: int, size: int, target: tuple[float, float, float], radius: float) -> Calibration:
    """Cameras around a target at changing heights, looking at it, 38 degrees of view.

    Args:
        views: number of cameras.
        size: width and height of the images, pixels.
        target, radius: world units.
    """
    angles = 2 * np.pi * (np.arange(views) + 0.15) / views
    heights = radius * np.where(np.arange(views) % 2, 0.75, 0.4)
    flat = np.sqrt(np.maximum(radius**2 - heights**2, 0))
    eyes = np.stack([flat * np.cos(angles), flat * np.sin(angles), heights], axis=1)
    focal = size / 2 / np.tan(np.deg2rad(38.0) / 2)
    rig = cameras.look_at(eyes + np.asarray(target), target, (0, 0, 1), focal, (size, size))
    return Calibration(tuple(f"camera{i}" for i in range(views)), rig)


def capsules(config: ConfigDict, seed: int) -> Recording:
    """The built-in animal, rendered here.

    Args:
        config: `subjects`, `frames` of each, `views`, `size` (pixels), `rate` and `oversample`.
        seed: of animals and motion.
    """
    calibration = ring(config.views, config.size, (0.0, 0.0, 60.0), 850.0)
    images, joints = [], []
    for subject in range(config.subjects):
        clip = agent.move(1000 * seed + subject, config.frames, config.rate)
        brightness = np.random.default_rng([seed, subject]).uniform(0.9, 1.1)
        colours = np.minimum(brightness * agent.colours(), 1.0)
        images.append(
            render.render(
                calibration.cameras, clip.starts, clip.ends, clip.radii, colours, config.oversample
            )
        )
        joints.append(clip.joints)
    index = np.repeat(np.arange(config.subjects, dtype=np.int32), config.frames)
    return Recording(
        np.concatenate(images), calibration, index, index.copy(), float(config.rate), "mm",
        np.concatenate(joints), agent.names(), agent.bones(),
    )  # fmt: skip


def simulated(config: ConfigDict, seed: int) -> Recording:
    """MuJoCo's animals and humanoid; need the extra `sim`."""
    from keypoints import simulation

    return simulation.recording(config, seed)


def pose2sim(config: ConfigDict, seed: int) -> Recording:
    """Real people before four cameras, from the registry."""
    from keypoints import recordings

    del seed
    return recordings.pose2sim(config)


def folder(config: ConfigDict, seed: int) -> Recording:
    """A user's own videos or image folders with a calibration."""
    from keypoints import recordings

    del seed
    return recordings.load(config)


def rat7m(config: ConfigDict, seed: int) -> Recording:
    """One day of Rat7M, from the user's copy."""
    from keypoints import rat7m as loader

    del seed
    return loader.load(config)


def human36m(config: ConfigDict, seed: int) -> Recording:
    """One subject of Human3.6M, from the user's copy."""
    from keypoints import human36m as loader

    del seed
    return loader.load(config)


SOURCES: dict[str, Callable[[ConfigDict, int], Recording]] = {
    "capsules": capsules,
    "rodent": simulated,
    "humanoid": simulated,
    "fly": simulated,
    "pose2sim": pose2sim,
    "folder": folder,
    "rat7m": rat7m,
    "human36m": human36m,
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Frames by use, int arrays of indices.

    Attributes:
        train: frames that networks and regressions are trained on.
        later: the last part of the training subjects' sequences.
        unseen: frames of subjects that training does not see; empty with one subject.
    """

    train: np.ndarray
    later: np.ndarray
    unseen: np.ndarray


def split(recording: Recording, test_subjects: int, later: float) -> Split:
    """Holds out the last `test_subjects` subjects and the last share `later` of other sequences.

    Raises:
        ValueError: nobody or nothing is left to train on, or to test on.
    """
    subjects = np.unique(recording.subject)
    if test_subjects >= len(subjects):
        raise ValueError(f"{test_subjects} test subjects of {len(subjects)} leave none to train on")
    held = np.isin(recording.subject, subjects[len(subjects) - test_subjects :])
    late = np.zeros(len(held), bool)
    for sequence in np.unique(recording.sequence):
        own = np.flatnonzero(recording.sequence == sequence)
        late[own[len(own) - round(later * len(own)) :]] = True
    found = Split(
        np.flatnonzero(~held & ~late), np.flatnonzero(~held & late), np.flatnonzero(held)
    )
    if not len(found.train):
        raise ValueError(f"holding out {later} of each sequence leaves no training frames")
    if not len(found.later) + len(found.unseen):
        raise ValueError(
            f"no frame is held out: {test_subjects} test subjects, {later} of sequences of"
            f" {np.bincount(recording.sequence).tolist()} frames"
        )
    return found


def labelled(recording: Recording, frames: Split) -> Split:
    """The frames of a split in which all joints are known.

    Raises:
        ValueError: there are none to fit on, or none to test on.
    """
    if recording.joints is None:
        raise ValueError("the recording has no joints")
    known = np.isfinite(recording.joints).all(axis=(1, 2))
    found = Split(*(part[known[part]] for part in (frames.train, frames.later, frames.unseen)))
    if not len(found.train) or not len(found.later) + len(found.unseen):
        kind = "held-out" if len(found.train) else "training"
        raise ValueError(f"in none of the {kind} frames all joints are known")
    return found


class Pairs(Sequence):
    """Random-access pairs of frames `gap` apart within one sequence, both from `frames`.

    An item is `{"first", "second"}`, uint8 `[views, height, width, 3]`; with `masks`, bool
    `[frames, views, height, width]`, also `{"first_mask", "second_mask"}`.

    Raises:
        ValueError: no sequence is longer than the gap.
    """

    def __init__(
        self, recording: Recording, frames: np.ndarray, gap: int, masks: np.ndarray | None = None
    ) -> None:
        allowed = np.zeros(len(recording.sequence) + gap, bool)
        allowed[frames] = True
        sequence = np.concatenate([recording.sequence, np.full(gap, -1, np.int32)])
        starts = np.asarray(frames)
        same = sequence[starts] == sequence[starts + gap]
        self._starts = starts[same & allowed[starts + gap]]
        self._gap = gap
        self._arrays = {"": recording.images}
        if masks is not None:
            self._arrays["_mask"] = masks
        if not len(self._starts):
            raise ValueError(f"no two of {len(frames)} training frames are {gap} frames apart")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        start = self._starts[index]
        return {
            which + name: array[place]
            for name, array in self._arrays.items()
            for which, place in (("first", start), ("second", start + self._gap))
        }


_OTHER = {
    "first": "second", "second": "first",
    "first_mask": "second_mask", "second_mask": "first_mask",
}  # fmt: skip


def swap_at_random(example: Any, generator: np.random.Generator) -> Any:
    """Reverses time in half of the pairs."""
    if generator.random() < 0.5:
        return {_OTHER[name]: value for name, value in example.items()}
    return example


def on_device(cameras: Cameras) -> Cameras:
    """Cameras as float32 device arrays."""
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(leaf, None if leaf.dtype == bool else np.float32), cameras
    )
