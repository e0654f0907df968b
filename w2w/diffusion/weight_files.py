"""Tensors of one component of a diffusers folder: whole, sharded, half-precision or torch files."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from common import storage, torch_reader

# Names of weights, in the order of preference: safetensors before torch, float32 before float16.
_SUFFIXES = (
    "{0}.safetensors",
    "{0}.safetensors.index.json",
    "{0}.fp16.safetensors",
    "{0}.safetensors.index.fp16.json",
    "{0}.fp16.safetensors.index.json",
)
_TORCH_SUFFIXES = (
    "{0}.bin",
    "{0}.bin.index.json",
    "{0}.fp16.bin",
    "{0}.bin.index.fp16.json",
)
_STEMS = {
    "diffusers": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "transformers": ("model", "pytorch_model"),
}


def choose(names: Sequence[str], library: str, where: str) -> str:
    """The file of weights to read among the file names of a component's folder.

    Args:
      names: of the files in the folder.
      library: "diffusers" or "transformers", which differ in the names.
      where: the folder, for the message.

    Raises:
      FileNotFoundError: none of the known names is there.
    """
    stem, torch_stem = _STEMS[library]
    wanted = [suffix.format(stem) for suffix in _SUFFIXES]
    wanted += [suffix.format(torch_stem) for suffix in _TORCH_SUFFIXES]
    for name in wanted:
        if name in names:
            return name
    raise FileNotFoundError(
        f"{where}: no weights; expected one of {', '.join(wanted)}, found {sorted(names)}"
    )


def read(folder: Path, library: str) -> "Tensors":
    """The tensors of the component in a folder.

    Raises:
      FileNotFoundError: there are no weights, or a shard is missing.
      ValueError: a damaged file, or an index that does not describe its shards.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    chosen = folder / choose(names, library, str(folder))
    if chosen.suffix != ".json":
        return Tensors(_open(chosen))
    files = shards(storage.load_json(chosen), str(chosen))
    readers: dict[str, Reader] = {}
    for file in sorted(set(files.values())):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{chosen} names the shard {file}, which is not there")
        found = _open(folder / file)
        stray = {name for name in found if files.get(name) != file}
        if stray:
            raise ValueError(f"{folder / file} holds tensors that {chosen.name} does not place "
                             f"there: {sorted(stray)}")
        readers.update(found)
    absent = sorted(files.keys() - readers.keys())
    if absent:
        raise ValueError(f"{chosen} lists tensors that are in no shard: {absent}")
    return Tensors(readers)


def shards(index: Any, where: str) -> dict[str, str]:
    """Tensor name to file name of a sharded checkpoint's index.

    Raises:
      ValueError: no such index, or a file outside the folder.
    """
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{where} has no weight_map")
    for file in set(files.values()):
        if not isinstance(file, str) or not re.fullmatch(r"\w[\w.\-]*", file):
            raise ValueError(f"{where} names {file!r}, which is not the name of a file beside it")
    return files


Reader = Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is asked for, so that few are in memory at once."""

    def __init__(self, readers: Mapping[str, Reader]):
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def renamed(self, rename: Callable[[str], str]) -> "Tensors":
        """The same tensors under other names."""
        return Tensors({rename(name): reader for name, reader in self._readers.items()})


def _open(path: Path) -> dict[str, Reader]:
    if path.suffix == ".bin":
        return _open_torch(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged safetensors file: {error}") from error

    def reader(name: str) -> Reader:
        def load() -> np.ndarray:
            # bfloat16 is known to NumPy through ml_dtypes, which jax has imported.
            with safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return load

    return {name: reader(name) for name in names}


def _open_torch(path: Path) -> dict[str, Reader]:
    tensors = torch_reader.read(path)
    arrays = list(tensors.values()) if isinstance(tensors, dict) else [None]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError(f"{path} is not a state dict of tensors")

    def reader(array: np.ndarray) -> Reader:
        return lambda: array

    return {name: reader(array) for name, array in tensors.items()}
