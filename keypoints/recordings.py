"""A user's own recording: videos or image folders, one for each calibrated camera, checked first.

Named errors instead of bad results: missing and unknown cameras, unequal lengths and frame rates, a
calibration of another resolution, views that lag, cameras whose names are exchanged, no motion.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from common import registry
from keypoints import calibration as calibration_lib
from keypoints import cameras as cameras_lib
from keypoints import checks, ground_truth, volume
from keypoints.calibration import Calibration
from keypoints.data import Recording
from keypoints.sources import RecordingError, View, find_sources

__all__ = ["RecordingError", "load", "motion_box", "pose2sim", "read"]

_LOG = logging.getLogger(__name__)

_SMALL = 160  # pixels of the longer side of the copies in which motion is sought


def _small(source: View, stride: int) -> np.ndarray:
    """Frames with the longer side at `_SMALL` pixels."""
    scale = min(1.0, _SMALL / max(source.size))
    size = (max(1, round(source.size[0] * scale)), max(1, round(source.size[1] * scale)))
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, 2, reducing_gap=2.0))
         for f in source.frames(stride)]
    )  # fmt: skip


def motion_box(
    mask: np.ndarray, size: tuple[int, int], margin: float
) -> tuple[int, int, int, int]:
    """Rectangle (left, top, width, height) in pixels of the image around what moves in a view.

    A square, as long as it fits into the image; else as wide or as high as the image is. Each frame
    counts, however short the subject stays at a place: its extent is that of all moving pixels but
    the outermost 2 per cent along each axis, which may be noise. Frames in which less than a fifth
    of the usual area moves, and the most extreme 1 per cent of the frames, are left out.

    Args:
        mask: bool `[frames, height, width]`; something moves.
        size: (width, height) of the image, pixels.
        margin: widening, as a share of the extent.
    """
    area = mask.sum(axis=(1, 2))
    frames = np.flatnonzero(area >= max(1.0, 0.2 * np.median(area[area > 0])))
    bounds = []
    for frame in frames:
        ys, xs = np.nonzero(mask[frame])
        places = np.stack([xs, ys], axis=1)
        ends = np.quantile(places, (0.02, 0.98), axis=0, method="nearest")
        bounds.append(np.concatenate([ends[0], -ends[1]]))
    outer = np.quantile(np.stack(bounds), 0.01, axis=0, method="lower")
    full = np.asarray(size)
    scale = full / np.array([mask.shape[2], mask.shape[1]])
    low, high = outer[:2] * scale, (1 - outer[2:]) * scale
    side = int(np.ceil((high - low).max() * (1 + margin)))
    extent = np.minimum(side, full)
    corner = np.clip(np.round((low + high) / 2 - extent / 2).astype(int), 0, full - extent)
    left, top = (int(n) for n in corner)
    return left, top, int(extent[0]), int(extent[1])


def read(
    sources: Sequence[View],
    calibration: Calibration,
    size: int,
    stride: int,
    threshold: float,
    unit: str,
    rate: float,
) -> Recording:
    """Checks the views, crops each to where something moves (`motion_box`), and resizes.

    The images become squares; where a crop is none (a tall subject in a wide image) its pixels are
    not square any more, as the intrinsics say.

    Raises:
        RecordingError: see the module.
    """
    checks.check_sources(sources, calibration)
    calibration = checks.fit_sizes(sources, calibration)
    small = [_small(source, stride) for source in sources]
    masks = []
    for frames, name in zip(small, calibration.names, strict=True):
        mask = volume.motion_masks(frames[:, None], threshold)[:, 0]
        if mask.mean() < 1e-4:
            raise RecordingError(
                f"camera {name}: nothing moves ({mask.mean():.1e} of the pixels change by more than"
                f" {threshold}); a static background and a moving subject are needed"
            )
        if mask.mean() > 0.5:
            _LOG.warning(
                "camera %s: %.0f %% of the pixels move; the background should be still, and"
                " config.data.motion above its noise", name, 100 * mask.mean()
            )
        masks.append(mask)
    activity = [np.abs(np.diff(f.astype(np.float32), axis=0)).mean(axis=(1, 2, 3)) for f in small]
    checks.check_synchrony(np.stack(activity, axis=1), calibration.names, stride=stride)
    few = np.stack([checks.square(mask[:: max(1, len(mask) // 8)]) for mask in masks], axis=1)
    shape = (few.shape[3], few.shape[2])
    checks.check_assignment(cameras_lib.resize(calibration.cameras, shape), few, calibration.names)
    views, boxes = [], []
    for index, (source, mask) in enumerate(zip(sources, masks, strict=True)):
        left, top, width, height = motion_box(mask, (source.size[0], source.size[1]), 0.15)
        boxes.append((left, top, width, height))
        area = (left, top, left + width, top + height)
        views.append(
            np.stack(
                [np.asarray(Image.fromarray(f).resize((size, size), 2, area, 2.0))
                 for f in source.frames(stride)]
            )
        )  # fmt: skip
        _LOG.info("camera %s: left, top, width, height %s", calibration.names[index], boxes[-1])
    corners = np.asarray(boxes, float)
    cropped = cameras_lib.crop(calibration.cameras, corners[:, 0], corners[:, 1], (1, 1))
    cropped = cropped.replace(size=corners[:, 2:])
    rig = cameras_lib.resize(cropped, (size, size))
    images = np.stack(views, axis=1)
    zeros = np.zeros(len(images), np.int32)
    return Recording(
        images, Calibration(calibration.names, rig), zeros, zeros.copy(), rate / stride, unit
    )


def load(config: ConfigDict) -> Recording:
    """The recording that `config.path` and `config.calibration` name.

    Args:
        config: `path` (folder with NAME.mp4 or NAME/ for each camera), `calibration`, `size`,
            `stride`, `motion`, `rate` (of image folders), `unit` and perhaps `joints`: a file of
            what is known of the joints in all frames, see `ground_truth.read`.
    """
    if not config.path or not config.calibration:
        raise RecordingError("set config.data.path and config.data.calibration")
    found = calibration_lib.read(config.calibration)
    sources = find_sources(pathlib.Path(config.path), found.names)
    rate = sources[0].rate or config.rate
    own = read(sources, found, config.size, config.stride, config.motion, config.unit, rate)
    if not config.get("joints"):
        return own
    joints, names = ground_truth.read(config.joints)
    if len(joints) != sources[0].count:
        raise RecordingError(
            f"{config.joints} has {len(joints)} frames, the views have {sources[0].count}"
        )
    return dataclasses.replace(own, joints=joints[:: config.stride], joint_names=names)


def pose2sim(config: ConfigDict) -> Recording:
    """One person before four cameras, 100 frames at 60 frames a second, from PyPI's pose2sim.

    The calibration is for 1088 x 1920 pixels; two of the videos are 1080 wide, see
    `checks.fit_sizes`.
    """
    folder = registry.fetch("pose2sim")
    found = calibration_lib.read_qualisys(folder / "Calib.qca.txt")
    sources = find_sources(folder / "single", found.names)
    rate = sources[0].rate or 60.0
    return read(sources, found, config.size, config.stride, config.motion, "mm", rate)
