"""Named random streams: every random number of a run follows from one key, a name and a step.

A stream is `fold_in(key, hash(name))` and the key of a step is `fold_in(stream, step)`. Nothing has
to be stored with a checkpoint: a resumed run computes the keys that the uninterrupted run used.
"""

import hashlib

import jax


def name_hash(name: str) -> int:
    """Returns a 32-bit hash of `name` that is the same in every process and Python version.

    The value is the first four bytes, big endian, of the SHA-256 sum of the UTF-8 encoded name.
    """
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:4], "big")


def stream(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of the random stream `name`.

    Args:
        key: typed key array (`jax.random.key`) of shape `[]`.
        name: name of the stream, for example "dropout".

    Raises:
        TypeError: `key` is a raw uint32 key or no key at all.
    """
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(
            f"stream '{name}' needs a typed key from jax.random.key(seed), got {type(key).__name__}"
            f" with dtype {getattr(key, 'dtype', None)}"
        )
    return jax.random.fold_in(key, name_hash(name))


def at_step(key: jax.Array, name: str, step: int | jax.Array) -> jax.Array:
    """Returns the key of stream `name` at `step`; `step` may be a traced integer."""
    return jax.random.fold_in(stream(key, name), step)
