"""A user's own recording: videos or image folders, one for each calibrated camera, checked first.

Named errors instead of bad results: missing and unknown cameras, unequal lengths and frame rates, a
calibration of another resolution, views that lag, cameras whose names are exchanged, no motion.
"""

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from common import registry
from common.datasets import IMAGE_ERRORS, IMAGE_SUFFIXES
from keypoints import calibration as calibration_lib
from keypoints import cameras as cameras_lib
from keypoints import ground_truth, volume
from keypoints.calibration import Calibration
from keypoints.cameras import Cameras
from keypoints.data import Recording

_LOG = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".mpg")
_SMALL = 160  # pixels of the longer side of the copies in which motion is sought


class RecordingError(ValueError):
    """Something about a recording is wrong; the message names the files and numbers."""


class Source:
    """Frames of one camera: a video (needs OpenCV, extra `keypoints`) or a folder of images.

    Attributes:
        path: file or folder.
        count: number of frames.
        rate: frames a second, None for folders.
        size: (width, height), pixels.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._files: list[pathlib.Path] = []
        self.rate: float | None = None
        if path.is_dir():
            self._files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not self._files:
                raise RecordingError(f"{path} has no images")
            self.count = len(self._files)
            self.size = _picture(self._files[0]).size
            return
        import cv2

        video = cv2.VideoCapture(str(path))
        if not video.isOpened():
            raise RecordingError(f"{path} cannot be opened as a video")
        self.count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        self.rate = float(video.get(cv2.CAP_PROP_FPS))
        width, height = (int(video.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH,
                                                     cv2.CAP_PROP_FRAME_HEIGHT))  # fmt: skip
        self.size = (width, height)
        video.release()

    def frames(self, stride: int = 1) -> Iterator[np.ndarray]:
        """Every `stride`-th frame, uint8 `[height, width, 3]`.

        Raises:
            RecordingError: a frame cannot be read, or has another size than the first.
        """
        if self._files:
            for file in self._files[::stride]:
                frame = np.asarray(_picture(file))
                if frame.shape[1::-1] != self.size:
                    raise RecordingError(
                        f"{file} has {frame.shape[1]} x {frame.shape[0]} pixels, the first image of"
                        f" its folder {self.size[0]} x {self.size[1]}"
                    )
                yield frame
            return
        import cv2

        video = cv2.VideoCapture(str(self.path))
        try:
            for index in range(self.count):
                good, frame = video.read()
                if not good:
                    raise RecordingError(
                        f"{self.path}: frame {index} of {self.count} cannot be read; the file is"
                        " damaged or its header wrong"
                    )
                if index % stride == 0:
                    yield frame[..., ::-1]
        finally:
            video.release()


def _picture(path: pathlib.Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except IMAGE_ERRORS as error:
        raise RecordingError(f"{path} cannot be read as a picture: {error}") from error


def find_sources(folder: pathlib.Path, names: Sequence[str]) -> list[Source]:
    """The source of every calibrated camera: a video NAME.* or an image folder NAME.

    Raises:
        RecordingError: a camera without a source (with the sources that no camera claims), or two
            sources for one camera.
    """
    if not folder.is_dir():
        raise RecordingError(f"there is no folder {folder}")
    known: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
            known.setdefault(path.name if path.is_dir() else path.stem, []).append(path)
    missing = [name for name in names if name not in known]
    spare = [name for name in known if name not in names]
    if missing:
        raise RecordingError(
            f"{folder} has no video or folder for camera {', '.join(missing)}; it has "
            f"{', '.join(spare) or 'nothing else'} that the calibration does not know"
        )
    double = [name for name in names if len(known[name]) > 1]
    if double:
        raise RecordingError(f"{folder} has two sources for camera {double[0]}")
    if spare:
        _LOG.warning("%s: not in the calibration and left out: %s", folder, ", ".join(spare))
    return [Source(known[name][0]) for name in names]


def check_sources(sources: Sequence[Source], calibration: Calibration) -> None:
    """Raises RecordingError for unequal lengths, rates, or sizes other than the calibration's."""
    counts = {s.path.name: s.count for s in sources}
    if len(set(counts.values())) > 1:
        raise RecordingError(f"the views differ in length: {counts}; cut them to the same frames")
    rates = {s.path.name: round(s.rate, 3) for s in sources if s.rate is not None}
    if len(set(rates.values())) > 1:
        raise RecordingError(f"the views differ in frame rate: {rates}")
    for source, name, size in zip(
        sources, calibration.names, np.asarray(calibration.cameras.size).astype(int), strict=True
    ):
        if tuple(size) != tuple(source.size):
            raise RecordingError(
                f"camera {name} is calibrated at {size[0]} x {size[1]} pixels, {source.path} has"
                f" {source.size[0]} x {source.size[1]}"
            )


