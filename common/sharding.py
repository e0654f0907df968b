"""Device mesh with the axes ("data", "fsdp") and sharding rules as regexes over parameter paths."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any
# (regex, spec): spec names the mesh axis (or a tuple of axes, or None) of each leading dimension.
Rules = Sequence[tuple[str, tuple]]

REPLICATED: Rules = ((".*", ()),)
AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with axes ("data", "fsdp") of automatic axis type.

    Args:
        data: size of the data axis; -1 uses all devices that `fsdp` leaves.
        fsdp: size of the parameter axis.
        devices: devices to use; all global devices by default.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    if fsdp < 1 or (data != -1 and data < 1):
        raise ValueError(f"mesh sizes must be positive (data may be -1), got {data=}, {fsdp=}")
    if data == -1:
        if count % fsdp:
            raise ValueError(f"fsdp={fsdp} does not divide the {count} devices")
        data = count // fsdp
    if data * fsdp != count:
        raise ValueError(f"mesh {data=} x {fsdp=} needs {data * fsdp} devices, there are {count}")
    return Mesh(
        np.asarray(devices, dtype=object).reshape(data, fsdp),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
    )


def path_name(path: tuple) -> str:
    """Returns a key path of `jax.tree_util` joined with "/", for example "params/dense/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings_for(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """Returns the `NamedSharding` of every leaf of `tree`.

    The first rule whose regex is found (`re.search`) in the leaf's path decides. Its spec may be
    shorter than the leaf's rank, the remaining dimensions are not split. Scalars are replicated
    without asking the rules: there is nothing to split.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s.
        mesh: the device mesh.
        rules: `(regex, spec)` pairs, for example `("kernel$", (None, "fsdp"))`.

    Raises:
        ValueError: no rule matches a leaf, a spec is longer than the leaf's rank, names an axis the
            mesh lacks, or an axis does not divide the dimension it splits.
    """
    compiled = [(re.compile(pattern), tuple(spec)) for pattern, spec in rules]

    def leaf_sharding(path: tuple, leaf: Any) -> NamedSharding:
        name, shape = path_name(path), tuple(np.shape(leaf))
        if not shape:
            return NamedSharding(mesh, PartitionSpec())
        for pattern, spec in compiled:
            if pattern.search(name):
                _check_spec(name, shape, spec, pattern.pattern, mesh)
                return NamedSharding(mesh, PartitionSpec(*spec))
        raise ValueError(f"no sharding rule matches parameter '{name}' of shape {shape}")

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def _check_spec(name: str, shape: tuple, spec: tuple, pattern: str, mesh: Mesh) -> None:
    """Raises ValueError where `spec` does not fit an array of `shape` on `mesh`."""
    where = f"sharding rule '{pattern}' for parameter '{name}'"
    if len(spec) > len(shape):
        raise ValueError(f"{where} names {len(spec)} dimensions, the parameter has {len(shape)}")
    for index, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise ValueError(f"{where} names axis '{unknown[0]}', the mesh has {mesh.axis_names}")
        parts = int(np.prod([mesh.shape[axis] for axis in axes], dtype=np.int64))
        if size % parts:
            raise ValueError(
                f"{where}: axis {entry!r} of size {parts} does not divide dimension {index} of size"
                f" {size}"
            )


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Returns `tree` with the given shardings; every process holds the same values of `tree`."""

    def place_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array):
            # An equivalent sharding of another kind is another compilation to `jit`.
            named = isinstance(leaf.sharding, NamedSharding)
            if named and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                # device_put takes no typed keys where devices belong to other processes.
                data = jax.device_put(jax.random.key_data(leaf), sharding)
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(leaf, sharding)

    return jax.tree.map(place_leaf, tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its leading dimension is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def init_sharded(init_fn: Callable[..., PyTree], mesh: Mesh, rules: Rules, *args: Any) -> PyTree:
    """Returns `init_fn(*args)` computed in its sharded form: no device holds the whole tree."""
    shardings = shardings_for(jax.eval_shape(init_fn, *args), mesh, rules)
    return jax.jit(init_fn, out_shardings=shardings)(*args)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Returns global arrays made of every process's local part of the batch.

    Args:
        batch: pytree of host arrays `[local batch, ...]`; the global batch is the concatenation
            over processes. Global `jax.Array`s that span the mesh already are passed through.
        mesh: the device mesh.

    Raises:
        ValueError: a leading dimension is missing or is not divided by the local devices.
    """
    sharding = batch_sharding(mesh)
    local_devices = len(mesh.local_devices)

    def place(path: tuple, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set:
            if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf
        array = np.asarray(leaf)
        if array.ndim == 0 or array.shape[0] % local_devices:
            raise ValueError(
                f"batch entry '{path_name(path)}' has shape {array.shape}: its leading dimension is"
                f" not divided by the {local_devices} devices of this process"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree_util.tree_map_with_path(place, batch)
