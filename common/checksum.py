"""Checksums of arrays on their devices, to notice a checkpoint whose data have changed on disk.

The array files of a checkpoint carry no checksum of their own: a flipped bit would be restored
without a word.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def checksum(array: jax.Array) -> jax.Array:
    """Returns a 32-bit checksum of an array, equal for every sharding of it.

    Each element's bits are mixed with its position by the finaliser of MurmurHash3 (public domain,
    A. Appleby) and the results are added modulo 2^32.
    """
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return checksum(array.real) + jnp.uint32(3) * checksum(array.imag)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
    if words.dtype == jnp.uint64:
        words = (words ^ (words >> 32) * jnp.uint64(0x9E3779B1)) & jnp.uint64(0xFFFFFFFF)
    words = words.astype(jnp.uint32)
    position = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        position = position * jnp.uint32(size) + index
    mixed = words ^ (position * jnp.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


def checksums(flat: Mapping[str, Any]) -> dict[str, int]:
    """Returns `{leaf path: checksum}`.

    Each sum is waited for before the next one starts: of a sharded array it is a reduction over
    devices, and XLA's CPU client, whose devices share one pool of threads, can lock up with several
    of these at once and then ends the process.
    """
    return {name: int(checksum(jnp.asarray(leaf))) for name, leaf in flat.items()}
