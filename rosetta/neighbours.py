"""The k best partners of every unit in both directions, merged block by block.

Dictionaries need only these, so a table never has to exist as a whole: blocks are reduced on the
device, and blocks of rows mined in separate passes are combined afterwards.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from rosetta.state import MiningState, Plan
from rosetta.tables import blocks, check

__all__ = ["Neighbours", "combine", "from_table", "nearest"]


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Best partners, best first; equal scores in the order of unit numbers.

    Attributes:
      rows: `[R]` numbers of the row units.
      row_scores, row_partners: `[R, k]` correlations, and numbers of column units.
      columns: `[C]` numbers of the column units.
      column_scores, column_partners: `[C, k]` correlations, and numbers of row units.

    Where a unit has fewer than k partners, the rest has score -inf and partner -1.
    """

    rows: np.ndarray
    row_scores: np.ndarray
    row_partners: np.ndarray
    columns: np.ndarray
    column_scores: np.ndarray
    column_partners: np.ndarray

    @property
    def k(self) -> int:
        """Number of partners kept."""
        return self.row_scores.shape[1]

    def best(self, k: int) -> "Neighbours":
        """The k best partners of each unit only.

        Raises:
          ValueError: fewer were kept.
        """
        if not 1 <= k <= self.k:
            raise ValueError(f"{k} partners of the {self.k} that were kept")
        cut = {
            name: getattr(self, name)[:, :k]
            for name in ("row_scores", "row_partners", "column_scores", "column_partners")
        }
        return dataclasses.replace(self, **cut)


def nearest(
    plan: Plan,
    state: MiningState,
    pair: tuple[str, str],
    k: int,
    permutation: int | None = None,
) -> Neighbours:
    """Best partners of a mined pair; in a model paired with itself no unit is its own partner.

    Args:
      plan, state: what was mined.
      pair: one of the plan's.
      k: number of partners to keep.
      permutation: takes one of the tables with exchanged images.

    Raises:
      MapError: see `rosetta.tables.check`.
      KeyError: the plan has no such pair or permutation.
    """
    check(plan, state)
    permuted = permutation is not None
    parts = blocks(plan, state, pair, permuted)
    chosen = ((a, b, v[permutation] if permuted else v) for a, b, v in parts)
    rows, columns = (plan.layout(name) for name in pair)
    return _reduce(chosen, k, rows.model == columns.model)


def from_table(table: np.ndarray, k: int, itself: bool = False) -> Neighbours:
    """Best partners of a table `[rows, columns]` whose units are numbered from 0.

    Raises:
      ValueError: a table that is no matrix, holds NaN, or k < 1.
    """
    table = np.asarray(table)
    if table.ndim != 2 or np.isnan(table).any() or k < 1:
        raise ValueError(f"expected a matrix without NaN and k >= 1, got {table.shape}, k = {k}")
    return _reduce([(np.arange(table.shape[0]), np.arange(table.shape[1]), table)], k, itself)


def combine(parts: Sequence[Neighbours]) -> Neighbours:
    """The best partners in a table of which `parts` hold different blocks of rows or columns."""
    first = parts[0]
    rows = _merge([(p.rows, p.row_scores, p.row_partners) for p in parts], first.k)
    columns = _merge([(p.columns, p.column_scores, p.column_partners) for p in parts], first.k)
    return Neighbours(*rows, *columns)


def _reduce(
    parts: Iterable[tuple[np.ndarray, np.ndarray, jax.Array | np.ndarray]], k: int, itself: bool
) -> Neighbours:
    by_row: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    by_column: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for rows, columns, values in parts:
        if itself:
            same = rows.reshape(-1, 1) == columns.reshape(1, -1)
            values = jax.numpy.where(same, -np.inf, jax.numpy.asarray(values))
        for found, units, partners, table in (
            (by_row, rows, columns, values),
            (by_column, columns, rows, values.T),
        ):
            scores, places = _top(table, min(k, table.shape[1]))
            names = np.where(np.isneginf(scores), -1, partners[np.asarray(places)])
            found.append((units, np.asarray(scores), names))
    return Neighbours(*_merge(by_row, k), *_merge(by_column, k))


@functools.partial(jax.jit, static_argnums=1)
def _top(table: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    scores, places = jax.lax.top_k(table, k)
    return scores, places


def _merge(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges (units, scores [n, j], partners [n, j]); units may be in several parts."""
    units = np.unique(np.concatenate([u for u, _, _ in parts]))
    scores = np.full((len(units), k), -np.inf, np.float32)
    partners = np.full((len(units), k), -1, np.int64)
    for names, new_scores, new_partners in parts:
        places = np.searchsorted(units, names)
        both = np.concatenate([scores[places], new_scores], axis=1)
        who = np.concatenate([partners[places], new_partners], axis=1)
        # Primary key: score, descending; then the partner's number, ascending.
        order = np.lexsort((who, -both), axis=1)[:, :k]
        scores[places] = np.take_along_axis(both, order, axis=1)
        partners[places] = np.take_along_axis(who, order, axis=1)
    return units, scores, partners
