"""The published code's score: the mean over batches of a cosine of standardised maps.

It differs from `rosetta.mining` (yossigandelsman/rosetta_neurons, match_utils/stats.py and
matching.py) and is here to reproduce its tables. Two passes over the same batches:

1. `stats`: each unit's mean is the mean of the batches' means, its deviation the root of the mean
   of the batches' unbiased variances, so variation between batches is left out.
2. `score`: maps become (x - mean) / (deviation + 1e-5) at their own size, both are enlarged to the
   larger size, and each batch gives the cosine sum(ab) / sqrt(sum a^2 sum b^2), without centring
   again and 0 where it is not defined; the score is the mean over batches.

The products use the adjoint, as in `rosetta.mining`. Every batch counts alike, whatever its size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rosetta import resize
from rosetta.state import Activations, Plan, grouped_by_size
from rosetta.sums import Sum
from rosetta.tables import check_finite
from rosetta.terms import products

__all__ = ["ScoreState", "StatsState", "init_score", "init_stats", "score", "stats", "table"]

EPSILON = 1e-5


class StatsState(struct.PyTreeNode):
    """Sums over batches; keys "model/size", arrays `[units]`."""

    batches: jax.Array
    means: dict[str, Sum]
    variances: dict[str, Sum]


class ScoreState(struct.PyTreeNode):
    """Sums of cosines over batches, `[row units, column units]`; keys as in `MiningState`.

    `invalid` counts for each unit the images with a value that is not finite.
    """

    batches: jax.Array
    cosines: dict[str, Sum]
    invalid: dict[str, jax.Array]


def init_stats(plan: Plan) -> StatsState:
    """Empty statistics of the models of a plan."""

    def empty() -> dict[str, Sum]:
        return {
            f"{layout.name}/{size}": Sum.zeros((len(layout.units_of(size)),))
            for layout in plan.layouts
            for size in layout.grids
        }

    return StatsState(jnp.zeros((), jnp.int32), empty(), empty())


def init_score(plan: Plan) -> ScoreState:
    """Empty tables of the pairs of a plan."""
    cosines = {
        f"{a}/{b}/{s}/{t}": Sum.zeros(
            (len(plan.layout(a).units_of(s)), len(plan.layout(b).units_of(t)))
        )
        for a, b, s, t in plan.tables()
    }
    invalid = {
        f"{layout.name}/{size}": jnp.zeros(len(layout.units_of(size)), jnp.int32)
        for layout in plan.layouts
        for size in layout.grids
    }
    return ScoreState(jnp.zeros((), jnp.int32), cosines, invalid)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def stats(plan: Plan, state: StatsState, activations: Activations) -> StatsState:
    """First pass: adds one batch of activations.

    Raises:
      MapError: activations that do not fit the plan.
    """
    means, variances = {}, {}
    for name, maps in grouped_by_size(plan, activations, None).items():
        for size, array in maps.items():
            key = f"{name}/{size}"
            means[key] = state.means[key].add(jnp.mean(array, (0, 1, 2)))
            variances[key] = state.variances[key].add(jnp.var(array, (0, 1, 2), ddof=1))
    return StatsState(state.batches + 1, means, variances)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def score(
    plan: Plan, state: ScoreState, statistics: StatsState, activations: Activations
) -> ScoreState:
    """Second pass: adds one batch of activations, standardised by the finished first pass.

    Raises:
      MapError: activations that do not fit the plan.
    """
    count = statistics.batches.astype(jnp.float32)
    standard: dict[tuple[str, int], jax.Array] = {}
    invalid = {}
    for name, maps in grouped_by_size(plan, activations, None).items():
        for size, array in maps.items():
            key = f"{name}/{size}"
            bad = jnp.sum(jnp.any(~jnp.isfinite(array), (1, 2)), 0, dtype=jnp.int32)
            invalid[key] = state.invalid[key] + bad
            mean = statistics.means[key].value() / count
            deviation = jnp.sqrt(statistics.variances[key].value() / count)
            moved = array - mean.reshape(1, 1, 1, -1)
            standard[name, size] = moved / (deviation + EPSILON).reshape(1, 1, 1, -1)
    norms = {}
    for name, size in standard:
        sizes = [t for model, s, t in plan.targets() if (model, s) == (name, size)]
        for t, (_, square) in zip(sizes, resize.moments(standard[name, size], sizes), strict=True):
            norms[name, size, t] = jnp.sqrt(square)
    cosines = {}
    inner, _ = products(plan, standard)
    for a, b, s, t in plan.tables():
        big = max(s, t)
        norm = norms[a, s, big].reshape(-1, 1) * norms[b, t, big].reshape(1, -1)
        key = f"{a}/{b}/{s}/{t}"
        cosine = inner[key] / jnp.where(norm > 0, norm, 1)
        cosines[key] = state.cosines[key].add(jnp.where(norm > 0, cosine, 0))
    return ScoreState(state.batches + 1, cosines, invalid)


def table(plan: Plan, state: ScoreState, pair: tuple[str, str]) -> np.ndarray:
    """The scores of a pair of models, float32 `[row units, column units]`.

    Raises:
      ValueError: no batches have been scored.
      MapError: units whose maps were not finite, which the published code scores 0.
    """
    if int(state.batches) == 0:
        raise ValueError("no batches have been scored")
    check_finite(plan, state.invalid)
    rows, columns = (plan.layout(name) for name in pair)
    result: Any = np.zeros((len(rows), len(columns)), np.float32)
    for s in rows.grids:
        for t in columns.grids:
            places = np.ix_(
                rows.units_of(s) - rows.start, columns.units_of(t) - columns.start
            )
            total = state.cosines[f"{pair[0]}/{pair[1]}/{s}/{t}"].to_host()
            result[places] = total / int(state.batches)
    return result
