"""Reader for weights in the TensorFlow.js layout: a JSON manifest beside binary shards.

A manifest is a list of groups `{"paths": [shard, ...], "weights": [entry, ...]}`. The shards of a
group, concatenated, hold its tensors one after another in C order and little-endian bytes. An entry
names a tensor with shape and dtype; with a `quantization` record the bytes are of that record's
dtype and the value is `q * scale + min` (uint8, uint16) or a plain cast (float16).
Format: https://github.com/tensorflow/tfjs (`WeightsManifestConfig` of tfjs-core).
"""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np

__all__ = ["ManifestError", "read_manifest"]

_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1"}
_QUANTISED = {"uint8": "|u1", "uint16": "<u2", "float16": "<f2"}


class ManifestError(ValueError):
    """A manifest or one of its shards is damaged or uses a feature that is not supported."""


def read_manifest(manifest_path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all tensors that a manifest lists, dequantised.

    Args:
        manifest_path: the `*-weights_manifest.json`; its shards are looked up in the same folder.

    Returns:
        Tensor name -> array, in the manifest's order; quantised tensors as float32 (or int32 where
        the manifest says so).

    Raises:
        FileNotFoundError: the manifest or a shard is missing.
        ManifestError: malformed manifest, unsupported dtype, tensor named twice, or shards whose
            size differs from what the entries need.
    """
    path = pathlib.Path(manifest_path)
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a JSON manifest ({error})") from error
    if not isinstance(groups, list):
        raise ManifestError(
            f"{path}: expected a list of weight groups, found {type(groups).__name__}")
    tensors: dict[str, np.ndarray] = {}
    for number, group in enumerate(groups):
        try:
            shards, entries = group["paths"], group["weights"]
        except (KeyError, TypeError) as error:
            raise ManifestError(f"{path}: group {number} lacks 'paths' or 'weights'") from error
        data = b"".join(_shard(path, shard).read_bytes() for shard in shards)
        offset = 0
        for entry in entries:
            name, array, offset = _tensor(path, entry, data, offset)
            if name in tensors:
                raise ManifestError(f"{path}: tensor {name!r} is listed twice")
            tensors[name] = array
        if offset != len(data):
            raise ManifestError(
                f"{path}: group {number} describes {offset} bytes but its shards hold {len(data)}")
    return tensors


def _shard(manifest: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the path of a shard, which must lie beside the manifest."""
    if pathlib.PurePath(name).name != name:
        raise ManifestError(f"{manifest}: shard {name!r} is not a plain file name")
    return manifest.parent / name


def _tensor(
    path: pathlib.Path, entry: dict[str, Any], data: bytes, offset: int
) -> tuple[str, np.ndarray, int]:
    """Returns name, dequantised array and end offset of the tensor that starts at `offset`."""
    try:
        name, shape, dtype = entry["name"], tuple(entry["shape"]), entry["dtype"]
    except (KeyError, TypeError) as error:
        raise ManifestError(
            f"{path}: a weight entry lacks name, shape or dtype: {entry!r}") from error
    quantisation = entry.get("quantization")
    stored = quantisation["dtype"] if quantisation else dtype
    known = _QUANTISED if quantisation else _DTYPES
    if stored not in known or dtype not in _DTYPES:
        raise ManifestError(
            f"{path}: {name!r} has unsupported dtype {dtype!r} stored as {stored!r} "
            f"(known: {', '.join([*_DTYPES, *_QUANTISED])})")
    count = math.prod(shape)
    end = offset + count * np.dtype(known[stored]).itemsize
    if end > len(data):
        raise ManifestError(
            f"{path}: {name!r} {list(shape)} ends at byte {end} but its shards hold {len(data)}")
    array = np.frombuffer(data, known[stored], count, offset)
    if quantisation and stored != "float16":
        try:
            scale, minimum = float(quantisation["scale"]), float(quantisation["min"])
        except KeyError as error:
            raise ManifestError(f"{path}: {name!r} lacks quantization {error}") from error
        # Computed in float64 and rounded once; an int32 target is rounded to the nearest integer.
        values = array.astype(np.float64) * scale + minimum
        array = np.rint(values) if dtype == "int32" else values
    return name, array.astype(_DTYPES[dtype]).reshape(shape), end
