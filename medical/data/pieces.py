"""Real pieces of anatomy, from which phantoms are composed: lungs, one radiograph, one brain.

They arrive inside packages of public registries (see `common.registry`): 517 outlines of lungs
drawn on chest X-rays, one frontal chest radiograph, the T1 volume of one head (Colin27), and the
sizes of findings that radiologists boxed on NIH chest X-rays.
"""

import csv
import functools
import gzip
import io
import re
import zipfile
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import registry
from medical.data import dicom, nifti


class Lungs(NamedTuple):
    """Outlines of lungs.

    Attributes:
      masks: uint8 ``[n, side, side]``, 255 inside; cropped to the lungs with a margin and scaled.
      patients: ``[n]`` names; images whose names differ only in a final number count as one.
    """

    masks: np.ndarray
    patients: np.ndarray


SIDE = 96  # pixels of the cropped outlines
MARGIN = 0.14  # of the longer side of the lungs' box, on each side


@functools.cache
def lungs() -> Lungs:
    """All outlines that show two lungs (at least 8 % of the picture), in order of file name.

    Source: V7 Labs' annotations of COVID-19 chest X-rays, in torchxrayvision.
    """
    path = registry.fetch("lung-masks") / "semantic_masks_v7labs_lungs.zip"
    masks, names = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith("/"):
                continue
            with Image.open(io.BytesIO(archive.read(name))) as opened:
                # Some are 27 megapixels; 256 are enough for a crop to SIDE.
                small = opened.convert("L").reduce(max(1, min(opened.size) // 256))
                mask = np.asarray(small) > 127
            if mask.mean() >= 0.08:
                masks.append(_framed(mask))
                names.append(patient_of(name.rsplit("/", 1)[-1]))
    return Lungs(np.stack(masks), np.array(names))


def patient_of(file: str) -> str:
    """Identifier shared by the images of one patient or publication: `16745_2_2.PNG` -> `16745`."""
    stem = file.rsplit(".", 1)[0].lower()
    stem = re.sub(r"\.pdf.*$", "", stem)  # several figures of one article
    numbered = re.match(r"covid-19-pneumonia-\d+", stem)  # several views or days of one case
    if numbered:
        return numbered.group()
    return re.sub(r"([-_ ](\d{1,2}|[a-z]|[a-z]?\d{1,2}|pa|ap|day-?\d+))+$", "", stem)


@functools.cache
def radiograph(side: int = 256) -> np.ndarray:
    """The frontal chest radiograph of `pydicom-data`, float32 ``[side, side]`` in [0, 1].

    Air is dark (the file is MONOCHROME1 and is inverted).
    """
    image = dicom.read(registry.fetch("chest-radiograph") / "RG1_UNCI.dcm").image
    return np.asarray(
        Image.fromarray(image).resize((side, side), Image.Resampling.BOX), np.float32
    )


@functools.cache
def brain() -> tuple[np.ndarray, np.ndarray]:
    """Axial slices of Colin27 at 1 mm: T1 in [0, 1] and where the brain is.

    Source: Holmes et al., "Enhancement of MR Images Using Registration for Signal Averaging", 1998;
    package `mricron-data`. One person only.

    Returns:
      float32 ``[slices, 217, 181]`` from bottom to top, front upwards, and a boolean array like it.
    """
    folder = registry.fetch("colin27")
    head, stripped = nifti.read(folder / "ch2.nii.gz"), nifti.read(folder / "ch2bet.nii.gz")
    top = np.percentile(head[head > 0], 99.5)
    image = np.clip(head / top, 0, 1)
    return (np.ascontiguousarray(image.transpose(2, 1, 0)[:, ::-1]),
            np.ascontiguousarray((stripped > 0).transpose(2, 1, 0)[:, ::-1]))


@functools.cache
def finding_sizes(findings: tuple[str, ...] = ("Nodule", "Mass")) -> np.ndarray:
    """Diameters of boxed findings as fractions of the image's side, ``[n]``.

    Source: boxes of NIH ChestX-ray14 (Wang et al., CVPR 2017; images of 1024 pixels); a diameter is
    the geometric mean of a box's sides.
    """
    path = registry.fetch("lung-masks") / "BBox_List_2017.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    boxes = [(float(r[4]), float(r[5])) for r in rows if r[1] in findings]
    if not boxes:
        raise ValueError(f"{path}: no boxes of {findings}")
    return np.sqrt(np.prod(boxes, axis=1)) / 1024


def _framed(mask: np.ndarray) -> np.ndarray:
    """A mask cut to a square around it, with a margin, as uint8 ``[SIDE, SIDE]``."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    side = round(max(height, width) * (1 + 2 * MARGIN))
    out = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    out[top : top + height, left : left + width] = 255 * cut
    return np.asarray(Image.fromarray(out).resize((SIDE, SIDE), Image.Resampling.BOX))
