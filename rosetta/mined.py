"""What mining leaves: best partners of every unit in every table, and statistics of all units.

A table of two large networks need not fit into memory. It is mined in blocks of the generator's
units (rows), one pass over the same images each; what dictionaries need of a block is kept
(`reduced`) and joined afterwards (`joined`).
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from common import storage
from rosetta import tables
from rosetta.neighbours import Neighbours, combine, nearest
from rosetta.state import MiningState, Plan
from rosetta.units import Layout

__all__ = ["Mined", "block_plan", "joined", "load", "reduced", "row_blocks", "save"]

Key = tuple[str, str, int]  # row model, column model, number of the exchange (-1 for none)
_WHOLE = "*"  # the generator as columns, beside the block of it that is rows


@dataclasses.dataclass(frozen=True)
class Mined:
    """The result of a mining run.

    Attributes:
      plan: of the whole run, without blocks.
      images: number of images.
      neighbours: (row model, column model, exchange or -1) -> best partners.
      means, deviations: model -> statistics of all units, `[units]`; the deviation of a unit that
        counts as constant is 0.
    """

    plan: Plan
    images: int
    neighbours: dict[Key, Neighbours]
    means: dict[str, np.ndarray]
    deviations: dict[str, np.ndarray]

    @property
    def anchor(self) -> str:
        """Name of the generator."""
        return self.plan.pairs[0][0]

    def nearest(
        self, pair: tuple[str, str], k: int, permutation: int | None = None
    ) -> Neighbours:
        """Best partners of a mined pair; in a model paired with itself no unit is its own partner.

        Raises:
          KeyError: the pair or permutation was not mined.
          ValueError: fewer than k partners were kept.
        """
        key = (*pair, -1 if permutation is None else permutation)
        if key not in self.neighbours:
            raise KeyError(f"{pair}, permutation {permutation}, is not among {self.plan.pairs}")
        return self.neighbours[key].best(k)

    def constant_units(self, model: str) -> np.ndarray:
        """Numbers of the units of a model that do not vary."""
        return np.flatnonzero(self.deviations[model] == 0)


def row_blocks(plan: Plan, rows: int) -> list[Plan]:
    """The plans of the passes in which each table has at most `rows` rows; 0 for no limit.

    Raises:
      ValueError: a negative number of rows.
    """
    if rows < 0:
        raise ValueError(f"blocks of {rows} rows")
    count = len(plan.layout(plan.pairs[0][0]))
    if rows in (0, count) or rows > count:
        return [plan]
    return [block_plan(plan, low, min(low + rows, count)) for low in range(0, count, rows)]


def block_plan(plan: Plan, start: int, stop: int) -> Plan:
    """A plan whose tables have only the rows `start` to `stop - 1` of the generator's units.

    The tables of `plan` must all have the generator as row model.

    Raises:
      ValueError: a table of other rows.
    """
    anchor = plan.pairs[0][0]
    if any(a != anchor for a, _ in plan.pairs):
        raise ValueError(f"tables with other rows than {anchor}: {plan.pairs}")
    layouts: list[Layout] = []
    for layout in plan.layouts:
        layouts.append(layout.block(start, stop) if layout.name == anchor else layout)
    pairs, exchanged = plan.pairs, plan.exchanged
    if (anchor, anchor) in pairs:
        whole = dataclasses.replace(plan.layout(anchor), name=anchor + _WHOLE, source=anchor)
        layouts.append(whole)
        pairs = tuple((a, whole.name if b == anchor else b) for a, b in pairs)
        if exchanged is not None:
            exchanged = tuple((a, whole.name if b == anchor else b) for a, b in exchanged)
    return dataclasses.replace(plan, layouts=tuple(layouts), pairs=pairs, exchanged=exchanged)


def reduced(plan: Plan, state: MiningState, keep: int) -> Mined:
    """The `keep` best partners and the statistics of a pass, of a whole plan or of a block.

    Raises:
      MapError: see `rosetta.tables.check`.
    """
    found: dict[Key, Neighbours] = {}
    for pair in plan.pairs:
        names = (pair[0], pair[1].removesuffix(_WHOLE))
        found[*names, -1] = nearest(plan, state, pair, keep)
        if plan.has_null(*pair):
            for index in range(plan.permutations):
                found[*names, index] = nearest(plan, state, pair, keep, index)
    means: dict[str, np.ndarray] = {}
    deviations: dict[str, np.ndarray] = {}
    for layout in plan.layouts:
        name = layout.name
        means[name], deviations[name] = tables.unit_statistics(plan, state, name)
    return Mined(plan, int(state.images), found, means, deviations)


def joined(plan: Plan, parts: Sequence[Mined]) -> Mined:
    """The result of a whole plan from those of its `row_blocks`, in their order.

    Raises:
      ValueError: parts of different numbers of images, or that do not make up the generator's rows.
    """
    first = parts[0]
    if any(part.images != first.images for part in parts):
        raise ValueError(f"blocks of {sorted({part.images for part in parts})} images")
    neighbours = {
        key: combine([part.neighbours[key] for part in parts]) for key in first.neighbours
    }
    means, deviations = dict(first.means), dict(first.deviations)
    anchor = first.anchor
    for values in (means, deviations):
        values.pop(anchor + _WHOLE, None)
    means[anchor] = np.concatenate([part.means[anchor] for part in parts])
    deviations[anchor] = np.concatenate([part.deviations[anchor] for part in parts])
    if len(means[anchor]) != len(plan.layout(anchor)):
        raise ValueError(f"{len(means[anchor])} rows of {len(plan.layout(anchor))}")
    return Mined(plan, first.images, neighbours, means, deviations)


def save(path: str | os.PathLike[str], mined: Mined) -> pathlib.Path:
    """Writes a result as `.safetensors`."""
    arrays: dict[str, Any] = {}
    for (a, b, index), near in mined.neighbours.items():
        for field in dataclasses.fields(near):
            arrays[f"{a}/{b}/{index}/{field.name}"] = getattr(near, field.name)
    for name in mined.means:
        arrays[f"{name}/mean"], arrays[f"{name}/deviation"] = (
            mined.means[name], mined.deviations[name],
        )  # fmt: skip
    header = {"plan": dataclasses.asdict(mined.plan), "images": mined.images}
    return storage.save_arrays(path, arrays, header)


def load(path: str | os.PathLike[str]) -> Mined:
    """Reads what `save` wrote."""
    arrays, header = storage.load_arrays(path)
    plain = header["plan"]
    layouts = tuple(Layout(**_with_tuples(entry)) for entry in plain["layouts"])
    pairs = tuple((a, b) for a, b in plain["pairs"])
    exchanged = plain["exchanged"]
    plan = Plan(
        layouts, pairs, plain["permutations"], plain["seed"],
        None if exchanged is None else tuple((a, b) for a, b in exchanged),
    )  # fmt: skip
    parts: dict[Key, dict[str, np.ndarray]] = {}
    means: dict[str, np.ndarray] = {}
    deviations: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        if key.endswith("/mean"):
            means[key.removesuffix("/mean")] = array
        elif key.endswith("/deviation"):
            deviations[key.removesuffix("/deviation")] = array
        else:
            a, b, index, field = key.split("/")
            parts.setdefault((a, b, int(index)), {})[field] = array
    neighbours = {key: Neighbours(**fields) for key, fields in parts.items()}
    return Mined(plan, header["images"], neighbours, means, deviations)


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples again."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
