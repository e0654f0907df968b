"""One pass of mining: latents to images to maps to sums, one compiled step a batch, resumable.

Latents of batch i come from `fold_in(key, i)`: nothing is stored, every pass sees the same images,
and a run that was stopped continues from the saved sums as if it had not been.
"""

import dataclasses
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
from rosetta.sums import Sum
from rosetta.zoo.tapped import Generator, Tapped, forward, parameters

__all__ = ["latents", "load_state", "mine", "save_state"]


def latents(generator: Generator, seed: int, batch: int, size: int) -> Any:
    """The latents of one batch of a run."""
    return generator.sample(jax.random.fold_in(jax.random.key(seed), batch), size)


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
      save_seconds: time between two savings.

    Raises:
      ValueError: the file's sums belong to another plan or to more batches.
      MapError: see `rosetta.mining.make_update`.
    """
    params = parameters(generator, models)
    if mesh is not None:
        whole = sharding.shardings_for(params, mesh, sharding.REPLICATED)
        params = sharding.place(params, whole)
    else:
        params = jax.device_put(params)
    run, update = forward(generator, models), mining.make_update(plan, mesh)

    def step(state: mining.MiningState, params: Any, z: Any) -> mining.MiningState:
        return update(state, run(params, z)[1])

    def batch(index: int) -> Any:
        z = latents(generator, seed, index, batch_size)
        return sharding.shard_batch(_local(z), mesh) if mesh is not None else z

    start: Callable[[Any, Any], mining.MiningState] = jax.jit(
        lambda params, z: mining.init(plan, run(params, z)[1], mesh=mesh)
    )
    if path is not None and path.is_file():
        state = load_state(path)
        _check(path, state, jax.eval_shape(start, params, batch(0)))
    else:
        state = start(params, batch(0))
    if mesh is not None:
        state = sharding.place(state, mining.state_shardings(state, mesh))
    done = int(state.batches)
    if done > batches:
        raise ValueError(f"{path} holds the sums of {done} batches, asked for are {batches}")
    compiled = jax.jit(step, donate_argnums=0)
    saved = time.monotonic()
    show = distributed.is_main()
    for index in tqdm(range(done, batches), "mining", unit="batch", disable=None if show else True):
        state = compiled(state, params, batch(index))
        if path is not None and time.monotonic() - saved > save_seconds:
            save_state(path, state)
            saved = time.monotonic()
    if path is not None:
        save_state(path, state)
    return state


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


def _check(path: pathlib.Path, state: mining.MiningState, like: mining.MiningState) -> None:
    """Raises ValueError unless a saved state has the keys and shapes of `like`."""
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
