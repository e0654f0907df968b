"""The reader of torch files, against torch."""

import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from common import torch_reader, torch_tensors
from common.torch_reader import PickleError, read
from tests.common.torch_files import FORMATS, assert_equal, rewrite, save


def make_tensor(dtype: str) -> torch.Tensor:
    kind = getattr(torch, dtype)
    raw = torch.randint(
        0, 256, (3, 5, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return (raw % 2).bool() if dtype == "bool" else raw.view(kind)


@FORMATS
@pytest.mark.parametrize("dtype", sorted(torch_tensors.DTYPES))
def test_every_dtype(tmp_path, dtype, legacy):
    tensor = make_tensor(dtype)
    found = read(save(tmp_path / "a.pt", {"x": tensor, "part": tensor[1:, 2]}, legacy))
    assert_equal(found["x"], tensor)
    assert_equal(found["part"], tensor[1:, 2])


@FORMATS
def test_views_have_the_right_strides_and_share_memory(tmp_path, legacy):
    base = torch.arange(120.0).reshape(4, 5, 6)
    views = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "offset": base[1:, 2:4, 3],
        "steps": base[::2, ::3, 1::2],
        "expanded": base[0, 0, :1].expand(7, 1),
        "diagonal": base[0].as_strided((5,), (7,), 1),
        "scalar": base[3, 4, 5],
        "empty": base[:0],
        "other": torch.ones(2),
    }
    found = read(save(tmp_path / "a.pt", views, legacy))
    for name, view in views.items():
        assert_equal(found[name], view)
        if view.numel() > 1:
            expected = [
                step * 4 for n, step in zip(view.shape, view.stride(), strict=True) if n > 1
            ]
            kept = zip(found[name].shape, found[name].strides, strict=True)
            assert [step for n, step in kept if n > 1] == expected
    assert np.shares_memory(found["base"], found["diagonal"])
    assert not np.shares_memory(found["base"], found["other"])
    found["base"][0, 0, 1] = -1.0
    assert found["diagonal"][0] == -1.0


@FORMATS
def test_nested_containers(tmp_path, legacy):
    shared = [1, 2]
    cycle: list = [3]
    cycle.append(cycle)
    counted = defaultdict(list, {"a": [torch.ones(2)]})
    value = {
        "ordered": OrderedDict(b=1, a=torch.zeros(2, 1)),
        "counter": Counter("aab"),
        "default": counted,
        "tuple": (1, (None, True, 2.5, "text"), frozenset({1})),
        "set": {3, 4},
        7: "integer key",
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "layout": torch.strided,
        "shared": [shared, shared],
        "cycle": cycle,
        "large": 2**70,
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
    }
    found = read(save(tmp_path / "a.pt", value, legacy))
    assert list(found["ordered"]) == ["b", "a"] and type(found["ordered"]) is dict
    assert found["counter"] == {"a": 2, "b": 1}
    assert_equal(found["default"]["a"][0], torch.ones(2))
    for key in ("tuple", "set", 7, "bytes", "complex", "large"):
        assert found[key] == value[key] and type(found[key]) is type(value[key])
    assert found["size"] == (2, 3) and found["dtype"] == np.dtype("bfloat16")
    assert found["device"] == "cuda:1" and "strided" in found["layout"]
    assert found["shared"][0] is found["shared"][1] and found["cycle"][1] is found["cycle"]
    assert_equal(found["parameter"], value["parameter"])


@FORMATS
def test_numpy_arrays_and_scalars(tmp_path, legacy):
    value = {
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big": np.arange(5, dtype=">i4"),
        "half": np.ones((2, 0), np.float16),
        "bool": np.array([True, False]),
        "text": np.array(["ab", "c"]),
        "scalar": np.float32(1.5),
        "integer": np.int64(-3),
        "dtype": np.dtype(np.uint16),
        "zero": np.array(7),
    }
    found = read(save(tmp_path / "a.pt", value, legacy))
    for name, expected in value.items():
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found[name], expected)
            assert found[name].dtype == expected.dtype.newbyteorder("=")
        else:
            assert found[name] == expected and type(found[name]) is type(expected)


