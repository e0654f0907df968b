"""One pass of mining: latents to images to maps to sums, two compiled steps a batch, resumable.

Latents of batch i come from `fold_in(key, i)`: nothing is stored, every pass sees the same images,
and a run that was stopped continues from the saved sums as if it had not been.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from common import distributed, sharding, storage
from rosetta import mining
from rosetta.state import centre_means
from rosetta.sums import Sum
from rosetta.units import Maps
from rosetta.zoo.tapped import Generator, Tapped, forward, parameters

__all__ = ["latents", "load_state", "maps_of", "mine", "save_state", "whole"]


def latents(generator: Generator, seed: int, batch: int, size: int) -> Any:
    """The latents of one batch of a run."""
    return generator.sample(jax.random.fold_in(jax.random.key(seed), batch), size)


def maps_of(
    generator: Generator, models: tuple[Tapped, ...]
) -> Callable[[Any, Any], dict[str, Maps]]:
    """The jitted function `(parameters by model, latents) -> maps by model and tap`."""
    both = forward(generator, models)
    return jax.jit(lambda params, z: both(params, z)[1])


def mine(
    plan: mining.Plan,
    generator: Generator,
    models: tuple[Tapped, ...],
    batches: int,
    batch_size: int,
    seed: int = 0,
    path: pathlib.Path | None = None,
    mesh: Mesh | None = None,
    save_seconds: float = 180.0,
    run: Callable[[Any, Any], Any] | None = None,
) -> mining.MiningState:
    """Mines `batches * batch_size` images.

    Args:
      plan: what is correlated; its layouts are those of the generator and the models (or blocks).
      generator: makes the images, once for all models.
      models: see them.
      batches: number of batches.
      batch_size: images of a batch over all devices and processes.
      seed: of the latents.
      path: `.safetensors` file in which the sums are saved now and then, and from which an
        interrupted run continues; None: neither.
      mesh: devices over which images and tables are split; None: one device.
      save_seconds: least time between two savings; large sums are saved less often, so that it
        takes at most a tenth of the time.
      run: `maps_of` the generator and models, so that several passes compile it once.

    Raises:
      ValueError: the file's sums belong to another plan, to other images or networks, or to more
        batches.
      MapError: see `rosetta.mining.make_update`.
    """
    params = parameters(generator, models)
    if mesh is not None:
        whole = sharding.shardings_for(params, mesh, sharding.REPLICATED)
        params = sharding.place(params, whole)
    else:
        params = jax.device_put(params)
    run = run or maps_of(generator, models)
    update = mining.make_update(plan, mesh)

    def batch(index: int) -> Any:
        z = latents(generator, seed, index, batch_size)
        return sharding.shard_batch(_local(z), mesh) if mesh is not None else z

    first = run(params, batch(0))
    start = functools.partial(mining.init, plan, mesh=mesh)
    shapes = jax.eval_shape(start, first)
    shardings = mining.state_shardings(shapes, mesh) if mesh is not None else None
    if path is not None and path.is_file():
        state = load_state(path)
        _check(path, state, shapes, centre_means(plan, first))
        state = state if shardings is None else sharding.place(state, shardings)
    else:
        # No device ever holds the whole tables.
        options: dict[str, Any] = {} if shardings is None else {"out_shardings": shardings}
        state = jax.jit(start, **options)(first)
    del first
    done = int(state.batches)
    if done > batches:
        raise ValueError(f"{path} holds the sums of {done} batches, asked for are {batches}")
    saved, cost = time.monotonic(), 0.0
    show = distributed.is_main()
    for index in tqdm(range(done, batches), "mining", unit="batch", disable=None if show else True):
        # Waits: maps of later batches would be made while those of earlier ones are in memory.
        state = jax.block_until_ready(update(state, run(params, batch(index))))
        if path is not None and time.monotonic() - saved > max(save_seconds, 10 * cost):
            begun = time.monotonic()
            save_state(path, state)
            saved = time.monotonic()
            cost = saved - begun
    if path is not None:
        save_state(path, state)
    return state


def whole(state: mining.MiningState) -> mining.MiningState:
    """The state with every array as a whole on every process; nothing changes for one process."""
    return state if jax.process_count() == 1 else jax.tree.map(_fetch, state)


def save_state(path: pathlib.Path, state: mining.MiningState) -> None:
    """Writes the sums (process 0; whole or not at all)."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {sharding.path_name(key): _fetch(leaf) for key, leaf in leaves}
    if distributed.is_main():
        storage.save_arrays(path, arrays)


def load_state(path: pathlib.Path) -> mining.MiningState:
    """Reads what `save_state` wrote, as host arrays."""
    found, _ = storage.load_arrays(path)
    fields: dict[str, Any] = {
        field.name: {} for field in dataclasses.fields(mining.MiningState)
    }
    for name, array in found.items():
        field, _, key = name.partition("/")
        if not key:
            fields[field] = array
        elif field in ("centres", "invalid"):
            fields[field][key] = array
        else:
            key, _, part = key.rpartition("/")
            fields[field].setdefault(key, {})[part] = array
    for field in ("sums", "squares", "products", "permuted"):
        fields[field] = {key: Sum(**parts) for key, parts in fields[field].items()}
    return mining.MiningState(**fields)


def _check(
    path: pathlib.Path, state: mining.MiningState, like: mining.MiningState, centres: Any
) -> None:
    """Raises ValueError unless a saved state has the keys and shapes of `like`, and these centres.

    The centres are the first batch's means, which differ for other latents, weights or settings.
    """
    shapes, other = (
        {
            sharding.path_name(key): tuple(leaf.shape)
            for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        for tree in (like, state)
    )
    if shapes != other:
        wrong = [name for name in {**shapes, **other} if shapes.get(name) != other.get(name)]
        raise ValueError(
            f"{path} holds the sums of another plan: {wrong[0]} is {other.get(wrong[0])} in the "
            f"file and {shapes.get(wrong[0])} in the plan"
        )
    for key, centre in centres.items():
        expected, found = _fetch(centre), _fetch(state.centres[key])
        # Another number of devices may add in another order.
        if np.abs(found - expected).max() > 1e-3 * np.abs(expected).max():
            raise ValueError(
                f"{path} holds the sums of other images or networks: the means of {key} over the "
                "first batch are others; remove the file to begin anew"
            )


def _local(z: Any) -> Any:
    """This process's part of a global batch of latents."""
    count, index = jax.process_count(), jax.process_index()

    def part(leaf: jax.Array) -> np.ndarray:
        each = len(leaf) // count
        return np.asarray(leaf[index * each : (index + 1) * each])

    return jax.tree.map(part, z)


def _fetch(leaf: jax.Array) -> np.ndarray:
    """A whole array on every host."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
