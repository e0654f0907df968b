"""The readers of torch files and NumPy pickles against malice and damage."""

import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from common import restricted_pickle
from common.torch_reader import PickleError, RefusedGlobal, read
from tests.common.torch_files import FORMATS, rewrite, save


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@FORMATS
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, legacy):
    marker = tmp_path / "ran"
    path = save(
        tmp_path / "a.pt", {"x": torch.ones(2), "evil": Call(open, str(marker), "w")}, legacy
    )
    with pytest.raises(RefusedGlobal, match=r"a.pt: refused: .*'_?io.open'"):
        read(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)["evil"].close()  # the same file does run in torch
    assert marker.exists()


@pytest.mark.parametrize(
    "text, name",
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x02c__builtin__\neval\n.", "builtins.eval"),
        (b"\x80\x04\x8c\x06common\x8c\x08registry\x93.", "common.registry"),
        (b"\x80\x04\x8c\x11restricted_pickle\x8c\x09io.FileIO\x93.", "io.FileIO"),
        (b"\x80\x02\x82\x01.", "extension code 1"),
    ],
)
def test_globals_and_extensions_are_refused(tmp_path, text, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(text)
    with pytest.raises(RefusedGlobal, match=name):
        restricted_pickle.read(path)


@pytest.mark.parametrize(
    "text, reason",
    [
        # BUILD with a dict or with slots on an allowed global, and on an instance.
        (
            b"ccollections\nOrderedDict\n}S'_function'\nNsb.",
            "tries to change collections.OrderedDict",
        ),
        (
            b"ccollections\nOrderedDict\nN}S'_function'\nNs\x86b.",
            "tries to change collections.OrderedDict",
        ),
        (b"]}S'append'\nNsb.", "damaged pickle"),
        (b"cnumpy\nndarray\n(tR.", "calls numpy.ndarray, which is data here"),
        (b"c_codecs\nencode\n(S'x'\nS'hex'\ntR.", "_codecs.encode with encoding 'hex'"),
        (b"c__builtin__\nbytes\n(I9999999999\ntR.", "bytes made from int"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", "dtype 'O' is not one of numbers or strings"),
        (b"cnumpy\ndtype\n(S'f4,f4'\ntR.", "is not one of numbers or strings"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(L1000000000000000L\ntcnumpy\ndtype\n"
            b"(S'S0'\ntRI00\nS''\ntb.",
            "of empty strings",
        ),
        (b"Nr\xff\xff\xff\x7f.", "memo index 2147483647 in opcode 1"),
        (b"N\x8e\xff\xff\xff\xff\xff\xff\x00\x00x.", "damaged pickle"),
        (b"\x80\x02K\x01Q.", "outside the pickle: 1"),
        (b"}ccollections\nOrderedDict\nS'k'\n\x86s.", "damaged pickle"),
        (
            b"}S'k'\nccollections\nOrderedDict\ns.",
            "key 'k': collections.OrderedDict is not a tensor",
        ),
        (b"", "damaged pickle"),
    ],
)
def test_other_tricks_are_errors(tmp_path, text, reason):
    path = tmp_path / "a.pkl"
    path.write_bytes(text)
    with pytest.raises(PickleError, match=reason) as caught:
        restricted_pickle.read(path)
    assert str(path) in str(caught.value)


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"deep": [np.array([{}], object)]}))
    with pytest.raises(PickleError, match="dtype 'O8' is not one of numbers"):
        restricted_pickle.read(path)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_pickles_of_every_protocol(tmp_path, protocol):
    value = {
        "net": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.arange(3, dtype=np.int8)[::-1]}
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    found = restricted_pickle.read(path)
    for name, array in value["net"].items():
        np.testing.assert_array_equal(found["net"][name], array)
        assert found["net"][name].flags.writeable and found["net"][name].dtype == array.dtype


def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path):
    for value, name in (
        (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
    ):
        with pytest.raises(RefusedGlobal, match=name):
            read(save(tmp_path / "a.pt", {"x": value}))
    with pytest.raises(PickleError, match="key 'x': torch.complex32 has no NumPy counterpart"):
        read(save(tmp_path / "a.pt", {"x": torch.complex32}))


# Damage.


@FORMATS
def test_truncated_files_are_errors(tmp_path, legacy):
    path = save(tmp_path / "a.pt", {"x": torch.arange(100.0), "y": torch.ones(3, 4)}, legacy)
    data = path.read_bytes()
    for length in [*range(0, 40, 3), *range(40, len(data) - 1, 61), len(data) - 1]:
        path.write_bytes(data[:length])
        for mmap in (False, True):
            with pytest.raises(PickleError, match="a.pt: "):
                read(path, mmap=mmap)


@FORMATS
def test_flipped_bits_are_errors_or_other_values_but_never_crash(tmp_path, legacy):
    path = save(tmp_path / "a.pt", {"x": torch.arange(100.0), "n": np.arange(9)}, legacy)
    data = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 1, 8))):
            damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            read(path)
        except PickleError as error:
            refused += str(path) in str(error)
    assert refused > 50


def test_a_zip_file_with_changed_values_fails_its_checksum(tmp_path):
    path = save(tmp_path / "a.pt", {"x": torch.arange(100.0)})
    data = path.read_bytes()
    start = data.index(np.arange(100, dtype=np.float32).tobytes())
    path.write_bytes(data[: start + 5] + b"\xff" + data[start + 6 :])
    with pytest.raises(PickleError, match="a.pt: .*CRC"):
        read(path)


def test_storages_that_lack_or_are_short_are_named_with_their_key(tmp_path):
    path = save(tmp_path / "a.pt", {"net": [{"weight": torch.arange(100.0)}]})
    rewrite(path, tmp_path / "b.pt", lambda name, data: None if "/data/" in name else data)
    with pytest.raises(
        PickleError, match=r"b.pt: key 'net\[0\]/weight': storage 'a/data/0' is not"
    ):
        read(tmp_path / "b.pt")
    rewrite(path, tmp_path / "c.pt", lambda name, data: data[:396] if "/data/" in name else data)
    for mmap in (False, True):
        with pytest.raises(
            PickleError, match=r"key 'net\[0\]/weight': .* needs 400 bytes .* has 396"
        ):
            read(tmp_path / "c.pt", mmap=mmap)


def test_other_files_are_errors(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(PickleError, match="a.pt: not a PyTorch file: 22 bytes"):
        read(path)
    path.write_bytes(pickle.dumps({"x": 1}, 2))
    with pytest.raises(PickleError, match="a.pt: "):
        read(path)
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("readme.txt", "no checkpoint")
    with pytest.raises(PickleError, match="0 members data.pkl"):
        read(path)
    with zipfile.ZipFile(path, "w") as opened:  # the members that mark a TorchScript archive
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            opened.writestr(f"model/{name}", b"\x80\x02N.")
    with pytest.raises(RefusedGlobal, match="TorchScript"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.pt")

