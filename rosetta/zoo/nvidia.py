"""Reading the network pickles of NVIDIA's and StyleGAN-XL's releases without executing them.

Those files are plain pickles of module objects that carry their own source code, which the official
loader executes. Here modules are inert records: only their state is looked at, the tensors of one
network are returned by their names, and the source is never touched. Anything outside the packages
that such files mention is refused.
"""

import io
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from common import restricted_pickle, torch_reader, torch_tensors
from common.restricted_pickle import Map, Marker, PickleError
from rosetta.zoo.records import Allowed, Record

__all__ = ["official_to_rosinality", "read_generator"]

# Packages whose classes and functions become inert records.
_INERT = (
    "torch.nn.", "torch_utils.", "training.", "timm.", "pg_modules.", "feature_networks.",
    "torchvision.", "dnnlib.", "legacy.", "metrics.",
)  # fmt: skip


def _persistent(meta: Any) -> Record:
    """A module that carries its source: what the official loader makes by executing it."""
    record = Record()
    if not isinstance(meta, dict) or "state" not in meta:
        raise PickleError("a persistent object without state")
    record.state = meta["state"]
    return record


def _allowed(load_storage: Any) -> Allowed:
    """Tensors and containers as in `common.torch_tensors`, and records of the releases' classes."""
    known: dict[str, Any] = {"dnnlib.util.EasyDict": Map}
    for name, function in (
        ("torch_utils.persistence._reconstruct_persistent_obj", _persistent),
        ("torch.storage._load_from_bytes", load_storage),
    ):
        known[name] = Marker(name, function)
    return Allowed(torch_tensors.ALLOWED | known, _INERT)


def read_generator(path: str | os.PathLike[str], key: str = "G_ema") -> dict[str, np.ndarray]:
    """Tensors of one network of a pickle, by their official names ("synthesis.b4.const").

    Raises:
      FileNotFoundError: no such file.
      RefusedGlobal: the file asks for something else; nothing was executed.
      PickleError: a damaged file, or one without this network; names the file.
    """
    storages: dict[str, np.ndarray] = {}

    def load_storage(data: Any) -> torch_tensors.Storage:
        if not isinstance(data, bytes):
            raise PickleError("a storage that is not bytes")
        array = np.asarray(torch_reader.read_bytes(data))
        name = str(len(storages))
        storages[name] = np.frombuffer(array.tobytes(), np.uint8)
        return torch_tensors.Storage(array.dtype, name, 0, array.size)

    def reference(pid: Any) -> Any:
        raise PickleError(f"a reference to something outside the pickle: {pid!r:.80}")

    allowed: Any = _allowed(load_storage)
    try:
        file = io.BytesIO(pathlib.Path(path).read_bytes())
        tree = restricted_pickle.load(file, allowed, reference)
        if not isinstance(tree, dict) or not isinstance(tree.get(key), Record):
            found = list(tree)[:8] if isinstance(tree, dict) else type(tree).__name__
            raise PickleError(f"no network {key!r}, but {found}")
        build = torch_tensors.builder(storages.__getitem__, "little")
        return {
            name: restricted_pickle.resolve(node, build) for name, node in _tensors(tree[key], "")
        }
    except PickleError as error:
        raise restricted_pickle.error_of(path, error) from error


def _tensors(record: Record, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, placeholder) of all parameters and buffers of a module and its parts."""
    if not isinstance(record.state, dict):
        raise PickleError(f"module {prefix or 'of the network'!r} without state")
    for kind in ("_parameters", "_buffers"):
        for name, node in record.state.get(kind, {}).items():
            if node is not None:
                yield f"{prefix}{name}", node
    for name, part in record.state.get("_modules", {}).items():
        if isinstance(part, Record):
            yield from _tensors(part, f"{prefix}{name}.")


def official_to_rosinality(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """StyleGAN2's official names as those of rosinality's port, and the mean style.

    Raises:
      KeyError: no mean style, so no StyleGAN2.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name == "mapping.w_avg" or name.endswith("resample_filter"):
            continue
        target, shaped = _translated(name, np.asarray(array))
        found[target] = shaped
    return found, np.asarray(tensors["mapping.w_avg"])


def _translated(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """One name and array; unknown names stay, so that the loader reports them."""
    if match := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", name):
        return f"style.{int(match[1]) + 1}.{match[2]}", array
    if name == "synthesis.b4.const":
        return "input.input", array[None]
    match = re.fullmatch(r"synthesis\.b(\d+)\.(conv0|conv1|torgb)\.(.+)", name)
    if match is None:
        return name, array
    level = int(match[1]).bit_length() - 3  # 0 for 4 cells, 1 for 8, ...
    part, rest = match[2], match[3]
    if part == "torgb":
        layer = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
    else:
        number = 2 * level - 2 + (part == "conv1")
        layer = "conv1" if level == 0 else f"convs.{number}"
        if rest == "noise_const":
            return f"noises.noise_{0 if level == 0 else number + 1}", array[None, None]
        if rest == "noise_strength":
            return f"{layer}.noise.weight", array.reshape(1)
    if rest == "weight":
        return f"{layer}.conv.weight", array[None]
    if rest.startswith("affine."):
        return f"{layer}.conv.modulation.{rest.removeprefix('affine.')}", array
    if rest == "bias":
        return (f"{layer}.bias" if part == "torgb" else f"{layer}.activate.bias"), array
    return name, array
