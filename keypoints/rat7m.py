"""Rat7M: rats with motion-capture markers before six cameras, from the files of its release.

Marshall, Aldarondo, Dunn et al., "Continuous whole-body 3D kinematic recordings across the rodent
behavioral repertoire", Neuron 2021. One recording day, say s1-d1, is `mocap-s1-d1.mat` and videos
`s1-d1-camera1-0.mp4`, `s1-d1-camera1-3500.mp4`, ...: the last number is the camera's frame at which
a video begins. The `.mat` has the cameras, for each sample of the markers the frame of every
camera, and the markers in millimetres, NaN where one was not seen.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.io
from ml_collections import ConfigDict

from keypoints import calibration as calibration_lib
from keypoints import recordings
from keypoints.data import Recording
from keypoints.sources import VIDEO_SUFFIXES, Clips, RecordingError, Source

_NAME = re.compile(r"(?:.*-)?(camera\d+)-(\d+)")


def markers(
    path: pathlib.Path, names: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Reads the markers and the cameras' frames of every sample.

    Args:
        path: `mocap-*.mat`.
        names: of the cameras, in lower case.

    Returns:
        (millimetres `[samples, markers, 3]`, names of the markers, frames int `[samples, cameras]`
        counted from 0).

    Raises:
        RecordingError: something is missing or does not fit.
    """
    try:
        content = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # loadmat has no error of its own, see `calibration.read_dannce`
        raise RecordingError(f"{path} cannot be read as MATLAB 5 file: {error!r}") from error
    mocap, cameras = content.get("mocap"), content.get("cameras")
    if not hasattr(mocap, "_fieldnames") or not hasattr(cameras, "_fieldnames"):
        raise RecordingError(f"{path} has no 'mocap' and 'cameras', it has {sorted(content)}")
    labels = tuple(mocap._fieldnames)
    own: dict[str, Any] = {name.lower(): getattr(cameras, name) for name in cameras._fieldnames}
    try:
        places = np.stack([np.asarray(getattr(mocap, name), float) for name in labels], axis=1)
        frames = np.stack([np.ravel(own[name].frame).astype(int) for name in names], axis=1)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{path}: markers or frames of another form: {error}") from error
    if places.ndim != 3 or places.shape[2] != 3 or len(frames) != len(places):
        raise RecordingError(
            f"{path}: markers have shape {places.shape}, frames {frames.shape}; expected"
            " [samples, markers, 3] and [samples, cameras]"
        )
    return places, labels, frames


def find_clips(folder: pathlib.Path, names: Sequence[str]) -> dict[str, dict[int, Source]]:
    """Videos of every camera by the frame at which they begin.

    Raises:
        RecordingError: no folder, or a camera without videos.
    """
    if not folder.is_dir():
        raise RecordingError(f"there is no folder {folder}")
    found: dict[str, dict[int, Source]] = {name: {} for name in names}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.stem.lower())
        if match and match[1] in found and path.suffix.lower() in VIDEO_SUFFIXES:
            found[match[1]][int(match[2])] = Source(path)
    missing = [name for name, clips in found.items() if not clips]
    if missing:
        raise RecordingError(
            f"{folder} has no videos *-{missing[0]}-FRAME.mp4 of camera {', '.join(missing)}"
        )
    return found


def load(config: ConfigDict) -> Recording:
    """One recording day.

    Args:
        config: `path` (the folder of the videos; those that are there are used), `calibration`
            (`mocap-*.mat`), `size`, `stride` (of the samples) and `motion`.

    Raises:
        RecordingError: see `recordings`; no sample is in the videos of all cameras.
    """
    if not config.path or not config.calibration:
        raise RecordingError("set config.data.path and config.data.calibration")
    path = pathlib.Path(config.calibration)
    rig = calibration_lib.read(path)
    places, labels, frames = markers(path, rig.names)
    clips = find_clips(pathlib.Path(config.path), rig.names)
    samples = np.arange(0, len(frames), config.stride)
    there = np.ones(len(samples), bool)
    for column, name in enumerate(rig.names):
        own = frames[samples, column]
        starts = np.asarray(sorted(clips[name]))
        place = np.searchsorted(starts, own, side="right") - 1
        counts = np.asarray([clips[name][start].count for start in starts])
        there &= (place >= 0) & (own < starts[place] + counts[place])
    samples = samples[there]
    if len(samples) < 2:
        spans = {name: sorted(clips[name]) for name in rig.names}
        raise RecordingError(
            f"{len(samples)} of the {len(frames)} samples of {path} are in videos of all cameras;"
            f" these begin at {spans}"
        )
    views = [
        Clips(pathlib.Path(config.path) / name, clips[name], frames[samples, column])
        for column, name in enumerate(rig.names)
    ]
    rate = views[0].rate or config.rate
    found = recordings.read(views, rig, config.size, 1, config.motion, "mm", rate)
    gaps = np.diff(samples) != config.stride  # where samples are left out a sequence ends
    sequence = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int32)
    return dataclasses.replace(
        found, rate=rate / config.stride, sequence=sequence, joints=places[samples],
        joint_names=labels,
    )  # fmt: skip
