"""Single-frame grey DICOM files as floats in [0, 1], bright where the tissue absorbs most.

Needs `pydicom` (extra `medical`). Rescale slope and intercept (or the table in their place), the
window of the file (or one that is given, or percentiles where the file has none) and the inversion
of MONOCHROME1 are applied in this order, as DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3 say for the three
shapes of a window.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import special

SHAPES = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
"""Of a window: the value of the attribute `VOILUTFunction`."""


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
      DicomError: not DICOM, damaged, no pixels, colour, several frames, a codec that is not
        installed, a window without width or of unknown shape, or contradictory grey scales.
    """
    import pydicom

    path = pathlib.Path(path)
    with _blaming(path, "not a DICOM file, or damaged"):
        data = pydicom.dcmread(path)
    with _blaming(path, "damaged header"):  # values are parsed when they are asked for
        kind = str(data.get("PhotometricInterpretation", ""))
        modality, patient = str(data.get("Modality", "")), str(data.get("PatientID", ""))
        slope, shift = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
        gap = data.get("PixelSpacing", data.get("ImagerPixelSpacing"))
        spacing = None if gap is None else (float(gap[0]), float(gap[1]))
        shape = str(data.get("VOILUTFunction") or "LINEAR") if window is None else "LINEAR"
        window = _window(data) if window is None else window
        meaning = str(data.get("PresentationLUTShape") or "")
    if "PixelData" not in data:
        raise DicomError(f"{path}: a DICOM file without pixels ({modality or '?'})")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(f"{path}: photometric interpretation {kind or 'missing'}, expected grey")
    if kind == "MONOCHROME2" and meaning == "INVERSE":
        raise DicomError(f"{path}: MONOCHROME2 says that large values are bright, the presentation "
                         "LUT shape INVERSE that they are dark")
    if shape not in SHAPES:
        raise DicomError(f"{path}: window of shape {shape!r}; known: {', '.join(SHAPES)}")
    with _blaming(path, "pixels cannot be decoded"):
        pixels = data.pixel_array
    if pixels.ndim != 2:
        raise DicomError(f"{path}: shape {pixels.shape}, expected one frame [height, width]")
    values = pixels.astype(np.float64) * slope + shift
    if "ModalityLUTSequence" in data:  # in place of slope and intercept
        from pydicom.pixels import apply_modality_lut

        with _blaming(path, "damaged modality table"):
            values = apply_modality_lut(pixels, data).astype(np.float64)
    low, high = _range(path, values, window, shape)
    if not np.isfinite((slope, shift, low, high)).all():
        raise DicomError(f"{path}: slope {slope}, intercept {shift} and window {window} are not "
                         "all finite")
    share = (values - low) / (high - low)
    if window is not None and shape == "SIGMOID":
        share = special.expit(4 * (share - 0.5))
    image = np.clip(share, 0, 1).astype(np.float32)
    inverted = kind == "MONOCHROME1"
    return Radiograph(1 - image if inverted else image, patient, modality, spacing, inverted)


@contextlib.contextmanager
def _blaming(path: pathlib.Path, what: str) -> Iterator[None]:
    """Turns whatever pydicom raises into a `DicomError`; the file system's errors stay.

    On damaged files that is `struct.error`, `zlib.error`, `TypeError` and many more, which differ
    between its versions and decoders, so that no list of them would hold.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise DicomError(f"{path}: {what}: {error or type(error).__name__}") from error


def _window(data: Any) -> tuple[float, float] | None:
    """(centre, width) of the first window of the file, if it has one."""
    if "WindowWidth" not in data or "WindowCenter" not in data:
        return None
    # Both may have several values, one for each recommended window.
    centre, width = (
        v[0] if hasattr(v, "__len__") and not isinstance(v, str) else v
        for v in (data.WindowCenter, data.WindowWidth)
    )
    return float(centre), float(width)


def _range(
    path: pathlib.Path, values: np.ndarray, window: tuple[float, float] | None, shape: str
) -> tuple[float, float]:
    """Values that become 0 and 1 (of a sigmoid: that its middle slope would take there)."""
    if window is None:
        low, high = np.percentile(values, (0.5, 99.5))
        if high <= low:
            raise DicomError(f"{path}: all pixels are equal ({low:g})")
        return float(low), float(high)
    centre, width = window
    least = 1 if shape == "LINEAR" else 0
    if not width > least:
        raise DicomError(f"{path}: window width {width:g} is not larger than {least}")
    if shape != "LINEAR":
        return centre - width / 2, centre + width / 2
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
