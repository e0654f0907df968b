"""Tables of pandas pickles (protocol 5, pandas 1.5 to 3) without pandas and without executing them.

A `DataFrame` is pickled as a block manager: two-dimensional arrays of numbers with the columns they
hold, and columns of other kinds one by one. Read are numbers and booleans (also those with a mask),
strings (not those of Arrow), and categories that are numbers or strings. The names the pickle asks
for stand for small classes of this file (see `common.restricted_pickle`); everything else is
refused.
"""

import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from common import restricted_pickle
from common.restricted_pickle import Marker, PickleError


class _Objects(restricted_pickle.Dtype):
    """As `Dtype`, and the dtype of arrays of Python objects, which must be strings or None."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code in ("O", "O8"):
            self.value = np.dtype(object)
        else:
            super().__init__(code, align, copy)

    def __setstate__(self, state: Any) -> None:
        if self.value.kind != "O":
            super().__setstate__(state)


class _Array(restricted_pickle.Array):
    """As `Array`; one of objects is built from its list of strings, or None, NaN, NA (None)."""

    def build(self) -> np.ndarray:
        state = self.state
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], list):
            items = [None if item is _NA or item != item else item for item in state[4]]
            if not all(item is None or isinstance(item, str) for item in items):
                raise PickleError("an array of objects other than strings")
            return np.array(items, object).reshape(
                restricted_pickle.check_sizes(state[1], "shape"))
        return super().build()


class _Frame:
    """What stands for a DataFrame, a column or its dtype: keeps the state it is given."""

    __slots__ = ("state",)

    def __init__(self, *args: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Block(NamedTuple):
    values: Any
    placement: Any
    dimensions: int


class _Manager(NamedTuple):
    blocks: Any
    axes: Any


class _Index(NamedTuple):
    kind: Any
    fields: Any


class _Slice(NamedTuple):
    start: int
    stop: int
    step: int


# NEWOBJ needs a class, not a marker that can be called: classes of their own, so that nothing is
# shared between the two.
class _DataFrame(_Frame):
    __slots__ = ()


class _CategoricalDtype(_Frame):
    __slots__ = ()


class _String(_Frame):
    """Dtype of strings."""

    __slots__ = ()


class _Masked(_Frame):
    """Numbers or booleans with a mask of those that are absent."""

    __slots__ = ()


_NUMPY = {
    f"{core}.{name}": Marker(name, function)
    for core in ("numpy.core", "numpy._core")
    for name, function in (
        ("multiarray._reconstruct", _Array),
        ("numeric._frombuffer", restricted_pickle.Frombuffer),
    )
}
_NA = Marker("pandas.NA")
_KINDS = {
    "Integer": [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)],
    "Floating": ["Float32", "Float64"],
    "Boolean": ["Boolean"],
}
_ALLOWED: dict[str, Any] = {
    "pandas.core.frame.DataFrame": _DataFrame,
    "pandas.DataFrame": _DataFrame,
    "pandas.core.dtypes.dtypes.CategoricalDtype": _CategoricalDtype,
    "pandas.CategoricalDtype": _CategoricalDtype,
    **{name: _Masked for kind in _KINDS
       for name in (f"pandas.core.arrays.{kind.lower()}.{kind}Array", f"pandas.arrays.{kind}Array")
       },
    # Their dtypes, which say nothing that the arrays do not.
    **{name: _Frame for kind, dtypes in _KINDS.items() for dtype in dtypes
       for name in (f"pandas.core.arrays.{kind.lower()}.{dtype}Dtype", f"pandas.{dtype}Dtype")},
    "pandas.core.internals.managers.BlockManager": Marker("BlockManager", _Manager),
    "pandas._libs.internals._unpickle_block": Marker("_unpickle_block", _Block),
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": Marker("NDArrayBacked", _Frame),
    "pandas.core.arrays.categorical.Categorical": Marker("Categorical"),
    "pandas.Categorical": Marker("Categorical"),
    **{name: Marker("StringArray")
       for name in ("pandas.core.arrays.string_.StringArray", "pandas.arrays.StringArray")},
    **{name: _String
       for name in ("pandas.core.arrays.string_.StringDtype", "pandas.StringDtype")},
    **{name: _NA for name in ("pandas.NA", "pandas._libs.missing.NA")},
    "pandas.core.indexes.base._new_Index": Marker("_new_Index", _Index),
    "pandas.core.indexes.base.Index": Marker("Index"),
    "pandas.Index": Marker("Index"),
    "pandas.core.indexes.range.RangeIndex": Marker("RangeIndex"),
    "pandas.RangeIndex": Marker("RangeIndex"),
    "builtins.slice": Marker("slice", _Slice),
    "numpy.ndarray": Marker("numpy.ndarray"),
    "numpy.dtype": Marker("numpy.dtype", _Objects),
    **_NUMPY,
}


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a pickled DataFrame.

    Args:
      path: the file, as `DataFrame.to_pickle` writes it without compression.

    Returns:
      Column to its values ``[rows]``, in the frame's order: numbers and booleans as they are, those
      with a mask as floats with NaN where absent; strings and categories as an object array of
      their values, None where absent. The row index is left out.

    Raises:
      FileNotFoundError: there is no such file.
      RefusedGlobal: the pickle asks for another Python object; nothing was executed.
      PickleError: the file is damaged or is not such a table; names the file.
    """
    path = pathlib.Path(path)
    file = io.BytesIO(path.read_bytes())
    try:
        return _columns(restricted_pickle.load(file, _ALLOWED))
    except PickleError as error:
        raise restricted_pickle.error_of(path, error) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Parts of other types than pandas writes.
        raise PickleError(f"{path}: not a pickled DataFrame: {error}") from error


