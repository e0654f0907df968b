"""A population of trainings as one program: seeds and weights are a leading axis of the state."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.sharding import AXES, REPLICATED, Rules
from ign.losses import Weights

PyTree = Any
Step = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, dict]]

MODES = ("auto", "vmap", "map")
SPLIT: Rules = ((".*", (AXES,)),)
"""Sharding rule of a population: its leading axis over all devices."""


class Member(NamedTuple):
    """One training: its seed and the weights in which it differs from the configuration."""

    seed: int
    changes: dict[str, float]

    @property
    def name(self) -> str:
        """For tables, such as "seed 0, clamp 1.5"."""
        return ", ".join([f"seed {self.seed}", *(f"{k} {v:g}" for k, v in self.changes.items())])


def members(seeds: Sequence[int], grid: Mapping[str, Sequence[float]]) -> list[Member]:
    """All combinations of the seeds with the values of the grid (name of a weight -> values).

    Raises:
        ValueError: no seeds, or a name that is no weight of the loss.
    """
    known = set(Weights.__dataclass_fields__)
    unknown = sorted(set(grid) - known)
    if unknown or not seeds:
        raise ValueError(f"sweep over seeds {tuple(seeds)} and {unknown}; weights are {known}")
    combinations = itertools.product(*grid.values())
    changes = [dict(zip(grid, values, strict=True)) for values in combinations]
    return [Member(int(seed), change) for change in changes for seed in seeds]


def stack_weights(base: Weights, all_members: Sequence[Member]) -> Weights:
    """One set of weights for each member, as arrays `[members]`."""
    sets = [base.replace(**member.changes) for member in all_members]
    return jax.tree.map(lambda *values: jnp.asarray(values, jnp.float32), *sets)


def make_step(step: Step, count: int, mode: str = "auto") -> Step:
    """The step of `count` members: states `[count, ...]`, batches `[count, batch, ...]`.

    A population of one has batches `[batch, ...]`, which data parallelism can split.

    Args:
        step: the step of one member.
        count: number of members.
        mode: "vmap" trains all at once; "map" one after another within the program, which is faster
            on CPUs, where convolutions with a batch of kernels are slow, and needs the memory of
            one member's activations only. "auto" is "map" on a single CPU device.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"population mode {mode!r}, expected one of {MODES}")
    if mode == "auto":
        single = jax.device_count() == 1 and jax.default_backend() == "cpu"
        mode = "map" if single else "vmap"
    if count == 1:

        def alone(states: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, dict]:
            state = jax.tree.map(lambda leaf: leaf[0], states)
            state, metrics = step(state, batch, jax.random.fold_in(key, 0))
            return jax.tree.map(lambda leaf: leaf[None], (state, metrics))

        return alone

    def together(states: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, dict]:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        if mode == "vmap":
            return jax.vmap(step)(states, batch, keys)
        return jax.lax.map(lambda args: step(*args), (states, batch, keys))

    return together


def rules(count: int) -> Rules:
    """Sharding of the state: split over the devices for a population, replicated for one member.

    Raises:
        ValueError: the devices do not divide the members.
    """
    if count == 1:
        return REPLICATED
    if count % jax.device_count():
        raise ValueError(f"{count} members are no multiple of the {jax.device_count()} devices")
    return SPLIT


def batches(
    source: Mapping[str, np.ndarray], batch_size: int, seeds: Sequence[int]
) -> Callable[[int], dict[str, np.ndarray]]:
    """Returns `step -> batch`: this process's part of the members' batches of that step.

    Each member runs through its own permutations of the source, one an epoch, and batch n of a seed
    is always the same, so a resumed run needs no stored position.

    Args:
        source: arrays `[examples, ...]`.
        batch_size: examples of one member's batch.
        seeds: one for each member.

    Raises:
        ValueError: the source has fewer examples than a batch, or the processes do not divide the
            leading axis.
    """
    count = len(next(iter(source.values())))
    if count < batch_size:
        raise ValueError(f"{count} examples do not fill a batch of {batch_size}")
    axis = batch_size if len(seeds) == 1 else len(seeds)
    processes, process = jax.process_count(), jax.process_index()
    if axis % processes:
        raise ValueError(f"{processes} processes do not divide {axis} rows")
    share = slice(process * axis // processes, (process + 1) * axis // processes)
    whole = count // batch_size  # batches of an epoch; the examples left over change each time
    orders: dict[int, tuple[int, np.ndarray]] = {}

    def rows(seed: int, step: int) -> np.ndarray:
        epoch, place = divmod(step, whole)
        if seed not in orders or orders[seed][0] != epoch:
            orders[seed] = (epoch, np.random.default_rng([seed, epoch]).permutation(count))
        return orders[seed][1][place * batch_size : (place + 1) * batch_size]

    def batch(step: int) -> dict[str, np.ndarray]:
        if len(seeds) == 1:
            chosen = rows(seeds[0], step)[share]
        else:
            chosen = np.stack([rows(seed, step) for seed in seeds[share]])
        return {name: values[chosen] for name, values in source.items()}

    return batch
