"""Results on disk: named arrays with a JSON header (safetensors), and JSON values.

Every file is written under a temporary name and renamed, so a reader never sees half of one.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from common.config import to_plain


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    header: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes named arrays with a JSON header as safetensors; the file appears whole or not at all.

    Args:
      path: Ends in `.safetensors`.
      arrays: Names to numpy or JAX arrays, of any shape and any numeric or boolean dtype.
      header: Anything `to_plain` can turn into JSON.

    Raises:
      ValueError: Another suffix.
      TypeError: A value is not a numeric array; the message has its name.
    """
    path = _with_suffix(path, ".safetensors")
    tensors = {}
    for name, value in arrays.items():
        array = np.asarray(value, order="C")
        if array.dtype.kind in "OUSMm":
            raise TypeError(f"{path}: {name!r} has dtype {array.dtype}, expected numbers")
        tensors[name] = array
    metadata = {"header": json.dumps(to_plain(dict(header or {}), "header"), sort_keys=True)}
    write_whole(path, safetensors.numpy.save(tensors, metadata))
    return path


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `save_arrays` wrote: (arrays by name, header). Header is {} in foreign files."""
    path = _with_suffix(path, ".safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads((file.metadata() or {}).get("header", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, header


def save_tree(
    path: str | os.PathLike[str], tree: Mapping[str, Any], header: Mapping[str, Any] | None = None
) -> pathlib.Path:
    """Writes nested dicts of arrays as safetensors, with "/" between the keys of a path."""
    return save_arrays(path, flatten_dict(tree, sep="/"), header)


def load_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_tree` wrote, as nested dicts of NumPy arrays."""
    return unflatten_dict(load_arrays(path)[0], sep="/")


def save_json(path: str | os.PathLike[str], value: Any) -> pathlib.Path:
    """Writes a value as indented JSON; the file appears whole or not at all.

    Raises:
      TypeError, ValueError: Something has no JSON form (NaN included); the message has its key.
    """
    path = _with_suffix(path, ".json")
    text = json.dumps(to_plain(value, path.name), indent=2, allow_nan=False)
    write_whole(path, (text + "\n").encode())
    return path


def load_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file; a damaged one raises ValueError with its name."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _with_suffix(path: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    return path


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes to a temporary name beside `path`, then renames."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