def _columns(frame: Any) -> dict[str, np.ndarray]:
    if not isinstance(frame, _DataFrame) or not isinstance(frame.state, Mapping):
        raise PickleError(f"a pickled {type(frame).__name__.strip('_')} instead of a DataFrame")
    manager = frame.state["_mgr"]
    names = [str(name) for name in _index(manager.axes[0])]
    rows = len(_index(manager.axes[1]))
    found: dict[int, np.ndarray] = {}
    for block in manager.blocks:
        values = _values(block.values)
        places = _places(block.placement)
        table = values[None] if values.ndim == 1 else values
        if table.shape != (len(places), rows):
            raise PickleError(f"a block {table.shape} for {len(places)} columns of {rows} rows")
        found.update(zip(places, table, strict=True))
    if sorted(found) != list(range(len(names))) or len(set(names)) != len(names):
        raise PickleError(f"{len(found)} columns for {len(names)} names")
    return {name: found[i] for i, name in enumerate(names)}


def _values(values: Any) -> np.ndarray:
    if isinstance(values, _Masked):
        numbers, absent = values.state["_data"].build(), values.state["_mask"].build()
        return np.where(absent, np.nan, numbers.astype(np.float64))
    if not isinstance(values, _Frame):
        return values.build()
    dtype, codes = values.state[:2]
    codes = codes.build()
    if isinstance(dtype, _String):
        return codes
    categories = np.array([*_index(dtype.state["categories"]), None], object)
    if len(codes) and not -1 <= codes.min() <= codes.max() < len(categories) - 1:
        raise PickleError(f"codes from {codes.min()} to {codes.max()} for "
                          f"{len(categories) - 1} categories")
    return categories[codes]  # -1, absent, is the appended None


def _places(placement: Any) -> list[int]:
    if isinstance(placement, _Slice):
        return list(range(placement.start, placement.stop, placement.step))
    return [int(place) for place in placement.build()]


def _index(index: Any) -> np.ndarray:
    fields = index.fields
    if "data" in fields:
        return _values(fields["data"])
    return np.arange(fields["start"], fields["stop"], fields["step"])
