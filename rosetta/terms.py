"""One batch's terms of all sums of `rosetta.mining`: few products of matrices for many tables.

All tables whose products run over the same grid and have the same rows are one product: their
columns stand side by side. Of the two sizes of a pair of maps the larger is brought down, so that a
rows' grid s meets all larger column grids at s, and each smaller one at its own size.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from common.sharding import AXES
from rosetta import resize
from rosetta.state import Grouped, Plan
from rosetta.sums import column_sums, image_sums, product

__all__ = ["contributions", "products"]

Centred = Mapping[tuple[str, int], jax.Array]  # (model, size) -> maps


def contributions(
    plan: Plan,
    mesh: Mesh | None,
    centres: Mapping[str, jax.Array],
    grouped: Grouped,
    mask: jax.Array,
    rolls: jax.Array,
) -> dict[str, Any]:
    """One batch's (one device's) terms of all sums; with a mesh, summed over the devices.

    A unit that is not finite somewhere is counted; its sums are not finite either.
    """
    weight = mask.reshape(-1, 1, 1, 1)
    centred, invalid = {}, {}
    sums, squares = {}, {}
    for name, maps in grouped.items():
        for size, array in maps.items():
            key = f"{name}/{size}"
            moved = array - centres[key].reshape(1, 1, 1, -1)
            own = jnp.where(mask.reshape(-1, 1), image_sums(jnp.square(moved)), 0)
            invalid[key] = _invalid(array, mask, own)
            centred[name, size] = found = jnp.where(weight, moved, 0)
            bigger = [t for model, s, t in plan.targets() if (model, s) == (name, size) and t > s]
            totals = dict(zip(bigger, resize.moments(found, bigger), strict=True))
            totals[size] = column_sums(image_sums(found)), column_sums(own)
            for t, (total, square) in totals.items():
                sums[f"{key}/{t}"], squares[f"{key}/{t}"] = total, square
    sources, paired = _exchanges(mask, rolls)
    tables, permuted = products(plan, centred, sources, (paired > 0).astype(jnp.float32))
    small = {
        "images": jnp.sum(mask, dtype=jnp.int32),
        "paired": paired,
        "invalid": invalid,
        "sums": sums,
        "squares": squares,
    }
    if mesh is None:
        return {"small": small, "products": tables, "permuted": permuted}
    scatter = functools.partial(_scatter, devices=mesh.devices.size)
    return {
        "small": jax.lax.psum(small, AXES),
        "products": {key: scatter(table, axis=0) for key, table in tables.items()},
        "permuted": {key: scatter(table, axis=1) for key, table in permuted.items()},
    }


def products(
    plan: Plan, maps: Centred, sources: jax.Array | None = None, scale: jax.Array | float = 1.0
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Sums over images and positions of all products of units, of every table of a plan.

    Args:
      plan: which tables.
      maps: (model, size) -> `[batch, size, size, units]`, 0 in images that do not count.
      sources: `[permutations, batch]`, the image whose rows each image's columns meet.
      scale: factor of the tables with exchanged images.

    Returns:
      Table's key -> `[rows, columns]`, and `[permutations, rows, columns]` where the plan has a
      null and `sources` are given.
    """
    groups: dict[tuple[str, int, int, bool], list[tuple[str, int]]] = {}
    wanted: dict[tuple[str, int], set[int]] = {}
    mirrored = []
    for a, b, s, t in plan.tables():
        null = sources is not None and plan.has_null(a, b)
        if a == b and s > t and not null:
            mirrored.append((a, s, t))  # the transpose of another of the same model's tables
            continue
        common = min(s, t)
        groups.setdefault((a, s, common, null), []).append((b, t))
        wanted.setdefault((a, s), set()).add(common)
        wanted.setdefault((b, t), set()).add(common)
    lowered: dict[tuple[str, int, int], jax.Array] = {}
    for (name, size), sizes in wanted.items():
        order = sorted(sizes)
        for common, found in zip(order, resize.adjoints(maps[name, size], order), strict=True):
            lowered[name, size, common] = found
    tables, permuted = {}, {}
    for (a, s, common, null), columns in groups.items():
        rows = lowered[a, s, common]
        count, given = rows.shape[3], 1
        if null and sources is not None:
            # The exchange is one of the rows' images: they have fewer units than the columns.
            rows = jnp.concatenate([rows, *(rows[order] * scale for order in sources)], 3)
            given += len(sources)
        beside = jnp.concatenate([_flat(lowered[b, t, common]) for b, t in columns], 1)
        found = product(_flat(rows), beside).reshape(given, count, -1)
        low = 0
        for b, t in columns:
            high = low + lowered[b, t, common].shape[3]
            tables[f"{a}/{b}/{s}/{t}"] = found[0, :, low:high]
            if null:
                permuted[f"{a}/{b}/{s}/{t}"] = found[1:, :, low:high]
            low = high
    for name, s, t in mirrored:
        tables[f"{name}/{name}/{s}/{t}"] = tables[f"{name}/{name}/{t}/{s}"].T
    return tables, permuted


def _flat(maps: jax.Array) -> jax.Array:
    """Maps `[batch, s, s, units]` as `[images and positions, units]`."""
    return maps.reshape(-1, maps.shape[3])


def _invalid(array: jax.Array, mask: jax.Array, sums: jax.Array) -> jax.Array:
    """Number of images in which each unit has a value that is not finite, `[units]` int32.

    Args:
      array: `[batch, size, size, units]`.
      mask: `[batch]`, images that count.
      sums: `[batch, units]`, sums of squares: where all are finite there is nothing to count.
    """

    def counted() -> jax.Array:
        bad = ~jnp.isfinite(array) & mask.reshape(-1, 1, 1, 1)
        return jnp.sum(jnp.any(bad, (1, 2)), 0, dtype=jnp.int32)

    finite = jnp.isfinite(sums)
    none = jnp.sum(~finite, 0, dtype=jnp.int32)  # of the sums' devices, unlike a constant
    return jax.lax.cond(jnp.all(finite), lambda: none, counted)


def _exchanges(mask: jax.Array, rolls: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sources `[permutations, batch]`, and the number of images that take part in each exchange.

    The valid images, wherever they stand, are exchanged in a circle: the rows of the image that
    stands before, by the roll, meet an image's columns. A single one sits out.
    """
    count = jnp.sum(mask, dtype=jnp.int32)
    places = jnp.argsort(~mask, stable=True)  # of the valid images first
    rank = jnp.cumsum(mask, dtype=jnp.int32) - 1
    steps = 1 + (rolls - 1) % jnp.maximum(count - 1, 1)
    sources = places[(rank.reshape(1, -1) - steps.reshape(-1, 1)) % jnp.maximum(count, 1)]
    return sources, jnp.where(count > 1, count, 0)


def _scatter(table: jax.Array, axis: int, devices: int) -> jax.Array:
    """Sums a table over the devices and leaves each with its block of rows."""
    missing = -table.shape[axis] % devices
    padding = [(0, missing if index == axis else 0) for index in range(table.ndim)]
    return jax.lax.psum_scatter(
        jnp.pad(table, padding), AXES, scatter_dimension=axis, tiled=True
    )
