"""Tensors of Keras' HDF5 files by name; nothing in the file is executed.

Needs `h5py`. The layout is that of `model.save_weights("a.h5")` and `model.save("a.h5")` of Keras 1
and 2 (and of Keras 3 for the same suffix): a group for each layer, with the names of its tensors in
the attribute `weight_names`.
"""

import os
from typing import Any

import numpy as np

__all__ = ["KerasFileError", "read"]


class KerasFileError(ValueError):
    """A file is not one of Keras' HDF5 files, or damaged; the message names it."""


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns name -> array, for instance `conv1/conv/kernel`; the ending `:0` is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        KerasFileError: the file is damaged, has another layout, or a name occurs twice.
    """
    import h5py

    tensors: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
            if "layer_names" not in root.attrs:
                raise KerasFileError(f"{path}: no attribute layer_names: not Keras' .h5 layout")
            for layer in _texts(root.attrs["layer_names"]):
                group = root[layer]
                for name in _texts(group.attrs["weight_names"]):
                    plain = name.removesuffix(":0")
                    plain = plain if "/" in plain else f"{layer}/{plain}"
                    if plain in tensors:
                        raise KerasFileError(f"{path}: two tensors are called {plain}")
                    tensors[plain] = np.asarray(group[name])
    except FileNotFoundError:
        raise
    except (OSError, KeyError, RuntimeError) as error:  # all that h5py raises for damaged files
        raise KerasFileError(f"{path}: damaged file: {error}") from error
    return tensors


def _texts(values: Any) -> list[str]:
    return [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values]
