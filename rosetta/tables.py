"""From running sums to correlations: whole tables, or blocks of them on the device.

    r = (sum ab / n - mean a mean b) / sqrt(var a var b),   n = images t^2

with all moments of the enlarged maps. A unit that is constant over images and positions correlates
with nothing: its scores are 0. A unit that was not finite somewhere is an error, never a score.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rosetta.state import MiningState, Plan
from rosetta.units import MapError

__all__ = [
    "blocks", "check", "check_finite", "constant_units", "correlations", "unit_statistics",
]

# Standard deviation, in units of the mean's magnitude, up to which a unit counts as constant:
# what float32 networks leave of a map that is constant in exact arithmetic.
TOLERANCE = 1e-5


def check(plan: Plan, state: MiningState) -> None:
    """Checks that the sums can be turned into correlations.

    Raises:
      MapError: no images, sums that are not finite, or units whose maps were not finite; the
        message names the first of them by model, tap and channel.
    """
    if int(state.images) == 0:
        raise MapError("no images have been mined")
    check_finite(plan, state.invalid)
    for key, total in state.squares.items():
        if not np.isfinite(np.asarray(total.high)).all():
            raise MapError(f"the sum of squares of {key} (model/size/common size) overflows")


def check_finite(plan: Plan, invalid: Mapping[str, jax.Array]) -> None:
    """Checks that no unit had a value that is not finite.

    Args:
      plan: of the units.
      invalid: "model/size" -> `[units]`, the number of images in which a unit had one.

    Raises:
      MapError: names the first of them by model, tap and channel.
    """
    for layout in plan.layouts:
        bad: list[tuple[int, int]] = []
        for size in layout.grids:
            counts = np.asarray(invalid[f"{layout.name}/{size}"])
            units = layout.units_of(size)
            bad += [(int(units[i]), int(counts[i])) for i in np.flatnonzero(counts)]
        if bad:
            unit, images = min(bad)
            tap, channel = layout.find(unit)
            raise MapError(
                f"model {layout.model!r}: {len(bad)} units with maps that are not finite, the "
                f"first is tap {layout.taps[tap]!r} channel {channel} (in {images} images)"
            )


def constant_units(plan: Plan, state: MiningState, name: str) -> np.ndarray:
    """Numbers of the units of a model (of its block) that do not vary."""
    layout = plan.layout(name)
    found = []
    for size in layout.grids:
        _, variance = _moments(state, name, size, size)
        found.append(layout.units_of(size)[np.asarray(variance) == 0])
    return np.sort(np.concatenate(found))


def unit_statistics(
    plan: Plan, state: MiningState, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each unit of a model over the mined images, at its own size.

    Returns:
      Two arrays `[units]`, for the units of the layout's block in their order; the deviation of
      what counts as constant is 0.

    Raises:
      MapError: see `check`.
    """
    check(plan, state)
    layout = plan.layout(name)
    means, deviations = (np.zeros(len(layout), np.float32) for _ in range(2))
    for size in layout.grids:
        moved, variance = _moments(state, name, size, size)
        places = layout.units_of(size) - layout.start
        means[places] = np.asarray(state.centres[f"{name}/{size}"]) + np.asarray(moved)
        deviations[places] = np.sqrt(np.asarray(variance))
    return means, deviations


def correlations(
    plan: Plan, state: MiningState, pair: tuple[str, str], permuted: bool = False
) -> np.ndarray:
    """The table of a pair of models, float32 `[row units, column units]`.

    Args:
      plan: of the state.
      state: after at least one batch.
      pair: one of the plan's.
      permuted: gives the tables of exchanged images, `[permutations, row units, column units]`.

    Raises:
      MapError: see `check`.
      KeyError: the plan has no such pair, or no permutations.
    """
    check(plan, state)
    rows, columns = (plan.layout(name) for name in pair)
    leading = (plan.permutations,) if permuted else ()
    table = np.zeros((*leading, len(rows), len(columns)), np.float32)
    for row_units, column_units, values in blocks(plan, state, pair, permuted):
        row, column = np.ix_(row_units - rows.start, column_units - columns.start)
        table[..., row, column] = np.asarray(values)
    return table


def blocks(
    plan: Plan,
    state: MiningState,
    pair: tuple[str, str],
    permuted: bool = False,
    most_rows: int = 4096,
) -> Iterator[tuple[np.ndarray, np.ndarray, jax.Array]]:
    """Yields (row units, column units, correlations on the device) of the parts of a table.

    With `permuted` the correlations are `[permutations, rows, columns]`. No part has more than
    `most_rows` rows.

    Raises:
      KeyError: the plan has no such pair, or no permutations.
    """
    if pair not in plan.pairs or (permuted and not plan.has_null(*pair)):
        raise KeyError(f"no {'permuted ' if permuted else ''}table of {pair} among {plan.pairs}")
    rows, columns = (plan.layout(name) for name in pair)
    for s in rows.grids:
        for t in columns.grids:
            key, common = f"{pair[0]}/{pair[1]}/{s}/{t}", max(s, t)
            table = state.permuted[key] if permuted else state.products[key]
            images = state.paired if permuted else state.images
            count = images.astype(jnp.float32) * common**2
            of_rows = _moments(state, pair[0], s, common)
            of_columns = _moments(state, pair[1], t, common)
            units = rows.units_of(s)
            for low in range(0, len(units), most_rows):
                part = slice(low, min(low + most_rows, len(units)))
                values = _correlate(
                    table.high[..., part, :],
                    table.low[..., part, :],
                    count,
                    (of_rows[0][part], of_rows[1][part]),
                    of_columns,
                )
                yield units[part], columns.units_of(t), values


def _moments(
    state: MiningState, name: str, size: int, common: int
) -> tuple[jax.Array, jax.Array]:
    """Mean (of centred values) and variance of enlarged maps; 0 for what counts as constant."""
    key = f"{name}/{size}/{common}"
    centre = state.centres[f"{name}/{size}"]
    count = state.images.astype(jnp.float32) * common**2
    return _mean_and_variance(state.sums[key].value(), state.squares[key].value(), centre, count)


@jax.jit
def _mean_and_variance(
    total: jax.Array, square: jax.Array, centre: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    mean = total / count
    variance = square / count - jnp.square(mean)
    floor = jnp.square(TOLERANCE * (centre + mean))
    # Cancellation leaves up to this of a map that equals its centre plus a constant.
    floor = jnp.maximum(floor, 1e-6 * jnp.square(mean))
    return mean, jnp.where(variance > floor, variance, 0)


@jax.jit
def _correlate(
    high: jax.Array,
    low: jax.Array,
    count: jax.Array,
    rows: tuple[jax.Array, jax.Array],
    columns: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Correlations `[..., rows, columns]` from sums of products and (mean, variance) of both."""
    shape = (1,) * (high.ndim - 2)
    mean_a, variance_a = (x.reshape(*shape, -1, 1) for x in rows)
    mean_b, variance_b = (x.reshape(*shape, 1, -1) for x in columns)
    covariance = (high + low) / jnp.maximum(count, 1) - mean_a * mean_b
    # Roots first: a product of two small variances would underflow.
    scale = jnp.sqrt(variance_a) * jnp.sqrt(variance_b)
    valid = (variance_a > 0) & (variance_b > 0)
    ratio = covariance / jnp.where(valid, scale, 1)
    return jnp.clip(jnp.where(valid, ratio, 0), -1, 1)
