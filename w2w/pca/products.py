"""Products with blocks of rows on the devices of this process, and sums over processes.

The rows of a block are split over the mesh axis "data". Every device keeps its own sum of
``X^T (X Q)`` over all its rows, without communication; sums are added on the host once a pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from common.sharding import make_mesh

_HIGHEST = jax.lax.Precision.HIGHEST
_SPLIT, _WHOLE = PartitionSpec("data"), PartitionSpec()
Device = Any


class Moments(NamedTuple):
    """Number of rows, and per column their mean and sum of squared deviations, in float64."""

    rows: float
    mean: np.ndarray
    squares: np.ndarray

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows (Chan, Golub and LeVeque, 1983)."""
        if other.rows == 0 or self.rows == 0:
            return self if other.rows == 0 else other
        count, shift = self.rows + other.rows, other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * (other.rows / count),
            self.squares + other.squares + shift**2 * (self.rows * other.rows / count),
        )


class Products:
    """Standardised blocks and their products on ``devices`` (of this process; all by default)."""

    def __init__(self, devices: Any = None):
        self.mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        self.count = self.mesh.size
        local = partial(jax.shard_map, mesh=self.mesh)
        split, whole = _SPLIT, _WHOLE
        self._standardise = jax.jit(local(_standardise, in_specs=(split, split, whole, whole),
                                          out_specs=split))  # fmt: skip
        self._times = jax.jit(local(_times, in_specs=(split, whole), out_specs=split))
        self._transposed = jax.jit(
            local(_transposed_times, in_specs=(split, split), out_specs=split)
        )
        self._moments = jax.jit(local(_moments, in_specs=(split, split), out_specs=split))
        self._outer = jax.jit(local(_outer, in_specs=(split, whole), out_specs=split))
        self._finite = jax.jit(lambda y: jnp.isfinite(y).all(axis=1))
        self._add = jax.jit(jnp.add, donate_argnums=0)
        self._panel = jax.jit(
            lambda x, start, stop: local(
                lambda part: _transposed_times(part[:, start:stop], part[:, start:]),
                in_specs=split,
                out_specs=split,
            )(x),
            static_argnums=(1, 2),
        )

    def place(self, array: np.ndarray) -> Device:
        """The array on every device."""
        return jax.device_put(array, NamedSharding(self.mesh, _WHOLE))

    def standardise(
        self, block: np.ndarray, rows: int, shift: Device, scale: Device
    ) -> tuple[Device, Device]:
        """``(block - shift) * scale`` in float32, with zero rows up to ``rows``, and ``mask [b]``.

        The number of rows is rounded up to a multiple of the number of devices.
        """
        mask = self.split(np.ones(len(block), np.float32), rows)
        if len(block) == len(mask):
            placed = jax.device_put(block, mask.sharding)
        else:
            placed = self.split(block, rows)
        return self._standardise(placed, mask, shift, scale), mask

    def times(self, x: Device, right: Device) -> Device:
        """``X right``, rows split as those of ``x``."""
        return self._times(x, right)

    def accumulate(self, total: Device | None, x: Device, left: Device) -> Device:
        """Adds ``X^T left`` to every device's own total ``[devices * D, l]``."""
        term = self._transposed(x, left)
        return term if total is None else self._add(total, term)

    def collect(self, total: Device | None, shape: tuple[int, ...]) -> np.ndarray:
        """The sum of an accumulated total over devices and processes, ``[D, l]`` on the host.

        None is a process without rows.
        """
        parts = [] if total is None else [np.asarray(s.data) for s in total.addressable_shards]
        result = np.array(parts[0]) if parts else np.zeros(shape, np.float32)
        for part in parts[1:]:
            result += part
        return sum_over_processes(result)

    def split(self, array: np.ndarray, rows: int) -> Device:
        """Rows over the devices, with zero rows as :meth:`standardise` adds them."""
        padded = np.zeros((-(-rows // self.count) * self.count, *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        return jax.device_put(padded, NamedSharding(self.mesh, _SPLIT))

    def finite(self, x: Device) -> Device:
        """Whether each row is finite, ``[b]``."""
        return self._finite(x)

    def add_triangle(self, total: np.ndarray, x: Device, panels: int = 8) -> None:
        """Adds the upper triangle of ``X^T X``, by panels of columns, to float64 ``[D, D]``."""
        d = x.shape[1]
        step = max(256, -(-d // panels))
        for start in range(0, d, step):
            panel = self._panel(x, start, min(start + step, d))
            for shard in panel.addressable_shards:
                total[start : start + step, start:] += np.asarray(shard.data)

    def moments(self, x: Device, mask: Device) -> Moments:
        """Moments of the columns of a block."""
        count, mean, squares = (np.asarray(a, np.float64) for a in self._moments(x, mask))
        result = Moments(count[0], mean[0], squares[0])
        for part in zip(count[1:], mean[1:], squares[1:], strict=True):
            result = result.merge(Moments(*part))
        return result

    def outer(self, x: Device, other: Device) -> np.ndarray:
        """``X other^T [b, c]``, on the host."""
        return np.asarray(self._outer(x, other))


def _standardise(
    block: jax.Array, mask: jax.Array, shift: jax.Array, scale: jax.Array
) -> jax.Array:
    return (block.astype(jnp.float32) - shift[None]) * scale[None] * mask[:, None]


def _times(x: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(x, right, precision=_HIGHEST)


def _transposed_times(x: jax.Array, left: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, left, (((0,), (0,)), ((), ())), precision=_HIGHEST)


def _outer(x: jax.Array, other: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, other, (((1,), (1,)), ((), ())), precision=_HIGHEST)


def _moments(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    count = jnp.sum(mask)
    mean = _column_sums(x, mask) / jnp.maximum(count, 1)
    squares = _column_sums(jnp.square(x - mean[None]), mask)
    return count[None], mean[None], squares[None]


def _column_sums(x: jax.Array, mask: jax.Array, groups: int = 16) -> jax.Array:
    """``mask^T X``, in two products of matrices, for short sums.

    XLA's reduction over the rows of a large matrix is hundreds of times slower on a CPU.
    """
    member = (jnp.arange(len(mask)) % groups)[None] == jnp.arange(groups)[:, None]
    parts = jnp.matmul(jnp.where(member, mask[None], 0), x, precision=_HIGHEST)
    return jnp.matmul(jnp.ones((1, groups), x.dtype), parts, precision=_HIGHEST)[0]


def over_processes(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes ``[processes, ...]``, bit for bit in any dtype."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    gathered = multihost_utils.process_allgather(content)
    return np.asarray(gathered).reshape(-1).view(array.dtype).reshape(-1, *array.shape)


def sum_over_processes(array: np.ndarray, rows: int = 8192) -> np.ndarray:
    """The sum of an array over processes, in place and in the same order everywhere."""
    if jax.process_count() > 1:
        for start in range(0, len(array), rows):
            array[start : start + rows] = over_processes(array[start : start + rows]).sum(axis=0)
    return array


def merge_over_processes(moments: Moments) -> Moments:
    """The moments of the rows of all processes."""
    if jax.process_count() == 1:
        return moments
    counts, means, squares = (over_processes(np.asarray(a, np.float64)) for a in moments)
    result = Moments(float(counts[0]), means[0], squares[0])
    for part in zip(counts[1:], means[1:], squares[1:], strict=True):
        result = result.merge(Moments(*part))
    return result


def checked(function: Callable[[], Any]) -> Any:
    """``function()``, whose error on one process is raised on all: none waits for one that failed.

    Raises:
      RuntimeError: another process failed.
    """
    error, result = None, None
    try:
        result = function()
    except Exception as caught:
        error = caught
    failed = jax.process_count() > 1 and over_processes(np.asarray(error is not None)).any()
    if error is not None:
        raise error
    if failed:
        raise RuntimeError("another process failed; its own error says why")
    return result
