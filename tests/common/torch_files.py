"""Torch files for the tests of the readers."""

import zipfile

import numpy as np
import pytest
import torch

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def save(path, value, legacy: bool = False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_equal(found: np.ndarray, tensor: torch.Tensor) -> None:
    """Compares type name, shape and bytes: no value may be converted."""
    assert type(found) is np.ndarray and found.dtype.name == str(tensor.dtype).removeprefix(
        "torch."
    )
    assert found.shape == tuple(tensor.shape)
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    expected = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert np.ascontiguousarray(found).tobytes() == expected


def rewrite(source, target, change=lambda name, data: data, **options) -> None:
    """Copies a zip file member by member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
