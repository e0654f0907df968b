"""Reading pickles of containers, numbers and NumPy arrays without ever executing what they ask for.

A pickle is a program: its GLOBAL opcodes name any Python callable and its REDUCE opcodes call it.
Here a name stands for nothing but the entry of an allow-list, each entry is an immutable marker or
a small function of this file, and every other name is refused. NumPy arrays (and torch tensors, see
`common.torch_reader`) come out of the pickle as placeholders and are built afterwards with checked
sizes, so that a damaged file gives an error that names the file and the key.
"""

import io
import os
import pathlib
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np


class PickleError(ValueError):
    """A file is damaged or holds something other than containers, numbers and arrays."""


class _AtKey(PickleError):
    """A PickleError whose message already names the key."""


class RefusedGlobal(PickleError):
    """A pickle asks for a Python object that is not on the allow-list."""


class Marker:
    """An allowed global: opaque, unchangeable from a pickle, callable only if given a function."""

    __slots__ = ("name", "_function")

    def __init__(self, name: str, function: Callable[..., Any] | None = None) -> None:
        self.name = name
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._function is None:
            raise PickleError(f"the pickle calls {self.name}, which is data here")
        return self._function(*args, **kwargs)

    def __setstate__(self, state: Any) -> NoReturn:
        # Without this method the BUILD opcode would set attributes of the marker.
        raise PickleError(f"the pickle tries to change {self.name}")


class Map(dict):
    """A dict, OrderedDict, defaultdict or Counter; attributes such as `_metadata` are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class Dtype:
    """`numpy.dtype(code)` with its byte order, of numbers and strings only."""

    __slots__ = ("value",)

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str):
            raise PickleError(f"NumPy dtype made from {type(code).__name__}")
        self.value = np.dtype(code)
        if self.value.kind not in "biufcSU" or self.value.fields or self.value.subdtype:
            raise PickleError(f"NumPy dtype {code!r} is not one of numbers or strings")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(field is not None for field in state[2:5]):
            raise PickleError(f"NumPy dtype {self.value} with unexpected state {state!r}")
        self.value = self.value.newbyteorder(order)


class Array:
    """An ndarray: its state (version, shape, dtype, Fortran order, bytes) arrives by BUILD."""

    __slots__ = ("state",)

    def __init__(self, *args: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def build(self) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise PickleError("a NumPy array without its values")
        _, shape, dtype, fortran, data = self.state
        return _build_array(shape, dtype, "F" if fortran else "C", data)


class Frombuffer(NamedTuple):
    """An ndarray of pickle protocol 5: `numeric._frombuffer(data, dtype, shape, order)`."""

    data: Any
    dtype: Any
    shape: Any
    order: Any

    def build(self) -> np.ndarray:
        return _build_array(self.shape, self.dtype, self.order, self.data)


class Scalar(NamedTuple):
    """A NumPy scalar."""

    dtype: Any
    data: Any

    def build(self) -> Any:
        return _build_array((), self.dtype, "C", self.data)[()]


def _build_array(shape: Any, dtype: Any, order: Any, data: Any) -> np.ndarray:
    if isinstance(data, str):  # bytes of a Python 2 pickle
        data = data.encode("latin1")
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray):
        raise PickleError("a NumPy array of Python objects")
    sizes = check_sizes(shape, "shape")
    count = int(np.prod(sizes, dtype=object)) if sizes else 1
    if count and not dtype.value.itemsize:  # NumPy would make room for strings of length 1
        raise PickleError(f"a NumPy array {sizes} of empty strings")
    if count * dtype.value.itemsize != len(data):
        raise PickleError(
            f"a NumPy array {dtype.value} {sizes} needs {count * dtype.value.itemsize} "
            f"bytes, the file has {len(data)}"
        )
    flat = np.frombuffer(bytearray(data), dtype.value) if data else np.empty(count, dtype.value)
    native = flat.astype(dtype.value.newbyteorder("="), copy=False)
    return native.reshape(sizes, order="F" if order == "F" else "C")


def check_sizes(sizes: Any, what: str) -> tuple[int, ...]:
    """Returns a tuple of non-negative ints, or raises a PickleError about `what` it is."""
    if not isinstance(sizes, tuple | list) or any(type(n) is not int or n < 0 for n in sizes):
        raise PickleError(f"{what} {sizes!r} is not a tuple of non-negative integers")
    return tuple(sizes)


def _make_bytes(*args: Any) -> bytes:
    """`bytes()` and `bytearray(b"...")`; `bytes(10**12)` would allocate as much."""
    if args and not isinstance(args[0], bytes | list):
        raise PickleError(f"bytes made from {type(args[0]).__name__}")
    return bytes(*args[:1])


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`: how protocol 2 writes bytes."""
    if encoding not in ("latin1", "utf-8", "ascii") or not isinstance(text, str):
        raise PickleError(f"_codecs.encode with encoding {encoding!r}")
    return text.encode(encoding)


def _named(table: Mapping[str, Callable[..., Any] | None]) -> dict[str, Marker]:
    return {name: Marker(name, function) for name, function in table.items()}


_NUMPY_CORE = {
    f"{core}.{name}": function
    for core in ("numpy.core", "numpy._core")
    for name, function in (
        ("multiarray._reconstruct", Array),
        ("multiarray.scalar", Scalar),
        ("numeric._frombuffer", Frombuffer),
    )
}

