"""Rebuilding the tensors of PyTorch pickles as NumPy arrays: vocabulary, data types and strides.

`ALLOWED` extends the list of `common.restricted_pickle` by the names that torch's pickles use for
dense tensors. They yield placeholders; `builder` turns those into views of the storages that
`common.torch_reader` finds in the file. The functions are those of `torch/_utils.py`.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from common import restricted_pickle
from common.restricted_pickle import Marker, PickleError, check_sizes

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "Untyped": "uint8",
}


class Storage(NamedTuple):
    """A storage named by a persistent identifier; `start` and `length` in elements of `dtype`."""

    dtype: np.dtype
    key: str
    start: int
    length: int


class _Tensor(NamedTuple):
    """A strided view of a storage; offset, size and stride in elements of `dtype`."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: np.dtype
    metadata: Any


class _StorageType(Marker):
    """A storage class; carries the type of its elements."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: np.dtype) -> None:
        super().__init__(name)
        self.dtype = dtype


class _DtypeMarker(Marker):
    """`torch.float32` and the like, as a value or as an argument."""

    __slots__ = ()


def _rebuild_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> _Tensor:
    if not isinstance(storage, Storage):
        raise PickleError(f"a tensor on {type(storage).__name__} instead of a storage")
    return _Tensor(storage, offset, size, stride, storage.dtype, metadata)


def _rebuild_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> _Tensor:
    if not isinstance(dtype, _DtypeMarker):
        raise PickleError("a tensor without dtype")
    tensor = _rebuild_v2(storage, offset, size, stride, requires_grad, hooks, metadata)
    return tensor._replace(dtype=_dtype_of(dtype))


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    if not isinstance(function, Marker) or not function.name.startswith("torch._utils._rebuild"):
        raise PickleError(f"a tensor rebuilt by {function!r}")
    return function(*args)


def _dtype_of(marker: _DtypeMarker) -> np.dtype:
    name = marker.name.removeprefix("torch.")
    if name not in DTYPES:
        raise PickleError(f"{marker.name} has no NumPy counterpart")
    return DTYPES[name]


def _allowed() -> dict[str, Marker]:
    functions: dict[str, Callable[..., Any] | None] = {
        "torch._utils._rebuild_tensor": _rebuild_v2,
        "torch._utils._rebuild_tensor_v2": _rebuild_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_v3,
        "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: (
            data
        ),
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.nn.parameter.Parameter": None,
        "torch.Tensor": None,
        "torch.Size": tuple,
        "torch.device": lambda kind, index=None: kind if index is None else f"{kind}:{index}",
        "torch.serialization._get_layout": str,
    }
    table = restricted_pickle.ALLOWED | {n: Marker(n, f) for n, f in functions.items()}
    names = [*DTYPES, "complex32", "float4_e2m1fn_x2", "qint8", "quint8", "qint32"]
    table |= {f"torch.{name}": _DtypeMarker(f"torch.{name}") for name in names}
    for name, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            full = f"{module}.{name}Storage"
            table[full] = _StorageType(full, DTYPES[dtype])
    return table


ALLOWED = _allowed()


def reference(pid: Any) -> Storage:
    """Returns the storage of ("storage", type, key, location, count[, view]).

    The view of old legacy files is None or (view key, first element, number of elements).
    """
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise PickleError(f"a reference to something other than a storage: {pid!r:.80}")
    kind, key, _, count = pid[1:5]
    if not isinstance(kind, _StorageType) or not isinstance(key, str):
        raise PickleError(f"storage {key!r} of unknown type")
    start = 0
    if len(pid) == 6 and pid[5] is not None:
        _, start, count = pid[5]
    check_sizes((start, count), f"extent of storage {key!r}")
    return Storage(kind.dtype, key, start, count)


def builder(storage: Callable[[str], np.ndarray], byteorder: str) -> Callable[[Any], Any]:
    """Returns the function that builds tensors from `storage(key)`, uint8 `[bytes]`."""

    def build(node: Any) -> Any:
        if isinstance(node, _DtypeMarker):
            return _dtype_of(node)
        if isinstance(node, Storage):
            node = _Tensor(node, 0, (node.length,), (1,), node.dtype, None)
        if isinstance(node, _Tensor):
            return _view(node, storage(node.storage.key), byteorder)
        return NotImplemented

    return build


def _view(tensor: _Tensor, data: np.ndarray, byteorder: str) -> np.ndarray:
    size, stride = check_sizes(tensor.size, "size"), check_sizes(tensor.stride, "stride")
    if len(size) != len(stride) or type(tensor.offset) is not int or tensor.offset < 0:
        raise PickleError(f"size {size}, stride {stride} and offset {tensor.offset!r} do not fit")
    dtype, source = tensor.dtype, tensor.storage
    if math.prod(size) == 0:
        return np.empty(size, dtype)
    first = source.start * source.dtype.itemsize + tensor.offset * dtype.itemsize
    last = (
        first + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) * dtype.itemsize
    )
    if last + dtype.itemsize > data.size:
        raise PickleError(
            f"a tensor {dtype} {size} needs {last + dtype.itemsize} bytes of storage "
            f"{source.key!r}, which has {data.size}"
        )
    if byteorder != sys.byteorder:
        # Byte swapping copies, so that such tensors no longer share memory.
        part = data[first : last + dtype.itemsize]
        parts = 2 if dtype.kind == "c" else 1
        data = part.reshape(-1, dtype.itemsize // parts)[:, ::-1].reshape(-1)
        first = 0
    steps = [step * dtype.itemsize for step in stride]
    array = np.ndarray(size, dtype, data, first, steps)
    if not array.flags.aligned:  # a member that begins at an odd place
        array = array.copy()
    metadata = tensor.metadata or {}
    if set(metadata) - {"conj", "neg"}:
        raise PickleError(f"a tensor with unknown metadata {metadata!r}")
    if metadata.get("conj"):
        array = array.conj()
    if metadata.get("neg"):
        array = -array
    return array
