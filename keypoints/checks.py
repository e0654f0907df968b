"""Whether views and calibration belong together: named errors before anything is trained."""

import itertools
import logging
from collections.abc import Sequence

import numpy as np
from PIL import Image

from keypoints import volume
from keypoints.calibration import Calibration
from keypoints.cameras import Cameras
from keypoints.sources import RecordingError, View

_LOG = logging.getLogger(__name__)

_PADDING = 16  # pixels; coders of video fill images up to multiples of it


def check_sources(sources: Sequence[View], calibration: Calibration) -> None:
    """Raises RecordingError for a single view, unequal lengths and unequal frame rates."""
    if len(sources) < 2:
        names = ", ".join(calibration.names)
        raise RecordingError(f"{len(sources)} view ({names}): places in space need two or more")
    counts = {s.path.name: s.count for s in sources}
    if len(set(counts.values())) > 1:
        raise RecordingError(f"the views differ in length: {counts}; cut them to the same frames")
    rates = {s.path.name: round(s.rate, 3) for s in sources if s.rate is not None}
    if len(set(rates.values())) > 1:
        raise RecordingError(f"the views differ in frame rate: {rates}")


def fit_sizes(sources: Sequence[View], calibration: Calibration) -> Calibration:
    """The calibration with the sizes of the views.

    Differences below the 16 pixels to which video coders fill up are taken for columns on the
    right and rows at the bottom that one of the two lacks, and logged. Sizes that the calibration
    does not know are those of the views.

    Raises:
        RecordingError: larger differences: the calibration is for another resolution.
    """
    sizes = np.asarray([source.size for source in sources])
    known = np.asarray(calibration.cameras.size).astype(int)
    for source, name, own, size in zip(sources, calibration.names, sizes, known, strict=True):
        if not calibration.sized or (own == size).all():
            continue
        text = (
            f"camera {name} is calibrated at {size[0]} x {size[1]} pixels, {source.path} has"
            f" {own[0]} x {own[1]}"
        )
        if np.abs(own - size).max() >= _PADDING:
            raise RecordingError(f"{text}: the calibration must be for the videos' resolution")
        _LOG.warning("%s: taken for missing or added last columns and rows", text)
    return Calibration(calibration.names, calibration.cameras.replace(size=sizes.astype(float)))


def check_synchrony(
    activity: np.ndarray, names: Sequence[str], most: int = 15, stride: int = 1
) -> None:
    """Compares when the views change: raises RecordingError where one clearly lags the others.

    Args:
        activity: mean absolute change from each frame to the next, `[frames - 1, views]`.
        names: of the views.
        most: largest lag looked for, frames.
        stride: frames of the videos in one frame here, for the message.
    """
    change = np.log1p(activity)
    change = (change - change.mean(axis=0)) / np.maximum(change.std(axis=0), 1e-9)
    most = min(most, len(change) // 4)
    if most < 2:
        _LOG.warning("%d frames are too few to see whether the views are synchronous", len(change))
        return
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
                f"camera {name} seems to lag the others by {stride * lags[best]} frames ("
                f"correlation of motion {scores[best]:.2f}, {scores[most]:.2f} as it is):"
                " synchronise the views"
            )


def check_assignment(cameras: Cameras, masks: np.ndarray, names: Sequence[str]) -> None:
    """Raises RecordingError where exchanging two cameras explains the motion much better.

    Where the cameras alone give no volume (side by side, say) nothing is compared, which is logged.

    Args:
        cameras: `[views]`, intrinsics of the masks.
        masks: bool `[frames, views, height, width]`, a few frames.
        names: of the views.
    """
    try:
        cube = volume.from_frustums(cameras)
    except ValueError as error:
        _LOG.warning("whether names are exchanged is not looked at: %s", error)
        return
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


def square(mask: np.ndarray) -> np.ndarray:
    """Masks `[frames, h, w]` as `[frames, 128, 128]`, of views whatever their shapes."""
    return np.stack([np.asarray(Image.fromarray(own).resize((128, 128), 0)) for own in mask])
