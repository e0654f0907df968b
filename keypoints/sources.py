"""Where the frames of a camera come from: a video or a folder of images, found by its name."""

import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from common.datasets import IMAGE_ERRORS, IMAGE_SUFFIXES

_LOG = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".mpg")


class RecordingError(ValueError):
    """Something about a recording is wrong; the message names the files and numbers."""


class Source:
    """Frames of one camera: a video (needs OpenCV, extra `keypoints`) or a folder of images.

    Args:
        path: video or folder.
        files: images in their order, instead of all of the folder in the order of their numbers.

    Attributes:
        path: file or folder.
        count: number of frames.
        rate: frames a second, None for folders.
        size: (width, height), pixels.
    """

    def __init__(self, path: pathlib.Path, files: Sequence[pathlib.Path] = ()) -> None:
        self.path = path
        self._files = list(files)
        self.rate: float | None = None
        if files or path.is_dir():
            if not files:
                found = (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
                self._files = sorted(found, key=_natural)
            if not self._files:
                raise RecordingError(f"{path} has no images")
            self.count = len(self._files)
            self.size = _picture(self._files[0]).size
            return
        cv2 = _opencv(path)
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
        """Every `stride`-th frame, see `pick`."""
        return self.pick(range(0, self.count, stride))

    def pick(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames by their numbers from 0 on, which rise; uint8 `[height, width, 3]`.

        Raises:
            RecordingError: a frame cannot be read, or has another size than the first.
        """
        if self._files:
            for file in (self._files[index] for index in indices):
                frame = np.asarray(_picture(file))
                if frame.shape[1::-1] != self.size:
                    raise RecordingError(
                        f"{file} has {frame.shape[1]} x {frame.shape[0]} pixels, the first image of"
                        f" its folder {self.size[0]} x {self.size[1]}"
                    )
                yield frame
            return
        cv2 = _opencv(self.path)
        video = cv2.VideoCapture(str(self.path))
        chosen = set(indices)
        try:
            for index in range(max(chosen, default=-1) + 1):
                wanted = index in chosen
                good, frame = video.read() if wanted else (video.grab(), np.empty((0, 0, 3)))
                if not good:
                    raise RecordingError(
                        f"{self.path}: frame {index} of {self.count} cannot be read; the file is"
                        " damaged or its header wrong"
                    )
                if not wanted:
                    continue
                if frame.shape[1::-1] != self.size:
                    raise RecordingError(
                        f"{self.path}: frame {index} has {frame.shape[1]} x {frame.shape[0]} pixels"
                        f", the header says {self.size[0]} x {self.size[1]}"
                    )
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            video.release()


class Clips:
    """A camera's frames out of several videos; what else is as in `Source`.

    Args:
        path: what messages name.
        clips: frame number of the camera at which each begins -> its source.
        numbers: wanted frames of the camera, rising; each lies in a clip.
    """

    def __init__(
        self, path: pathlib.Path, clips: Mapping[int, Source], numbers: np.ndarray
    ) -> None:
        sizes = {source.size for source in clips.values()}
        if len(sizes) > 1:
            raise RecordingError(f"{path}: the clips differ in size: {sorted(sizes)}")
        rates = {source.rate for source in clips.values()}
        if len(rates) > 1:
            found = ", ".join(sorted(map(str, rates)))
            raise RecordingError(f"{path}: the clips differ in frame rate: {found}")
        self.path, self.count = path, len(numbers)
        (self.size,), (self.rate,) = sizes, rates
        self._clips, self._numbers = clips, numbers

    def frames(self, stride: int = 1) -> Iterator[np.ndarray]:
        """Every `stride`-th wanted frame, uint8 `[height, width, 3]`."""
        wanted = self._numbers[::stride]
        for start in sorted(self._clips):
            own = wanted[(wanted >= start) & (wanted < start + self._clips[start].count)] - start
            yield from self._clips[start].pick(own.tolist())


View = Source | Clips


def _natural(path: pathlib.Path) -> list[Any]:
    """Sorting key in which 2.png comes before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if part.isdigit() else part for part in parts]


def _opencv(path: pathlib.Path) -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise RecordingError(
            f"{path}: videos need OpenCV; install the extra `keypoints`, or give folders of images"
        ) from error
    return cv2


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
