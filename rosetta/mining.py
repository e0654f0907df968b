"""Exact Pearson correlation of all pairs of units of several models, in one pass over the images.

For units a and b with maps of sizes s_a and s_b the smaller map is enlarged bilinearly to
t = max(s_a, s_b), and mean, variance and covariance run over all images and the t x t positions
(Dravid et al., ICCV 2023). Nothing is enlarged here: see `rosetta.resize`. Sums are
float32 products of values centred by the first batch's means, accumulated with compensation
(`rosetta.sums`), so the result does not depend on how the images are split into batches.

The state is a pytree of arrays: save it after any batch and continue later. With a mesh, images are
split over its devices and each device keeps a block of rows of every table. A table that is too
large for that is mined in blocks of units (`Layout.block`) and reduced to its best entries
(`rosetta.neighbours`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from common.sharding import AXES
from rosetta import resize
from rosetta.state import (
    Activations,
    Grouped,
    MiningState,
    Plan,
    grouped_by_size,
    images_of,
    init,
    merge,
    state_shardings,
)
from rosetta.sums import Sum
from rosetta.units import MapError

__all__ = [
    "MiningState", "Plan", "check_images", "init", "make_update", "merge", "product",
    "state_shardings",
]

_HIGHEST = jax.lax.Precision.HIGHEST
PART = 512  # positions added in one product of matrices


def make_update(plan: Plan, mesh: Mesh | None = None) -> Callable[..., MiningState]:
    """The function `update(state, activations, mask=None, images=None) -> state` that adds a batch.

    Args:
      plan: what is correlated.
      mesh: if given, activations are split over its devices along the images and the state's
        tables along their rows (`state_shardings`); the number of images must be a multiple of
        the number of devices.

    It is jitted; the old state is donated. `mask` is `[batch]`, False for images that only fill up
    the batch. `images` is model -> names of its images in their order, for maps that were not
    made together: they must be the same for all models.

    The update raises MapError for activations that do not fit the plan, for models with different
    images or numbers of them, or for fewer images a device than permutations + 1.
    """
    contribute = functools.partial(_contributions, plan, mesh)
    if mesh is not None:
        whole, split = PartitionSpec(), PartitionSpec(AXES)
        contribute = jax.shard_map(
            contribute,
            mesh=mesh,
            in_specs=(whole, split, split, whole),
            out_specs={
                "small": whole,
                "products": split,
                "permuted": PartitionSpec(None, AXES),
            },
        )

    @functools.partial(jax.jit, donate_argnums=0)
    def add(
        state: MiningState, activations: Activations, mask: jax.Array | None = None
    ) -> MiningState:
        grouped = grouped_by_size(plan, activations, mask)
        count = images_of(grouped)
        devices = mesh.devices.size if mesh else 1
        if count % devices or (plan.permutations and count // devices <= plan.permutations):
            raise MapError(
                f"{count} images for {devices} devices and {plan.permutations} permutations: each "
                "device needs the same number of them, and more than there are permutations"
            )
        if mask is None:
            mask = jnp.ones(count, bool)
        key = jax.random.fold_in(jax.random.key(plan.seed), state.batches)
        rolls = jax.random.permutation(key, max(count // devices - 1, 1))[: plan.permutations] + 1
        new = contribute(state.centres, grouped, mask, rolls)
        small = new["small"]

        def added(old: dict[str, Sum], terms: Mapping[str, jax.Array]) -> dict[str, Sum]:
            return {key: total.add(terms[key]) for key, total in old.items()}

        return state.replace(
            images=state.images + small["images"],
            batches=state.batches + 1,
            invalid={key: n + small["invalid"][key] for key, n in state.invalid.items()},
            sums=added(state.sums, small["sums"]),
            squares=added(state.squares, small["squares"]),
            products=added(state.products, new["products"]),
            permuted=added(state.permuted, new["permuted"]),
            paired=state.paired + small["paired"],
        )

    def update(
        state: MiningState,
        activations: Activations,
        mask: jax.Array | None = None,
        images: Mapping[str, Sequence[Any]] | None = None,
    ) -> MiningState:
        if images is not None:
            check_images(plan, activations, images)
        return add(state, activations, mask)

    return update


def check_images(
    plan: Plan, activations: Activations, images: Mapping[str, Sequence[Any]]
) -> None:
    """Checks that all models have seen the same images in the same order.

    Args:
      plan: whose models are meant.
      activations: model -> tap -> maps.
      images: model -> names of its images.

    Raises:
      MapError: models with other images, without names, or with another number of names than maps.
    """
    first = plan.layouts[0].model
    for layout in plan.layouts:
        name = layout.model
        if name not in activations:
            continue  # an error of its own when the batch is added
        if name not in images:
            raise MapError(f"model {name!r} has no names of its images; there are {list(images)}")
        names, expected = list(images[name]), list(images[first])
        count = layout.check(activations[name])
        if len(names) != count:
            raise MapError(f"model {name!r}: {len(names)} names of {count} images")
        if len(names) != len(expected):
            raise MapError(f"models with different numbers of images: {first!r} and {name!r}")
        for place, (a, b) in enumerate(zip(expected, names, strict=True)):
            if a != b:
                raise MapError(
                    f"models with different images: number {place} is {a!r} for {first!r} and "
                    f"{b!r} for {name!r}"
                )


def _contributions(
    plan: Plan,
    mesh: Mesh | None,
    centres: Mapping[str, jax.Array],
    grouped: Grouped,
    mask: jax.Array,
    rolls: jax.Array,
) -> dict[str, Any]:
    """One batch's (one device's) terms of all sums; with a mesh, summed over the devices."""
    weight = mask.reshape(-1, 1, 1, 1)
    centred: dict[tuple[str, int], jax.Array] = {}
    invalid = {}
    for name, maps in grouped.items():
        for size, array in maps.items():
            key = f"{name}/{size}"
            bad = ~jnp.isfinite(array) & weight
            invalid[key] = jnp.sum(jnp.any(bad, (1, 2)), 0, dtype=jnp.int32)
            moved = array - centres[key].reshape(1, 1, 1, -1)
            centred[name, size] = jnp.where(weight & ~bad, moved, 0)
    moments = {
        f"{name}/{s}/{t}": resize.moments(centred[name, s], t) for name, s, t in plan.targets()
    }
    lowered: dict[tuple[str, int, int], jax.Array] = {}

    def at(name: str, size: int, common: int) -> jax.Array:
        if (name, size, common) not in lowered:
            lowered[name, size, common] = resize.adjoint(centred[name, size], common)
        return lowered[name, size, common]

    operands = {
        f"{a}/{b}/{s}/{t}": (at(a, s, min(s, t)), at(b, t, min(s, t)))
        for a, b, s, t in plan.tables()
    }
    products = {key: product(*pair) for key, pair in operands.items()}
    orders, paired = _exchanges(mask, rolls)

    def exchanged(order: jax.Array) -> dict[str, jax.Array]:
        keep = (mask & (paired > 0)).astype(jnp.float32).reshape(-1, 1, 1, 1)
        return {
            key: product(a, b[order] * keep)
            for key, (a, b) in operands.items()
            if plan.has_null(*key.split("/")[:2])
        }

    permuted = jax.lax.map(exchanged, orders) if plan.permutations else {}
    small = {
        "images": jnp.sum(mask, dtype=jnp.int32),
        "paired": paired,
        "invalid": invalid,
        "sums": {key: total for key, (total, _) in moments.items()},
        "squares": {key: square for key, (_, square) in moments.items()},
    }
    if mesh is None:
        return {"small": small, "products": products, "permuted": permuted}
    scatter = functools.partial(_scatter, devices=mesh.devices.size)
    return {
        "small": jax.lax.psum(small, AXES),
        "products": {key: scatter(table, axis=0) for key, table in products.items()},
        "permuted": {key: scatter(table, axis=1) for key, table in permuted.items()},
    }


def product(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sum over images and positions of all products of channels, `[row units, column units]`.

    Long sums are made in parts, because a float32 product of matrices may add in one long chain.
    """
    flat = [maps.reshape(-1, maps.shape[3]) for maps in (rows, columns)]
    length = flat[0].shape[0]
    if length <= PART:
        return _dot(*flat)
    parts = [
        jnp.pad(x, ((0, -length % PART), (0, 0))).reshape(-1, PART, x.shape[1]) for x in flat
    ]

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _dot(*part), None

    start = _dot(parts[0][0], parts[1][0])
    return jax.lax.scan(add, start, (parts[0][1:], parts[1][1:]))[0]


def _dot(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())), precision=_HIGHEST)


def _exchanges(mask: jax.Array, rolls: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orders `[permutations, batch]`, and the number of images that take part in each.

    The valid images, wherever they stand, are exchanged in a circle; a single one sits out.
    """
    count = jnp.sum(mask, dtype=jnp.int32)
    places = jnp.argsort(~mask, stable=True)  # of the valid images first
    rank = jnp.cumsum(mask, dtype=jnp.int32) - 1
    steps = 1 + (rolls - 1) % jnp.maximum(count - 1, 1)
    orders = places[(rank.reshape(1, -1) + steps.reshape(-1, 1)) % jnp.maximum(count, 1)]
    return orders, jnp.where(count > 1, count, 0)


def _scatter(table: jax.Array, axis: int, devices: int) -> jax.Array:
    """Sums a table over the devices and leaves each with its block of rows."""
    missing = -table.shape[axis] % devices
    padding = [(0, missing if index == axis else 0) for index in range(table.ndim)]
    return jax.lax.psum_scatter(
        jnp.pad(table, padding), AXES, scatter_dimension=axis, tiled=True
    )
