"""Frames that pickle as those of pandas 1.3 to 2.x, whose names are others in pandas 3.

The classes reduce as theirs do (`pandas/_libs/internals.pyx`, `Index.__reduce__`,
`NDFrame.__getstate__`), and are pickled under their names while `install` is in effect.
"""

import sys
import types

import numpy as np


class Index:
    """As ``pandas.Index`` of objects, or of numbers."""

    def __init__(self, data, **attributes):
        self.attributes = {"data": np.asarray(data), "name": None, **attributes}

    def __reduce__(self):
        base = sys.modules["pandas.core.indexes.base"]
        return base._new_Index, (type(self), self.attributes), None


class Int64Index(Index):
    """What an index of whole numbers was before pandas 2."""


class Float64Index(Index):
    """What an index of fractions was before pandas 2."""


class RangeIndex(Index):
    def __init__(self, *bounds):
        self.attributes = {
            "name": None,
            **dict(zip(("start", "stop", "step"), bounds, strict=True)),
        }


class BlockManager:
    def __init__(self, blocks, axes):
        self.blocks, self.axes = blocks, axes

    def __reduce__(self):
        return type(self), (self.blocks, self.axes)


class Block:
    def __init__(self, values, placement):
        self.args = (values, placement, 2)

    def __reduce__(self):
        return sys.modules["pandas._libs.internals"]._unpickle_block, self.args


class DataFrame:
    def __init__(self, manager):
        self.manager = manager

    def __getstate__(self):
        return {
            "_mgr": self.manager,
            "_typ": "dataframe",
            "_metadata": [],
            "attrs": {},
            "_flags": {"allows_duplicate_labels": True},
        }


def _new_Index(kind, attributes):
    raise AssertionError("the reader calls nothing")


def _unpickle_block(values, placement, ndim):
    raise AssertionError("the reader calls nothing")


def install(monkeypatch):
    """Modules of pandas' names that hold the classes above, so that they pickle as pandas'."""
    places = {
        "pandas.core.frame": (DataFrame,),
        "pandas.core.internals.managers": (BlockManager,),
        "pandas.core.indexes.base": (Index, _new_Index),
        "pandas.core.indexes.numeric": (Int64Index, Float64Index),
        "pandas.core.indexes.range": (RangeIndex,),
        "pandas._libs.internals": (_unpickle_block,),
    }
    for name, members in places.items():
        module = types.ModuleType(name)
        for member in members:
            monkeypatch.setattr(member, "__module__", name)
            setattr(module, member.__name__, member)
        for depth in range(1, name.count(".") + 1):
            parent = ".".join(name.split(".")[:depth])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)
