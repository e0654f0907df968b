"""Volumes of NIfTI-1 files (`.nii`, `.nii.gz`) as arrays; orientation is left as stored.

Header: https://nifti.nimh.nih.gov/nifti-1. Only single files, and the numeric types that templates
use, are read.
"""

import gzip
import os
import pathlib
import struct
import zlib

import numpy as np

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns float32 ``[x, y, z]`` (more axes if the file has more), scaled as the header says.

    Raises:
      ValueError: not such a file, an unknown type, or fewer bytes than the header announces.
    """
    data = pathlib.Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from error
    if len(data) < 352 or data[344:347] != b"n+1":
        raise ValueError(f"{path}: not a single-file NIfTI-1 volume")
    order = "<" if struct.unpack("<i", data[:4])[0] == 348 else ">"
    rank, *sizes = struct.unpack(f"{order}8h", data[40:56])
    (code,) = struct.unpack(f"{order}h", data[70:72])
    start, slope, shift = struct.unpack(f"{order}3f", data[108:120])
    if code not in _TYPES or not 1 <= rank <= 7:
        raise ValueError(f"{path}: data type {code} or rank {rank} is not supported")
    shape = sizes[:rank]
    kind = np.dtype(order + _TYPES[code])
    count = int(np.prod(shape))
    if min(shape) < 1 or len(data) < int(start) + count * kind.itemsize:
        raise ValueError(f"{path}: {len(data)} bytes, too few for {shape} values of {kind}")
    values = np.frombuffer(data, kind, count, int(start)).reshape(shape, order="F")
    values = values.astype(np.float32)
    return values if slope in (0.0, 1.0) and shift == 0.0 else values * slope + shift
