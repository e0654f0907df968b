"""Tables of pickled pandas DataFrames, without pandas and without executing the pickles.

Read are the files of `DataFrame.to_pickle` (without compression) and of `torch.save` (a zip file
around the pickle), by pandas 1.3 to 3. A frame is pickled as a manager of blocks, arrays `[columns,
rows]` of one type with the places of their columns, and of two indices; columns of other kinds are
blocks of their own. They may hold numbers and booleans (also those with a mask), strings (not those
of Arrow), categories that are numbers or strings, and Python objects that are numbers, strings or
absent. The names the pickle asks for stand for small classes of this file (see
`common.restricted_pickle`); everything else, such as dates and several levels of an index, is
refused with its name.
"""

import dataclasses
import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from common import restricted_pickle
from common.restricted_pickle import Array, Dtype, Frombuffer, Marker, PickleError, RefusedGlobal

__all__ = ["Frame", "PickleError", "RefusedGlobal", "read"]

# Labels that a range may have in any file; beyond, there must be a byte of the pickle for each.
_RANGE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Frame:
    """A table.

    Attributes:
      index: label of each row; None where absent.
      columns: name to its values ``[rows]``, in the frame's order: numbers and booleans as they
        are, those with a mask as floats with NaN where absent; strings and categories as an object
        array of their values, None where absent. Python objects that are all numbers or absent are
        floats with NaN, others an object array with None.
    """

    index: tuple[Any, ...]
    columns: dict[str, np.ndarray]


