"""Dictionaries of matched units: best buddies, relaxed matches, intersections and concepts.

Dravid et al., ICCV 2023: u and v are best buddies (Dekel et al., CVPR 2015) if each is
the other's nearest neighbour over all layers. A dictionary over several models takes one of them,
the generator, as anchor and keeps the anchor's units that are matched in every other model. Anchor
units that are near each other form a concept.

Only positive correlations match. A tie goes to the unit with the smaller number.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rosetta.neighbours import Neighbours

__all__ = [
    "Dictionary", "Pairs", "asymmetric", "best_buddies", "concepts", "intersect", "mutual",
    "symmetric",
]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Matched units of two models, ordered by row unit: numbers `[n]`, `[n]` and scores `[n]`."""

    rows: np.ndarray
    columns: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, chosen: np.ndarray) -> "Pairs":
        """The pairs that `chosen` (`[n]`, bool or places) selects."""
        return Pairs(self.rows[chosen], self.columns[chosen], self.scores[chosen])


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """Units matched across an anchor model and others, ordered by mean, then lowest score.

    Attributes:
      models: names of the other models, m.
      anchors: `[n]` numbers of the anchor's units.
      partners: `[n, m]` number of the matched unit in each model.
      scores: `[n, m]` correlations.
    """

    models: tuple[str, ...]
    anchors: np.ndarray
    partners: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.anchors)


def mutual(neighbours: Neighbours, k_rows: int, k_columns: int) -> Pairs:
    """All pairs in which the column unit is among the row unit's `k_rows` best and vice versa.

    Args:
      neighbours: with at least `max(k_rows, k_columns)` partners for each unit.
      k_rows: how many partners a row unit names.
      k_columns: how many partners a column unit names.

    Raises:
      ValueError: fewer partners were kept than asked for.
    """
    if not 1 <= min(k_rows, k_columns) or max(k_rows, k_columns) > neighbours.k:
        raise ValueError(f"{k_rows} and {k_columns} partners of the {neighbours.k} that were kept")
    partners = neighbours.row_partners[:, :k_rows]
    scores = neighbours.row_scores[:, :k_rows]
    row, rank = np.nonzero((scores > 0) & (partners >= 0))
    units, columns = neighbours.rows[row], partners[row, rank]
    back = neighbours.column_partners[:, :k_columns]
    named = back[np.searchsorted(neighbours.columns, columns)]
    pairs = Pairs(units, columns, scores[row, rank])
    return pairs.keep((named == units.reshape(-1, 1)).any(1))


def best_buddies(neighbours: Neighbours) -> Pairs:
    """Pairs of units that are each other's nearest neighbours."""
    return mutual(neighbours, 1, 1)


def asymmetric(neighbours: Neighbours, k: int = 5) -> Pairs:
    """Pairs of the published dictionary: a row unit's best partner that has it among its k best."""
    return mutual(neighbours, 1, k)


def symmetric(neighbours: Neighbours, k: int) -> Pairs:
    """The best partner of each row unit among those with which it is mutually among the k best."""
    pairs = mutual(neighbours, k, k)
    order = np.lexsort((pairs.columns, -pairs.scores, pairs.rows))
    first = np.unique(pairs.rows[order], return_index=True)[1]
    return pairs.keep(order[first])


def intersect(matches: Mapping[str, Pairs]) -> Dictionary:
    """The anchor's (row) units that are matched in every model.

    Args:
      matches: model -> pairs with the anchor; each row unit at most once.

    Raises:
      ValueError: no models, or a row unit with several partners in one model.
    """
    if not matches:
        raise ValueError("a dictionary needs at least one model beside the anchor")
    for name, pairs in matches.items():
        if len(np.unique(pairs.rows)) != len(pairs):
            raise ValueError(f"some units have several partners in model {name!r}")
    anchors = next(iter(matches.values())).rows
    for pairs in matches.values():
        anchors = np.intersect1d(anchors, pairs.rows)
    partners = np.zeros((len(anchors), len(matches)), np.int64)
    scores = np.zeros((len(anchors), len(matches)), np.float32)
    for index, pairs in enumerate(matches.values()):
        order = np.argsort(pairs.rows)
        places = order[np.searchsorted(pairs.rows, anchors, sorter=order)]
        partners[:, index], scores[:, index] = pairs.columns[places], pairs.scores[places]
    order = np.lexsort((anchors, -scores.min(1), -scores.mean(1)))
    return Dictionary(tuple(matches), anchors[order], partners[order], scores[order])


def concepts(anchors: np.ndarray | Sequence[int], own: Neighbours, k: int = 1) -> np.ndarray:
    """Clusters of anchor units: which concept each of them belongs to.

    Two units are linked if each is among the other's k nearest neighbours in the anchor's own
    units (all of them, not only those of the dictionary; a unit is not its own neighbour) with
    positive correlation. Concepts are the connected components, so that a chain of links makes
    one concept.

    Args:
      anchors: `[n]` numbers of units.
      own: neighbours of the anchor model paired with itself.
      k: links of each unit; 1 is the paper's best buddies within the generator.

    Returns:
      `[n]`, 0 for the first anchor's concept, counting up in the order of first members.
    """
    anchors = np.asarray(anchors, np.int64)
    places = {int(unit): place for place, unit in enumerate(anchors)}
    parents = list(range(len(anchors)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    links = mutual(own, k, k)
    for row, column in zip(links.rows.tolist(), links.columns.tolist(), strict=True):
        if row in places and column in places:
            low, high = sorted((root(places[row]), root(places[column])))
            parents[high] = low
    roots = [root(place) for place in range(len(anchors))]
    numbers = {first: number for number, first in enumerate(dict.fromkeys(roots))}
    return np.array([numbers[r] for r in roots], np.int64)
