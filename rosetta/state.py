"""What is mined (the plan) and the running sums of it (the state), a pytree that can be saved."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from common.sharding import AXES, shardings_for
from rosetta.sums import Sum
from rosetta.units import Layout, MapError, Maps, group

__all__ = [
    "Activations", "MiningState", "Plan", "centre_means", "init", "merge", "state_shardings",
]

Activations = Mapping[str, Maps]  # model -> tap -> [batch, size, size, channels]
Grouped = Mapping[str, Mapping[int, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is correlated with what.

    Attributes:
      layouts: the models; all see the same images.
      pairs: names of row and column model of each table. A model may be paired with itself.
      permutations: number of additional tables for a pair, in which the column model's images
        are exchanged cyclically within each batch, so that no image meets itself: a null that
        keeps every unit's own statistics and spatial layout.
      seed: of the permutations.
      exchanged: the pairs that have the additional tables; None: all.
    """

    layouts: tuple[Layout, ...]
    pairs: tuple[tuple[str, str], ...]
    permutations: int = 0
    seed: int = 0
    exchanged: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        names = [layout.name for layout in self.layouts]
        if len(set(names)) != len(names):
            raise ValueError(f"models must have different names, got {names}")
        unknown = [name for pair in self.pairs for name in pair if name not in names]
        if unknown or not self.pairs or len(set(self.pairs)) != len(self.pairs):
            raise ValueError(f"pairs {self.pairs} of models {names}")
        if self.permutations < 0 or not set(self.exchanged or ()) <= set(self.pairs):
            raise ValueError(f"{self.permutations} permutations of {self.exchanged}")

    def layout(self, name: str) -> Layout:
        """The layout of a model."""
        return next(layout for layout in self.layouts if layout.name == name)

    def tables(self) -> list[tuple[str, str, int, int]]:
        """(row model, column model, row size, column size) of each block of the tables."""
        return [
            (a, b, s, t)
            for a, b in self.pairs
            for s in self.layout(a).grids
            for t in self.layout(b).grids
        ]

    def has_null(self, a: str, b: str) -> bool:
        """Whether a pair has tables with exchanged images."""
        return self.permutations > 0 and (self.exchanged is None or (a, b) in self.exchanged)

    def targets(self) -> list[tuple[str, int, int]]:
        """(model, size, common size) of each set of moments: own sizes, and what pairs need."""
        found = {(layout.name, size, size) for layout in self.layouts for size in layout.grids}
        for a, b, s, t in self.tables():
            found |= {(a, s, max(s, t)), (b, t, max(s, t))}
        return sorted(found)


class MiningState(struct.PyTreeNode):
    """Running sums over the images seen so far; keys are "/"-joined names and sizes.

    Attributes:
      images: number of images, int32.
      batches: number of calls of the update, int32.
      centres: "model/size" -> `[units]`, subtracted from each unit (the first batch's mean).
      invalid: "model/size" -> `[units]`, int32 number of images with a value that is not finite.
      sums, squares: "model/size/common size" -> `[units]`, of the centred, enlarged maps.
      products: "rows/columns/size/size" -> `[rows, columns]`, sums of products.
      permuted: the same with exchanged images, `[permutations, rows, columns]`.
      paired: number of images in each permuted table, int32.
    """

    images: jax.Array
    batches: jax.Array
    centres: dict[str, jax.Array]
    invalid: dict[str, jax.Array]
    sums: dict[str, Sum]
    squares: dict[str, Sum]
    products: dict[str, Sum]
    permuted: dict[str, Sum]
    paired: jax.Array


