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
from rosetta.state import (
    Activations,
    MiningState,
    Plan,
    grouped_by_size,
    images_of,
    init,
    merge,
    state_shardings,
)
from rosetta.sums import Sum
from rosetta.terms import contributions
from rosetta.units import MapError

__all__ = [
    "MiningState", "Plan", "check_images", "init", "make_update", "merge", "state_shardings",
]


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
    contribute = functools.partial(contributions, plan, mesh)
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
