"""Tensors of a TorchScript archive, such as OpenAI's file of CLIP, without running its program.

Such an archive is a zip file with the program (`code/`), its constants, and the modules' state as
the pickle `data.pkl`, whose tensors are members `data/<key>`. Modules are inert records here; their
tensors are returned by the names that they have in a state dict.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from common import restricted_pickle, torch_tensors
from common.restricted_pickle import Marker, PickleError
from rosetta.zoo.records import Allowed, Record

__all__ = ["is_archive", "read_tensors"]

# Lists and dicts with the type of their elements: torch/jit/_pickle.py.
_TYPED = {
    f"torch.jit._pickle.{name}": Marker(f"torch.jit._pickle.{name}", function)
    for name, function in (
        ("build_intlist", lambda data: data),
        ("build_tensorlist", lambda data: data),
        ("build_doublelist", lambda data: data),
        ("build_boollist", lambda data: data),
        ("restore_type_tag", lambda value, type_: value),
    )
}


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip file with a program's constants beside its data."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as opened:
        return any(name.endswith("/constants.pkl") for name in opened.namelist())


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors of the archived module by name ("visual.conv1.weight").

    Raises:
      FileNotFoundError: no such file.
      RefusedGlobal: the pickle asks for something else than modules and tensors; nothing was
        executed.
      PickleError: a damaged file; names the file.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            return _read(opened)
    except PickleError as error:
        raise restricted_pickle.error_of(path, error) from error
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise PickleError(f"{path}: damaged file: {type(error).__name__}: {error}") from error


def _read(opened: zipfile.ZipFile) -> dict[str, np.ndarray]:
    mark = "constants.pkl"
    root = next(n.removesuffix(mark) for n in opened.namelist() if n.endswith(f"/{mark}"))
    allowed: Any = Allowed(torch_tensors.ALLOWED | _TYPED, ("__torch__.",))
    data = io.BytesIO(opened.read(f"{root}data.pkl"))
    tree = restricted_pickle.load(data, allowed, torch_tensors.reference)
    if not isinstance(tree, Record):
        raise PickleError(f"no module, but {type(tree).__name__}")

    def storage(key: str) -> np.ndarray:
        return np.frombuffer(bytearray(opened.read(f"{root}data/{key}")), np.uint8)

    build = torch_tensors.builder(storage, "little")
    return {name: restricted_pickle.resolve(node, build) for name, node in _tensors(tree, "")}


def _tensors(record: Record, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, placeholder) of all tensors of a module and its parts."""
    if not isinstance(record.state, dict):
        return  # a module without attributes
    for name, value in record.state.items():
        if isinstance(value, Record):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, torch_tensors._Tensor):
            yield f"{prefix}{name}", value