@FORMATS
def test_module_and_optimiser_states(tmp_path, legacy):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.5)
    model(torch.ones(2, 3, 5, 5)).sum().backward()
    optimiser.step()
    found = read(save(tmp_path / "a.pt", [model.state_dict(), optimiser.state_dict()], legacy))
    assert list(found[0]) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert_equal(found[0][name], tensor)
    assert found[1]["param_groups"][0]["lr"] == 0.5
    assert_equal(found[1]["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


def test_lazily_conjugated_and_negated_tensors(tmp_path):
    value = torch.randn(3, 4, dtype=torch.complex64)
    lazy = {"conj": value.conj(), "neg": value.conj().imag, "real": value.real}
    assert lazy["conj"].is_conj() and lazy["neg"].is_neg()
    for name, tensor in lazy.items():
        assert_equal(read(save(tmp_path / "a.pt", {name: tensor}))[name], tensor)


def test_tensors_with_attributes_and_bare_storages(tmp_path):
    parameter = torch.nn.Parameter(torch.arange(4.0))
    parameter.tag = "attribute"
    tensor = torch.ones(3)
    tensor.tag = [1]
    storage = torch.arange(5, dtype=torch.int16).untyped_storage()
    found = read(save(tmp_path / "a.pt", [parameter, tensor, storage]))
    assert_equal(found[0], parameter)
    assert_equal(found[1], tensor)
    np.testing.assert_array_equal(found[2].view(np.int16), np.arange(5))


def test_mmap_reads_the_same_and_does_not_copy(tmp_path):
    value = {name: make_tensor(name) for name in sorted(torch_tensors.DTYPES)}
    value["view"] = value["float32"][1:, ::2].permute(1, 0, 2)
    value["uint8"] = torch.arange(240, dtype=torch.uint8)  # bytes that occur once in the file
    path = save(tmp_path / "a.pt", value)
    found = read(path, mmap=True)
    for name, tensor in value.items():
        assert_equal(found[name], tensor)
        assert found[name].flags.aligned and not found[name].flags.writeable
    assert np.shares_memory(found["view"], found["float32"])
    # The array shows the file itself: a byte changed there changes here.
    before = found["uint8"].copy()
    data = bytearray(path.read_bytes())
    start = data.index(before.tobytes())
    assert start % 64 == 0
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes([before.flat[0] ^ 0xFF]))
    assert found["uint8"].flat[0] == before.flat[0] ^ 0xFF


def test_zip_members_without_padding_and_compressed_ones(tmp_path):
    value = {"a": torch.arange(7.0), "b": torch.arange(5, dtype=torch.float64)}
    path = save(tmp_path / "a.pt", value)
    rewrite(path, tmp_path / "unaligned.pt")
    rewrite(path, tmp_path / "deflated.pt", compression=zipfile.ZIP_DEFLATED)
    for options in ({}, {"mmap": True}):
        found = read(tmp_path / "unaligned.pt", **options)
        assert all(array.flags.aligned for array in found.values())
        assert_equal(found["a"], value["a"])
        assert_equal(found["b"], value["b"])
    assert_equal(read(tmp_path / "deflated.pt")["b"], value["b"])
    with pytest.raises(PickleError, match="deflated.pt: .*mmap needs uncompressed members"):
        read(tmp_path / "deflated.pt", mmap=True)


def test_big_endian_files(tmp_path):
    value = {
        "f": torch.randn(3, 4).t()[1:],
        "c": torch.randn(3, dtype=torch.complex64),
        "i": torch.arange(6, dtype=torch.int16)[1:],
        "b": torch.tensor([1, 2], dtype=torch.uint8),
    }
    path = save(tmp_path / "a.pt", value)
    widths = {
        bytes(t.untyped_storage()): w for t, w in zip(value.values(), (4, 4, 2, 1), strict=True)
    }

    def swap(name, data):
        if name.endswith("/byteorder"):
            return b"big"
        if "/data/" in name:
            return np.frombuffer(data, np.uint8).reshape(-1, widths[data])[:, ::-1].tobytes()
        return data

    rewrite(path, tmp_path / "big.pt", swap)
    found = read(tmp_path / "big.pt")
    for name, tensor in value.items():
        assert_equal(found[name], tensor)


@FORMATS
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_file_around_a_checkpoint(tmp_path, legacy, mode):
    save(tmp_path / "a.pt", {"x": torch.arange(3)}, legacy)
    with tarfile.open(tmp_path / "a.tar", mode) as opened:
        opened.add(tmp_path / "a.pt", "folder/a.pt")
    np.testing.assert_array_equal(read(tmp_path / "a.tar")["x"], np.arange(3))
    with tarfile.open(tmp_path / "b.tar", mode) as opened:
        for name in ("a.pt", "b.pt"):
            opened.add(tmp_path / "a.pt", name)
    with pytest.raises(PickleError, match="b.tar: a tar file with 2 files"):
        read(tmp_path / "b.tar")


# Malice.


@FORMATS
def test_bytes_in_memory(tmp_path, legacy):
    data = save(tmp_path / "a.pt", {"x": torch.arange(3)}, legacy).read_bytes()
    np.testing.assert_array_equal(torch_reader.read_bytes(data)["x"], [0, 1, 2])
    with pytest.raises(PickleError, match="^inner state: "):
        torch_reader.read_bytes(data[:-9], "inner state")


def test_torch_is_not_imported():
    program = "import sys, common.torch_reader; assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=torch_reader.__file__.rsplit("/", 2)[0]
    )
