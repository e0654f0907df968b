"""Tests of the array checksums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.checksum import checksum, checksums
from common.sharding import batch_sharding, make_mesh


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "uint32", "complex64"])
def test_checksum_sees_single_bits_and_order(dtype):
    values = np.random.default_rng(0).integers(0, 2, (8, 6))
    array = jnp.asarray(values).astype(dtype)
    reference = int(checksum(array))
    changed = array.at[3, 4].set(jnp.asarray(1 - values[3, 4]).astype(dtype))
    others = [changed, array[::-1], jnp.zeros_like(array), array.T, array.reshape(6, 8)[::-1]]
    assert reference not in [int(checksum(other)) for other in others]
    assert len({int(checksum(other)) for other in others}) == len(others)
    sharded = jax.device_put(array, batch_sharding(make_mesh()))
    assert int(checksum(sharded)) == reference


def test_many_sharded_arrays():
    """All sums in flight at once locked up XLA's CPU client, which ended the process."""
    values = np.random.default_rng(0).normal(size=(8, 37, 5)).astype(np.float32)
    array = jax.device_put(values, batch_sharding(make_mesh()))
    found = checksums({f"leaf{i}": array for i in range(200)})
    assert set(found.values()) == {int(checksum(jnp.asarray(values)))} and len(found) == 200