def init(
    plan: Plan, activations: Activations, mask: jax.Array | None = None, mesh: Mesh | None = None
) -> MiningState:
    """An empty state, centred by the means of one batch of activations (which is not counted).

    Args:
      plan: what is correlated.
      activations: model -> tap -> maps of one batch of images.
      mask: `[batch]`, False for images that only fill up the batch.
      mesh: devices over which images and rows are split.

    Raises:
      MapError: activations that do not fit the plan, or models with different numbers of images.
    """
    centres = centre_means(plan, activations, mask)
    rows = {key: centre.shape[0] for key, centre in centres.items()}
    devices = mesh.devices.size if mesh else 1
    tables: dict[str, tuple[int, ...]] = {}
    nulls: dict[str, tuple[int, ...]] = {}
    for a, b, s, t in plan.tables():
        key = f"{a}/{b}/{s}/{t}"
        tables[key] = (-(-rows[f"{a}/{s}"] // devices) * devices, rows[f"{b}/{t}"])
        if plan.has_null(a, b):
            nulls[key] = (plan.permutations, *tables[key])
    vectors = {f"{name}/{s}/{t}": (rows[f"{name}/{s}"],) for name, s, t in plan.targets()}
    zero = jnp.zeros((), jnp.int32)
    return MiningState(
        images=zero,
        batches=jnp.zeros((), jnp.int32),
        centres=centres,
        invalid={key: jnp.zeros(count, jnp.int32) for key, count in rows.items()},
        sums={key: Sum.zeros(shape) for key, shape in vectors.items()},
        squares={key: Sum.zeros(shape) for key, shape in vectors.items()},
        products={key: Sum.zeros(shape) for key, shape in tables.items()},
        permuted={key: Sum.zeros(shape) for key, shape in nulls.items()},
        paired=jnp.zeros((), jnp.int32),
    )


def state_shardings(state: MiningState, mesh: Mesh) -> Any:
    """The shardings of a state on a mesh: rows of the tables over all devices, the rest whole."""
    rules = (("^products/", (AXES,)), ("^permuted/", (None, AXES)), (".*", ()))
    return shardings_for(state, mesh, rules)


def merge(first: MiningState, second: MiningState) -> MiningState:
    """The state of both sets of images, of two states that `init` centred alike.

    Raises:
      ValueError: the states have other keys, shapes or centres.
    """
    shapes = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (first, second))
    ]
    if shapes[0] != shapes[1]:
        raise ValueError("the states belong to different plans")
    for key, centre in first.centres.items():
        if not bool(jnp.array_equal(centre, second.centres[key])):
            raise ValueError(f"the states have different centres of {key}; use one `init` for both")
    both = jax.tree.map(jnp.add, first, second)

    def joined(a: dict[str, Sum], b: dict[str, Sum]) -> dict[str, Sum]:
        parts = {key: total.add(b[key].high) for key, total in a.items()}
        return {key: Sum(s.high, s.low + b[key].low) for key, s in parts.items()}

    return both.replace(
        centres=first.centres,
        sums=joined(first.sums, second.sums),
        squares=joined(first.squares, second.squares),
        products=joined(first.products, second.products),
        permuted=joined(first.permuted, second.permuted),
    )


def grouped_by_size(plan: Plan, activations: Activations, mask: jax.Array | None) -> Grouped:
    """The activations by model and size; checks that all models have the same images."""
    missing = [layout.model for layout in plan.layouts if layout.model not in activations]
    if missing:
        raise MapError(f"no activations of model {missing[0]!r}; there are {list(activations)}")
    counts = {layout.name: layout.check(activations[layout.model]) for layout in plan.layouts}
    if mask is not None:
        counts["mask"] = mask.shape[0]
    if len(set(counts.values())) != 1:
        raise MapError(f"models with different numbers of images: {counts}")
    return {layout.name: group(layout, activations[layout.model]) for layout in plan.layouts}


def images_of(grouped: Grouped) -> int:
    """Number of images of one batch."""
    return next(iter(next(iter(grouped.values())).values())).shape[0]


@functools.partial(jax.jit, static_argnums=0)
def centre_means(
    plan: Plan, activations: Activations, mask: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Mean of each unit over the finite values of one batch, "model/size" -> `[units]`."""
    centres = {}
    for name, maps in grouped_by_size(plan, activations, mask).items():
        for size, array in maps.items():
            valid = jnp.isfinite(array)
            if mask is not None:
                valid = valid & mask.reshape(-1, 1, 1, 1)
            count = jnp.sum(valid, (0, 1, 2), dtype=jnp.float32)
            total = jnp.sum(jnp.where(valid, array, 0), (0, 1, 2))
            centres[f"{name}/{size}"] = total / jnp.maximum(count, 1)
    return centres
