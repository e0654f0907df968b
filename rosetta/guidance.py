"""From mined sums to wanted maps: which pairs guide an inversion, and what the networks see."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rosetta.inversion import Statistics, Target, make_targets
from rosetta.matching import Pairs, best_buddies
from rosetta.mined import Mined
from rosetta.units import Layout
from rosetta.zoo.tapped import Generator, Tapped

__all__ = ["Guides", "guides", "random_guides", "network_targets", "unit_maps"]


@dataclasses.dataclass(frozen=True)
class Guides:
    """Pairs of a generator's units with those of networks, and the statistics of all units.

    Attributes:
      pairs: network -> matched units, best first.
      statistics: model -> statistics over the mined images, the generator's among them.
      layouts: model -> layout.
    """

    pairs: dict[str, Pairs]
    statistics: dict[str, Statistics]
    layouts: dict[str, Layout]

    @property
    def units(self) -> np.ndarray:
        """The generator's units that occur, each once, the best matched first."""
        rows = np.concatenate([pairs.rows for pairs in self.pairs.values()])
        scores = np.concatenate([pairs.scores for pairs in self.pairs.values()])
        order = rows[np.argsort(-scores, kind="stable")]
        return order[np.sort(np.unique(order, return_index=True)[1])]


def guides(mined: Mined, networks: Sequence[str], most: int) -> Guides:
    """The best buddies of a generator with each network, at most `most` each, best first.

    Strict best buddies are what the published notebooks use.

    Raises:
      KeyError: a network that was not mined.
      ValueError: a network without best buddies.
    """
    anchor = mined.anchor
    found = {}
    for name in networks:
        buddies = best_buddies(mined.nearest((anchor, name), 1))
        buddies = buddies.keep(np.argsort(-buddies.scores, kind="stable")[:most])
        if not len(buddies):
            raise ValueError(f"{anchor} and {name} have no best buddies with positive correlation")
        found[name] = buddies
    statistics = {
        name: Statistics(mined.means[name], mined.deviations[name]) for name in (anchor, *networks)
    }
    layouts = {name: mined.plan.layout(name) for name in (anchor, *networks)}
    return Guides(found, statistics, layouts)


def random_guides(given: Guides, anchor: str, seed: int) -> Guides:
    """As many pairs with each network, of units drawn at random among those that vary.

    A unit is in at most one pair with a network, as it is of best buddies.
    """
    random = np.random.default_rng(seed)
    pairs = {}
    for name, matched in given.pairs.items():
        live = [np.flatnonzero(given.statistics[model].deviation > 0) for model in (anchor, name)]
        rows, columns = (random.choice(units, len(matched), replace=False) for units in live)
        pairs[name] = Pairs(rows, columns, np.zeros(len(matched), np.float32))
    return dataclasses.replace(given, pairs=pairs)


def unit_maps(
    layout: Layout, statistics: Statistics, maps: Mapping[str, Any], units: Sequence[int]
) -> list[np.ndarray]:
    """Standardised maps `[images, s, s]` of some units from `{tap: [images, s, s, channels]}`."""
    result = []
    host = {tap: np.asarray(maps[tap]) for tap in {layout.taps[layout.find(u)[0]] for u in units}}
    for unit in units:
        tap, channel = layout.find(int(unit))
        result.append(statistics.standardise(host[layout.taps[tap]][..., channel], int(unit)))
    return result


def network_targets(
    generator: Generator,
    models: Sequence[Tapped],
    given: Sequence[Guides],
    images: np.ndarray,
    batch: int = 8,
) -> list[tuple[Target, ...]]:
    """The wanted maps of the generator's units: those of their partners on images.

    Args:
      generator, models: of the pairs.
      given: one or more sets of pairs of these models; the networks run once for all.
      images: `[images, size, size, 3]` in [0, 1].
      batch: images that a network sees at once.

    Returns:
      The targets of each set.
    """
    wanted: list[list[np.ndarray]] = [[] for _ in given]
    for model in models:
        run = jax.jit(model.apply)
        parts: list[list[list[np.ndarray]]] = [[] for _ in given]
        for low in range(0, len(images), batch):
            part = images[low : low + batch]
            filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), 0)])
            maps = run(model.params, filled)
            for guide, collected in zip(given, parts, strict=True):
                layout, statistics = guide.layouts[model.name], guide.statistics[model.name]
                units = guide.pairs[model.name].columns.tolist()
                found = unit_maps(layout, statistics, maps, units)
                collected.append([x[: len(part)] for x in found])
        for maps_of, collected in zip(wanted, parts, strict=True):
            maps_of += [np.concatenate(column) for column in zip(*collected, strict=True)]
    result = []
    for guide, maps_of in zip(given, wanted, strict=True):
        rows = np.concatenate([guide.pairs[model.name].rows for model in models])
        anchor = generator.name
        result.append(make_targets(guide.layouts[anchor], guide.statistics[anchor], rows, maps_of))
    return result