ALLOWED: dict[str, Marker] = _named(
    {
        "collections.OrderedDict": Map,
        "collections.Counter": Map,
        "collections.defaultdict": lambda factory=None: Map(),
        "builtins.dict": Map,
        "builtins.list": list,
        "builtins.tuple": tuple,
        "builtins.set": set,
        "builtins.frozenset": frozenset,
        "builtins.complex": complex,
        "builtins.bytes": _make_bytes,
        "builtins.bytearray": _make_bytes,
        "builtins.int": None,
        "builtins.float": None,
        "_codecs.encode": _encode,
        "numpy.ndarray": None,
        "numpy.dtype": Dtype,
        **_NUMPY_CORE,
    }
)


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the allow-list only."""

    def __init__(
        self,
        file: IO[bytes],
        allowed: Mapping[str, Marker],
        persistent: Callable[[Any], Any],
        encoding: str,
    ) -> None:
        super().__init__(file, fix_imports=False, encoding=encoding)
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Marker:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's name
        if full not in self._allowed:
            raise RefusedGlobal(
                f"refused: the pickle asks for {full!r}, which is not on the list of "
                f"tensors, arrays and containers; nothing was executed"
            )
        return self._allowed[full]

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent(pid)


def _no_persistent(pid: Any) -> NoReturn:
    raise PickleError(f"a reference to something outside the pickle: {pid!r}")


def load(
    file: io.BytesIO,
    allowed: Mapping[str, Marker] = ALLOWED,
    persistent: Callable[[Any], Any] = _no_persistent,
    encoding: str = "utf-8",
) -> Any:
    """Reads one pickle from the position of `file`, which is left behind its end.

    Args:
        file: bytes in memory (sizes claimed by a damaged pickle are then bounded).
        allowed: "module.name" -> marker.
        persistent: function of persistent identifiers.
        encoding: of 8-bit strings written by Python 2.

    Returns:
        Containers with placeholders, for `resolve`.

    Raises:
        RefusedGlobal: the pickle asks for anything that is not allowed.
        PickleError: the pickle is damaged or makes no sense.
    """
    start = file.tell()
    try:
        # First without any effect: is it whole, and does it use opcodes that could only be malice?
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                # The unpickler would allocate a table up to the index.
                if not isinstance(argument, int) or argument > count:
                    raise PickleError(f"memo index {argument} in opcode {count}")
            if opcode.name.startswith("EXT"):
                raise RefusedGlobal(f"refused: the pickle uses extension code {argument}")
        file.seek(start)
        return _Unpickler(file, allowed, persistent, encoding).load()
    except PickleError:
        raise
    except Exception as error:  # a damaged pickle may raise anything inside the unpickler
        raise PickleError(
            f"damaged pickle at byte {start}: {type(error).__name__}: {error}"
        ) from error


def resolve(tree: Any, build: Callable[[Any], Any] | None = None) -> Any:
    """Replaces the placeholders in what `load` returned by plain containers, arrays and scalars.

    Args:
        tree: result of `load`. Objects that occur twice stay one object.
        build: builds the placeholders this file does not know; returns NotImplemented for others.

    Raises:
        PickleError: a placeholder cannot be built; the message names its key, as in
        `state/conv/weight`.
    """
    done: dict[int, Any] = {}

    def walk(node: Any, path: str) -> Any:
        if node is None or isinstance(node, bool | int | float | complex | str | bytes | bytearray):
            return node
        if id(node) not in done:
            try:
                done[id(node)] = new(node, path)
            except _AtKey:
                raise
            except (PickleError, TypeError, ValueError, RecursionError) as error:
                raise _AtKey(f"key {path!r}: {error}") from error
        return done[id(node)]

    def new(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            mapping = done[id(node)] = {}
            for key, value in node.items():
                mapping[walk(key, path)] = walk(value, f"{path}/{key}".lstrip("/"))
            return mapping
        if isinstance(node, list):
            items = done[id(node)] = []
            items.extend(walk(value, f"{path}[{index}]") for index, value in enumerate(node))
            return items
        if isinstance(node, Array | Frombuffer | Scalar):
            return node.build()
        if isinstance(node, Dtype):
            return node.value
        if build is not None and (built := build(node)) is not NotImplemented:
            return built
        if type(node) is tuple:
            return tuple(walk(value, f"{path}[{index}]") for index, value in enumerate(node))
        if isinstance(node, set | frozenset):
            return type(node)(walk(value, path) for value in node)
        name = node.name if isinstance(node, Marker) else type(node).__name__
        raise PickleError(f"{name} is not a tensor, array, number or container")

    return walk(tree, "")


def error_of(path: str | os.PathLike[str], error: PickleError) -> PickleError:
    """Returns the error with the file's name before its message."""
    kind = RefusedGlobal if isinstance(error, RefusedGlobal) else PickleError
    return kind(f"{path}: {error}")


def read(path: str | os.PathLike[str], encoding: str = "utf-8") -> Any:
    """Reads a pickle file of nested containers, numbers and NumPy arrays.

    Args:
        path: the file.
        encoding: of 8-bit strings written by Python 2; "latin1" for NumPy arrays of such files.

    Returns:
        Plain dicts, lists, tuples, sets, numbers, strings and `np.ndarray`s.

    Raises:
        RefusedGlobal: the pickle asks for another Python object; nothing was executed.
        PickleError: the file is damaged; names file and key.
    """
    file = io.BytesIO(pathlib.Path(path).read_bytes())
    try:
        return resolve(load(file, encoding=encoding))
    except PickleError as error:
        raise error_of(path, error) from error
