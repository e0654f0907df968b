"""Single-frame grey DICOM files as floats in [0, 1], bright where the tissue absorbs most.

Needs `pydicom` (extra `medical`). Rescale slope and intercept, the window of the file (or one that
is given, or percentiles where the file has none) and the inversion of MONOCHROME1 are applied in
this order, as DICOM PS3.3 C.11.2.1.2 says for the linear window.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np


class DicomError(ValueError):
    """A file is no DICOM image that can be used here; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """One image.

    Attributes:
      image: float32 ``[height, width]`` in [0, 1].
      patient: patient identifier, "" if the file has none.
      modality: for example "CR", "DX", "MR".
      spacing: row and column spacing in millimetres, or None.
      inverted: whether the file was MONOCHROME1 and has been inverted.
    """

    image: np.ndarray
    patient: str
    modality: str
    spacing: tuple[float, float] | None
    inverted: bool


def read(path: str | os.PathLike[str], window: tuple[float, float] | None = None) -> Radiograph:
    """Reads a file.

    Args:
      path: DICOM file.
      window: (centre, width) in the units after rescaling. None: the first window of the file, or
        the 0.5th to 99.5th percentile where it has none.

    Raises:
      FileNotFoundError: there is no such file.
      DicomError: not DICOM, no pixels, colour, several frames, a codec that is not installed, or a
        window without width.
    """
    import pydicom

    path = pathlib.Path(path)
    try:
        data = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, EOFError, ValueError, KeyError) as error:
        raise DicomError(f"{path}: not a DICOM file: {error}") from error
    kind = str(data.get("PhotometricInterpretation", ""))
    if "PixelData" not in data:
        raise DicomError(f"{path}: a DICOM file without pixels ({data.get('Modality', '?')})")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(f"{path}: photometric interpretation {kind or 'missing'}, expected grey")
    try:
        pixels = data.pixel_array
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        # pydicom raises, in this order, for codecs that are not installed or damaged data, for
        # unknown transfer syntaxes, missing elements and data that do not fit the header
        raise DicomError(f"{path}: pixels cannot be decoded: {error}") from error
    if pixels.ndim != 2:
        raise DicomError(f"{path}: shape {pixels.shape}, expected one frame [height, width]")
    slope, shift = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    values = pixels.astype(np.float64) * slope + shift
    low, high = _range(path, data, values, window)
    image = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    inverted = kind == "MONOCHROME1"
    spacing = data.get("PixelSpacing", data.get("ImagerPixelSpacing"))
    return Radiograph(
        1 - image if inverted else image,
        str(data.get("PatientID", "")),
        str(data.get("Modality", "")),
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        inverted,
    )


def _range(
    path: pathlib.Path, data: Any, values: np.ndarray, window: tuple[float, float] | None
) -> tuple[float, float]:
    """Values that become 0 and 1."""
    if window is None and "WindowWidth" in data and "WindowCenter" in data:
        pair = (data.WindowCenter, data.WindowWidth)
        # Both may have several values, one for each recommended window.
        first = [v[0] if hasattr(v, "__len__") and not isinstance(v, str) else v for v in pair]
        window = (float(first[0]), float(first[1]))
    if window is None:
        low, high = np.percentile(values, (0.5, 99.5))
        if high <= low:
            raise DicomError(f"{path}: all pixels are equal ({low:g})")
        return float(low), float(high)
    centre, width = window
    if not width > 1:
        raise DicomError(f"{path}: window width {width:g} is not larger than 1")
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