def check_synchrony(activity: np.ndarray, names: Sequence[str], most: int = 15) -> None:
    """Compares when the views change: raises RecordingError where one clearly lags the others.

    Args:
        activity: mean absolute change from each frame to the next, `[frames - 1, views]`.
        names: of the views.
        most: largest lag looked for, frames.
    """
    change = np.log1p(activity)
    change = (change - change.mean(axis=0)) / np.maximum(change.std(axis=0), 1e-9)
    most = min(most, len(change) // 4)
    if most < 2:
        return  # too short to tell
    for view, name in enumerate(names):
        others = np.delete(change, view, axis=1).mean(axis=1)
        lags = np.arange(-most, most + 1)
        middle = slice(most, len(others) - most)
        scores = [
            np.corrcoef(np.roll(change[:, view], -lag)[middle], others[middle])[0, 1]
            for lag in lags
        ]
        best = int(np.argmax(scores))
        gain = scores[best] - scores[most]
        if abs(lags[best]) >= 2 and scores[best] > 0.5 and gain > 0.3:
            raise RecordingError(
                f"camera {name} seems to lag the others by {lags[best]} frames (correlation of "
                f"motion {scores[best]:.2f}, {scores[most]:.2f} as it is): synchronise the views"
            )


def check_assignment(cameras: Cameras, masks: np.ndarray, names: Sequence[str]) -> None:
    """Raises RecordingError where exchanging two cameras explains the motion much better.

    Args:
        cameras: `[views]`, intrinsics of the masks.
        masks: bool `[frames, views, height, width]`, a few frames.
        names: of the views.
    """
    cube = volume.from_frustums(cameras)
    own = cube.cameras(cameras)

    def agreement(order: np.ndarray) -> float:
        return float(np.asarray(volume.hull(masks[:, order], own, 24)).mean())

    views = len(names)
    as_is = agreement(np.arange(views))
    for i, j in itertools.combinations(range(views), 2):
        order = np.arange(views)
        order[[i, j]] = order[[j, i]]
        swapped = agreement(order)
        if swapped > 4 * as_is and swapped > 1e-4:
            raise RecordingError(
                f"the videos of {names[i]} and {names[j]} seem to be exchanged: the visual hull of "
                f"what moves is {swapped / max(as_is, 1e-9):.0f} times larger the other way round"
            )


def _small(source: Source, stride: int) -> np.ndarray:
    """Frames with the longer side at `_SMALL` pixels."""
    scale = min(1.0, _SMALL / max(source.size))
    size = (max(1, round(source.size[0] * scale)), max(1, round(source.size[1] * scale)))
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, 2, reducing_gap=2.0))
         for f in source.frames(stride)]
    )  # fmt: skip


def _box(mask: np.ndarray, size: tuple[int, int], margin: float) -> tuple[int, int, int]:
    """Square (left, top, side) in full pixels around what moves in a view, inside the image."""
    share = mask.mean(axis=0)
    ys, xs = np.nonzero(share > 0.01)
    if len(xs) == 0:
        raise RecordingError("nothing moves")
    scale = size[0] / mask.shape[2]
    low = np.array([xs.min(), ys.min()]) * scale
    high = (np.array([xs.max(), ys.max()]) + 1) * scale
    side = int(min(np.ceil((high - low).max() * (1 + margin)), min(size)))
    corner = np.round((low + high) / 2 - side / 2).astype(int)
    left, top = np.clip(corner, 0, np.asarray(size) - side)
    return int(left), int(top), side


def read(
    sources: Sequence[Source],
    calibration: Calibration,
    size: int,
    stride: int,
    threshold: float,
    unit: str,
    rate: float,
) -> Recording:
    """Checks the views, crops each to the square in which something moves, and resizes.

    Raises:
        RecordingError: see the module.
    """
    check_sources(sources, calibration)
    small = [_small(source, stride) for source in sources]
    masks = []
    for frames, name in zip(small, calibration.names, strict=True):
        mask = volume.motion_masks(frames[:, None], threshold)[:, 0]
        if mask.mean() < 1e-4:
            raise RecordingError(
                f"camera {name}: nothing moves ({mask.mean():.1e} of the pixels change by more than"
                f" {threshold}); a static background and a moving subject are needed"
            )
        masks.append(mask)
    activity = [np.abs(np.diff(f.astype(np.float32), axis=0)).mean(axis=(1, 2, 3)) for f in small]
    check_synchrony(np.stack(activity, axis=1), calibration.names)
    if len({source.size for source in sources}) == 1:
        few = np.stack([mask[:: max(1, len(mask) // 8)] for mask in masks], axis=1)
        shape = (few.shape[3], few.shape[2])
        check_assignment(
            cameras_lib.resize(calibration.cameras, shape), few, calibration.names
        )
    views, boxes = [], []
    for index, (source, mask) in enumerate(zip(sources, masks, strict=True)):
        left, top, side = _box(mask, (source.size[0], source.size[1]), 0.15)
        boxes.append((left, top, side))
        area = (left, top, left + side, top + side)
        views.append(
            np.stack(
                [np.asarray(Image.fromarray(f).resize((size, size), 2, area))
                 for f in source.frames(stride)]
            )
        )  # fmt: skip
        _LOG.info("camera %s: square %s", calibration.names[index], boxes[-1])
    corners = np.asarray(boxes, float)
    cropped = cameras_lib.crop(calibration.cameras, corners[:, 0], corners[:, 1], (1, 1))
    cropped = cropped.replace(size=np.repeat(corners[:, 2:], 2, axis=1))
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
    if not found.sized:
        found = _sized(found, sources)
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


def _sized(calibration: Calibration, sources: Sequence[Source]) -> Calibration:
    """The calibration with the sizes of the views."""
    sizes = np.asarray([source.size for source in sources], float)
    return Calibration(calibration.names, calibration.cameras.replace(size=sizes))


def pose2sim(config: ConfigDict) -> Recording:
    """One person before four cameras, 100 frames at 60 frames a second, from PyPI's pose2sim.

    The calibration is for 1088 x 1920 pixels; two of the videos are 1080 wide and are taken to lack
    the last 8 columns.
    """
    folder = registry.fetch("pose2sim")
    found = calibration_lib.read_qualisys(folder / "Calib.qca.txt")
    sources = find_sources(folder / "single", found.names)
    found = _sized(found, sources)
    rate = sources[0].rate or 60.0
    return read(sources, found, config.size, config.stride, config.motion, "mm", rate)
