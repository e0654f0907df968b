"""Reading PyTorch checkpoints as NumPy arrays, without torch and without executing pickles.

Formats: the zip file of torch >= 1.6 (`data.pkl` and one member `data/<key>` for each storage), the
legacy stream of torch 0.1.10 to 1.5 (five pickles, then the storages), and a tar file with one of
these inside. The layouts are those of `torch/serialization.py`; storages hold little-endian values
unless the member `byteorder` says otherwise. Sparse, quantised and nested tensors, modules and
TorchScript are refused.
"""

import io
import mmap
import os
import struct
import tarfile
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from common import restricted_pickle
from common.restricted_pickle import PickleError, RefusedGlobal
from common.torch_tensors import ALLOWED, Storage, builder, reference

__all__ = ["PickleError", "RefusedGlobal", "read", "read_bytes"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read(path: str | os.PathLike[str], mmap: bool = False) -> Any:
    """Reads a PyTorch checkpoint.

    Args:
        path: `.pt`, `.pth`, `.bin`, `.ckpt` or `.tar` file; its first bytes tell the format.
        mmap: maps the storages of a zip file instead of reading them; the arrays are then
            read-only, and the checksums of the zip file are not compared.

    Returns:
        What was saved, with plain dicts, lists, tuples and sets as containers, and NumPy arrays for
        tensors, parameters, storages and NumPy arrays. `torch.Size` is a tuple, a dtype is a NumPy
        dtype, a device a string; bfloat16 and float8 arrays have the dtypes of ml_dtypes. Tensors
        that shared a storage share memory (not lazily conjugated or negated ones).

    Raises:
        FileNotFoundError: there is no such file.
        RefusedGlobal: the file asks for a Python object other than those; nothing was executed.
        PickleError: damaged or unknown file, or `mmap` of one that is not a zip of uncompressed
            members; the message names the file and the key.
    """
    with open(path, "rb") as file:
        return _checked(file, mmap, path)


def read_bytes(data: bytes, name: str = "bytes") -> Any:
    """Reads a checkpoint that is in memory, such as a tensor's own state inside another pickle.

    Args:
        data: what `read` would find in a file.
        name: what messages call it.

    Returns:
        As `read`.

    Raises:
        RefusedGlobal, PickleError: as `read`.
    """
    return _checked(io.BytesIO(data), False, name)


def _checked(file: IO[bytes], mapped: bool, name: str | os.PathLike[str]) -> Any:
    try:
        return _read(file, mapped)
    except PickleError as error:
        raise restricted_pickle.error_of(name, error) from error
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        # All that zipfile, tarfile and the decompressors raise for damaged or encrypted files.
        raise PickleError(f"{name}: damaged file: {type(error).__name__}: {error}") from error


def _read(file: IO[bytes], mapped: bool) -> Any:
    head = file.read(512)
    file.seek(0)
    if head[:4] == b"PK\x03\x04":
        return _read_zip(file, mapped)
    if head[257:262] == b"ustar" or head[:2] == b"\x1f\x8b":
        inner = _only_member(file)
        if mapped:
            raise PickleError("mmap needs a zip file, this is a tar file; unpack it")
        return _read(inner, mapped)
    if head[:1] != b"\x80":
        size = file.seek(0, io.SEEK_END)
        raise PickleError(f"not a PyTorch file: {size} bytes, beginning with {head[:8].hex()}")
    if mapped:
        raise PickleError("mmap needs a zip file, this is the legacy format; read it without mmap")
    return _read_legacy(io.BytesIO(file.read()))


def _only_member(file: IO[bytes]) -> io.BytesIO:
    with tarfile.open(fileobj=file, mode="r:*") as opened:
        names = [info.name for info in opened if info.isreg()]
        if {"storages", "tensors", "pickle"} <= set(names):
            raise PickleError("the tar format of torch before 0.1.10 is not supported")
        if len(names) != 1:
            raise PickleError(f"a tar file with {len(names)} files instead of one checkpoint")
        member = opened.extractfile(names[0])
        assert member is not None  # a regular file
        return io.BytesIO(member.read())


def _read_zip(file: IO[bytes], mapped: bool) -> Any:
    with zipfile.ZipFile(file) as opened:
        members = {info.filename: info for info in opened.infolist()}
        roots = [name[: -len("data.pkl")] for name in members if name.endswith("data.pkl")]
        if len(roots) != 1:
            raise PickleError(f"a zip file with {len(roots)} members data.pkl instead of one")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise RefusedGlobal("refused: a TorchScript archive, which is a program")
        order = opened.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
        if order not in (b"little", b"big"):
            raise PickleError(f"byte order {order!r} is neither little nor big")
        tree = restricted_pickle.load(
            io.BytesIO(opened.read(f"{root}data.pkl")), ALLOWED, reference
        )
        whole = _map(file) if mapped else None
        cache: dict[str, np.ndarray] = {}

        def storage(key: str) -> np.ndarray:
            if key not in cache:
                name = f"{root}data/{key}"
                if name not in members:
                    raise PickleError(f"storage {name!r} is not in the file")
                cache[key] = (
                    _read_member(opened, members[name])
                    if whole is None
                    else _map_member(file, whole, members[name])
                )
            return cache[key]

        return restricted_pickle.resolve(tree, builder(storage, order.decode()))


def _read_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    data = bytearray(opened.read(info))  # compares the CRC; a bytearray makes the array writable
    return np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)


def _map(file: IO[bytes]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _map_member(file: IO[bytes], whole: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        raise PickleError(f"mmap needs uncompressed members, {info.filename!r} is compressed")
    # The data begin after the member's own header, whose extra field (padding to multiples of 64
    # bytes) differs from the one in the central directory. PKZIP APPNOTE 4.3.7: 30 bytes, name,
    # extra field.
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise PickleError(f"no local header of {info.filename!r} at byte {info.header_offset}")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    data = whole[start : start + info.file_size]
    if data.size != info.file_size:
        raise PickleError(f"{info.filename!r} has {data.size} of {info.file_size} bytes")
    return data


def _read_legacy(file: io.BytesIO) -> Any:
    magic, protocol = restricted_pickle.load(file), restricted_pickle.load(file)
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise PickleError(f"not a PyTorch file: magic number {magic!r}, protocol {protocol!r}")
    restricted_pickle.load(
        file
    )  # about the system that wrote it; storages are little-endian always
    itemsizes: dict[str, int] = {}

    def noted(pid: Any) -> Storage:
        found = reference(pid)
        itemsizes.setdefault(found.key, found.dtype.itemsize)
        return found

    tree = restricted_pickle.load(file, ALLOWED, noted)
    keys = restricted_pickle.load(file)
    if not isinstance(keys, list) or set(keys) != set(itemsizes) or len(keys) != len(itemsizes):
        raise PickleError(f"the file lists storages {keys!r}, its tensors use {list(itemsizes)!r}")
    left = memoryview(file.getbuffer())[file.tell() :]
    storages: dict[str, np.ndarray] = {}
    for key in keys:  # each: number of elements as int64, then their bytes
        count = struct.unpack("<q", left[:8])[0] if len(left) >= 8 else -1
        size = count * itemsizes[key]
        if count < 0 or len(left) < 8 + size:
            raise PickleError(
                f"storage {key!r} of {size} bytes, but {max(len(left) - 8, 0)} are left"
            )
        storages[key] = np.frombuffer(left[8 : 8 + size], np.uint8).copy()
        left = left[8 + size :]
    return restricted_pickle.resolve(tree, builder(storages.__getitem__, "little"))
