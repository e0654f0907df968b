"""Tables of labels out of pickled pandas DataFrames, without pandas and without executing pickles.

A pickled frame is a manager of blocks ``[columns, rows]``, one for each type of values, with the
places of their columns, and two indices (pandas 1.3 to 2.x: ``pandas/_libs/internals.pyx``,
``pandas/core/indexes/base.py``). Blocks of numbers and of Python objects are read; frames with
other contents (dates, categories, several index levels) are refused with the name of the class.
"""

import dataclasses
import io
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from common import restricted_pickle
from common.restricted_pickle import Array, Dtype, Marker, PickleError, RefusedGlobal

__all__ = ["Frame", "PickleError", "RefusedGlobal", "read"]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A table.

    Attributes:
      index: label of each row.
      columns: name to ``[N]`` values; objects that are all numbers are float64.
    """

    index: tuple[Any, ...]
    columns: dict[str, np.ndarray]


class _ObjectDtype:
    """``numpy.dtype("O")``, which `restricted_pickle` refuses elsewhere."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Values(Array):
    """An array of numbers, or one of objects as a list."""

    __slots__ = ()

    def build(self) -> np.ndarray:
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            return super().build()
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _ObjectDtype):
            return super().build()
        sizes = restricted_pickle.check_sizes(shape, "shape")
        if not isinstance(data, list) or len(data) != int(np.prod(sizes, dtype=object)):
            raise PickleError(f"an array of objects {sizes} without its {sizes} values")
        array = np.empty(len(data), object)
        array[:] = restricted_pickle.resolve(data)
        return array.reshape(sizes, order="F" if fortran else "C")


class _Block(NamedTuple):
    """Values ``[columns, rows]`` and the places of the columns."""

    values: Any
    placement: Any
    ndim: Any


class _Manager(NamedTuple):
    """All blocks, and the two indices (columns, rows)."""

    blocks: Any
    axes: Any


class _Index(NamedTuple):
    """An index of a class, by its attributes."""

    kind: Any
    attributes: Any


class _DataFrame:
    """A frame; its manager arrives by BUILD. A class, as the NEWOBJ opcode asks for one."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _dtype(code: str, align: bool = False, copy: bool = False) -> Dtype | _ObjectDtype:
    return _ObjectDtype() if code in ("O8", "O4", "O") else Dtype(code, align, copy)


_INDEX_CLASSES = ("base.Index", "range.RangeIndex", "numeric.Int64Index", "numeric.Float64Index")
_ALLOWED: dict[str, Any] = {
    **restricted_pickle.ALLOWED,
    "numpy.dtype": Marker("numpy.dtype", _dtype),
    "builtins.slice": Marker("builtins.slice", slice),
    "pandas.core.frame.DataFrame": _DataFrame,
    "pandas.core.internals.managers.BlockManager": Marker("BlockManager", _Manager),
    "pandas._libs.internals._unpickle_block": Marker("_unpickle_block", _Block),
    "pandas.core.indexes.base._new_Index": Marker("_new_Index", _Index),
    **{f"pandas.core.indexes.{name}": Marker(name) for name in _INDEX_CLASSES},
    **{
        f"numpy.{core}.multiarray._reconstruct": Marker("_reconstruct", _Values)
        for core in ("core", "_core")
    },
}


def read(path: str | os.PathLike[str]) -> Frame:
    """Reads a DataFrame saved by ``torch.save`` or ``DataFrame.to_pickle`` (uncompressed).

    Raises:
      RefusedGlobal: the pickle asks for anything else; nothing was executed.
      PickleError: damaged, or not a frame; names the file.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        if data[:4] == b"PK\x03\x04":
            data = _pickle_of_zip(data)
        tree = restricted_pickle.load(io.BytesIO(data), _ALLOWED)
        if not isinstance(tree, _DataFrame):
            raise PickleError(f"{type(tree).__name__} instead of a DataFrame")
        return _frame(getattr(tree, "state", None))
    except PickleError as error:
        raise restricted_pickle.error_of(path, error) from error
    except zipfile.BadZipFile as error:
        raise PickleError(f"{path}: damaged file: {error}") from error


def _pickle_of_zip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        names = [name for name in opened.namelist() if name.endswith("data.pkl")]
        if len(names) != 1:
            raise PickleError(f"a zip file with {len(names)} members data.pkl instead of one")
        return opened.read(names[0])


def _frame(state: Any) -> Frame:
    manager = state.get("_mgr") if isinstance(state, dict) else None
    if not isinstance(manager, _Manager) or len(manager.axes) != 2:
        raise PickleError("a DataFrame without a manager of two axes")
    names, index = (_labels(axis) for axis in manager.axes)
    columns: dict[int, np.ndarray] = {}
    for block in manager.blocks:
        if not isinstance(block, _Block) or not isinstance(block.values, Array):
            raise PickleError("a block that is not an array of numbers or objects")
        values = block.values.build()
        places = _places(block.placement, len(names))
        if values.shape != (len(places), len(index)):
            raise PickleError(
                f"a block of shape {values.shape} for {len(places)} columns of {len(index)} rows"
            )
        for place, column in zip(places, values, strict=True):
            if place in columns:
                raise PickleError(f"column {names[place]!r} is in two blocks")
            columns[place] = _numbers(column)
    if len(columns) != len(names) or len(set(names)) != len(names):
        raise PickleError(f"{len(columns)} columns with {len(set(names))} of {len(names)} names")
    return Frame(index, {str(names[place]): columns[place] for place in sorted(columns)})


def _labels(axis: Any) -> tuple[Any, ...]:
    if not isinstance(axis, _Index) or not isinstance(axis.attributes, dict):
        raise PickleError(f"an axis that is {type(axis).__name__}, not an index")
    attributes = restricted_pickle.resolve(dict(axis.attributes), _allow_markers)
    if "data" in attributes:
        return tuple(np.asarray(attributes["data"]).tolist())
    bounds = [attributes.get(key) for key in ("start", "stop", "step")]
    if any(type(bound) is not int for bound in bounds) or not bounds[2]:
        raise PickleError(f"an index with bounds {bounds}")
    span = range(*bounds)
    if len(span) > 1 << 32:
        raise PickleError(f"an index of {len(span)} rows")
    return tuple(span)


def _allow_markers(node: Any) -> Any:
    return node.name if isinstance(node, Marker) else NotImplemented


def _places(placement: Any, count: int) -> Sequence[int]:
    if isinstance(placement, slice):
        return range(count)[placement]
    places = placement.build() if isinstance(placement, Array) else np.empty(0)
    if places.ndim != 1 or places.dtype.kind != "i" or ((places < 0) | (places >= count)).any():
        raise PickleError(f"places {placement!r:.80} of columns, of which there are {count}")
    return [int(place) for place in places]


def _numbers(column: np.ndarray) -> np.ndarray:
    """A column of objects that are all numbers (None: unknown) as float64."""
    if column.dtype != object:
        return column
    if all(value is None or isinstance(value, int | float | np.number) for value in column):
        return np.array([np.nan if value is None else value for value in column], np.float64)
    return column