class _ObjectDtype:
    """`numpy.dtype("O")`, which `restricted_pickle` refuses elsewhere."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _dtype(code: str, align: bool = False, copy: bool = False) -> Dtype | _ObjectDtype:
    return _ObjectDtype() if code in ("O", "O4", "O8") else Dtype(code, align, copy)


class _Array(Array):
    """As `Array`; one of objects is built from its list of numbers and strings."""

    __slots__ = ()

    def build(self) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return super().build()
        _, shape, dtype, _, data = self.state
        if not isinstance(dtype, _ObjectDtype):
            return super().build()
        sizes = restricted_pickle.check_sizes(shape, "shape")
        if not isinstance(data, list) or len(data) != math.prod(sizes):
            raise PickleError(f"an array of objects {sizes} without its values")
        array = np.empty(len(data), object)
        array[:] = [_object(item) for item in data]
        return array.reshape(sizes)  # NumPy writes the list in C order, also of a Fortran array


class _Shell:
    """What stands for a DataFrame, a column or its dtype: keeps the state it is given."""

    __slots__ = ("state",)

    def __new__(cls, *args: Any) -> Self:
        shell = super().__new__(cls)
        shell.state = None
        return shell

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The NEWOBJ opcode needs a class, not a marker that can be called: classes of their own, so that
# nothing is shared between them.
class _DataFrame(_Shell):
    __slots__ = ()


class _CategoricalDtype(_Shell):
    __slots__ = ()


class _StringDtype(_Shell):
    __slots__ = ()


class _Masked(_Shell):
    """Numbers or booleans with a mask of those that are absent."""

    __slots__ = ()


class _Backed(_Shell):
    """Strings, or codes of categories, with their dtype."""

    __slots__ = ()


class _Block(NamedTuple):
    values: Any
    placement: Any
    dimensions: Any


class _Manager(NamedTuple):
    blocks: Any
    axes: Any


class _Index(NamedTuple):
    kind: Any
    fields: Any


_NA = Marker("pandas.NA")
_INDEX_CLASSES = ("base.Index", "range.RangeIndex", "numeric.Int64Index", "numeric.Float64Index")
_KINDS = {
    "Integer": [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)],
    "Floating": ["Float32", "Float64"],
    "Boolean": ["Boolean"],
}
_ALLOWED: dict[str, Any] = {
    **restricted_pickle.ALLOWED,
    "pandas.core.frame.DataFrame": _DataFrame,
    "pandas.DataFrame": _DataFrame,
    "pandas.core.dtypes.dtypes.CategoricalDtype": _CategoricalDtype,
    "pandas.CategoricalDtype": _CategoricalDtype,
    **{name: _Masked for kind in _KINDS
       for name in (f"pandas.core.arrays.{kind.lower()}.{kind}Array", f"pandas.arrays.{kind}Array")
       },
    # Their dtypes, which say nothing that the arrays do not.
    **{name: _Shell for kind, dtypes in _KINDS.items() for dtype in dtypes
       for name in (f"pandas.core.arrays.{kind.lower()}.{dtype}Dtype", f"pandas.{dtype}Dtype")},
    "pandas.core.internals.managers.BlockManager": Marker("BlockManager", _Manager),
    "pandas._libs.internals._unpickle_block": Marker("_unpickle_block", _Block),
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": Marker("NDArrayBacked", _Backed),
    "pandas.core.arrays.categorical.Categorical": Marker("Categorical"),
    "pandas.Categorical": Marker("Categorical"),
    **{name: Marker("StringArray")
       for name in ("pandas.core.arrays.string_.StringArray", "pandas.arrays.StringArray")},
    **{name: _StringDtype
       for name in ("pandas.core.arrays.string_.StringDtype", "pandas.StringDtype")},
    **{name: _NA for name in ("pandas.NA", "pandas._libs.missing.NA")},
    "pandas.core.indexes.base._new_Index": Marker("_new_Index", _Index),
    **{f"pandas.core.indexes.{name}": Marker(name) for name in _INDEX_CLASSES},
    "pandas.Index": Marker("Index"),
    "pandas.RangeIndex": Marker("RangeIndex"),
    "builtins.slice": Marker("builtins.slice", slice),
    "numpy.dtype": Marker("numpy.dtype", _dtype),
    **{f"numpy.{core}.multiarray._reconstruct": Marker("_reconstruct", _Array)
       for core in ("core", "_core")},
}  # fmt: skip


def read(path: str | os.PathLike[str]) -> Frame:
    """Reads a DataFrame saved by `DataFrame.to_pickle` (without compression) or `torch.save`.

    Raises:
      FileNotFoundError: there is no such file.
      RefusedGlobal: the pickle asks for another Python object; nothing was executed.
      PickleError: the file is damaged or is not such a table; names the file.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        pickled = _pickle_of(data)
        tree = restricted_pickle.load(io.BytesIO(pickled), _ALLOWED)
        return _frame(tree, max(len(pickled), _RANGE))
    except PickleError as error:
        raise restricted_pickle.error_of(path, error) from error
    except (zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError) as error:
        # All that zipfile raises for damaged or encrypted files, but for ValueErrors.
        raise PickleError(f"{path}: damaged file: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Parts of other types than pandas writes.
        raise PickleError(f"{path}: not a pickled DataFrame: {error}") from error


def _pickle_of(data: bytes) -> bytes:
    if data[:4] != b"PK\x03\x04":
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        members = [info for info in opened.infolist() if info.filename.endswith("data.pkl")]
        if len(members) != 1:
            raise PickleError(f"a zip file with {len(members)} members data.pkl instead of one")
        if members[0].compress_type != zipfile.ZIP_STORED:
            raise PickleError(f"{members[0].filename!r} is compressed, which torch never does")
        return opened.read(members[0])


def _frame(tree: Any, most: int) -> Frame:
    """The table; ``most`` labels at most are made of a range."""
    if not isinstance(tree, _DataFrame):
        raise PickleError(f"a pickled {type(tree).__name__.strip('_')} instead of a DataFrame")
    manager = tree.state.get("_mgr") if isinstance(tree.state, dict) else None
    if not isinstance(manager, _Manager) or len(manager.axes) != 2:
        raise PickleError("a DataFrame without a manager of two axes")
    names, index = (_labels(axis, most) for axis in manager.axes)
    columns: dict[int, np.ndarray] = {}
    for block in manager.blocks:
        if not isinstance(block, _Block):
            raise PickleError(f"a block that is {type(block).__name__.strip('_')}")
        values = _values(block.values, most)
        table = values[None] if values.ndim == 1 else values
        places = _places(block.placement, len(names))
        if table.shape != (len(places), len(index)):
            raise PickleError(
                f"a block of shape {table.shape} for {len(places)} columns of {len(index)} rows"
            )
        for place, column in zip(places, table, strict=True):
            if place in columns:
                raise PickleError(f"column {names[place]!r} is in two blocks")
            columns[place] = column if isinstance(block.values, _Backed) else _numbers(column)
    named = {str(name): columns[place] for place, name in enumerate(names) if place in columns}
    if len(named) != len(names):
        raise PickleError(f"{len(names)} names for {len(named)} columns of different names")
    return Frame(index, named)


def _labels(axis: Any, most: int) -> tuple[Any, ...]:
    if not isinstance(axis, _Index) or not isinstance(axis.fields, dict):
        raise PickleError(f"an axis that is {type(axis).__name__.strip('_')}, not an index")
    if "data" in axis.fields:
        values = _plain(axis.fields["data"])
        if values.ndim != 1:
            raise PickleError(f"an index of shape {values.shape}")
        return tuple(values.tolist())
    start, stop, step = (axis.fields.get(key) for key in ("start", "stop", "step"))
    if type(start) is not int or type(stop) is not int or type(step) is not int or not step:
        raise PickleError("a range as index without its bounds and step")
    count = -((start - stop) // step)
    if count > most:
        raise PickleError(f"a range of {count} labels as index, more than the pickle has bytes")
    return tuple(range(start, stop, step))


def _values(values: Any, most: int) -> np.ndarray:
    """Values of one block."""
    if isinstance(values, _Backed) and isinstance(values.state[0], _CategoricalDtype):
        dtype, codes = values.state[0], values.state[1].build()
        # The last stands for -1, absent.
        categories = np.array([*_labels(dtype.state["categories"], most), None], object)
        if codes.ndim != 1 or codes.dtype.kind != "i":
            raise PickleError(f"codes of categories that are {codes.dtype} {codes.shape}")
        if len(codes) and not -1 <= codes.min() <= codes.max() < len(categories) - 1:
            raise PickleError(f"codes from {codes.min()} to {codes.max()} for "
                              f"{len(categories) - 1} categories")  # fmt: skip
        return categories[codes]
    return _plain(values)


def _plain(values: Any) -> np.ndarray:
    """Values of a block or an index that are no categories."""
    if isinstance(values, Array | Frombuffer):
        return values.build()
    if isinstance(values, _Masked):
        numbers, absent = values.state["_data"].build(), values.state["_mask"].build()
        if numbers.dtype.kind not in "biuf" or absent.dtype != bool:
            raise PickleError(f"{numbers.dtype} values with a mask of {absent.dtype}")
        if numbers.shape != absent.shape:
            raise PickleError(f"values {numbers.shape} with a mask {absent.shape}")
        return np.where(absent, np.nan, numbers.astype(np.float64))
    if isinstance(values, _Backed) and isinstance(values.state[0], _StringDtype):
        strings = values.state[1].build()
        if not all(item is None or isinstance(item, str) for item in strings.ravel()):
            raise PickleError("an array of strings that holds something else")
        return strings
    raise PickleError(f"values that are {type(values).__name__.strip('_')}, not an array")


def _object(item: Any) -> Any:
    """A Python object in an array; None if it is absent."""
    if isinstance(item, restricted_pickle.Scalar):
        item = item.build()
    if item is None or item is _NA or (isinstance(item, float | np.floating) and item != item):
        return None
    if isinstance(item, str | int | float | np.integer | np.floating | np.bool_):
        return item
    raise PickleError(f"an array of objects other than numbers and strings: "
                      f"{type(item).__name__.strip('_')}")  # fmt: skip


def _places(placement: Any, count: int) -> Sequence[int]:
    if isinstance(placement, slice):
        return range(count)[placement]
    places = placement.build()
    if places.ndim != 1 or places.dtype.kind != "i" or ((places < 0) | (places >= count)).any():
        raise PickleError(f"{places.dtype} places {places.shape} of {count} columns")
    return [int(place) for place in places]


def _numbers(column: np.ndarray) -> np.ndarray:
    """A column of objects that are all numbers or absent as floats."""
    if column.dtype != object or any(isinstance(item, str) for item in column):
        return column
    return np.array([np.nan if item is None else item for item in column], np.float64)
