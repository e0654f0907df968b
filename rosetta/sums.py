"""Sums of many float32 values: compensated running sums, and sums in short chains.

Each addition keeps its rounding error (Knuth's two-sum), so that a sum of a million terms has the
error of its terms and not of its length. XLA keeps the order of float32 additions; this needs it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

__all__ = ["Sum", "column_sums", "image_sums", "product"]

# Terms that are added one after another: their rounding errors stay near the format's precision.
CHAIN = 256
PART = 512  # the same, in one product of matrices
_HIGHEST = jax.lax.Precision.HIGHEST


class Sum(struct.PyTreeNode):
    """A sum `high + low` of float32 arrays; `low` holds what rounding of `high` left over."""

    high: jax.Array
    low: jax.Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> "Sum":
        """An empty sum of arrays of this shape."""
        return cls(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def add(self, term: jax.Array) -> "Sum":
        """The sum with one more float32 term of its shape."""
        high = self.high + term
        back = high - self.high
        error = (self.high - (high - back)) + (term - back)
        return Sum(high, self.low + error)

    def value(self) -> jax.Array:
        """The sum rounded to float32, on its devices."""
        return self.high + self.low

    def to_host(self) -> np.ndarray:
        """The sum in float64."""
        return np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64)


def column_sums(x: jax.Array) -> jax.Array:
    """Sums `[rows, columns]` over rows in short chains, `[columns]`."""
    while x.shape[0] > 1:
        chain = min(CHAIN, x.shape[0])
        x = jnp.pad(x, ((0, -x.shape[0] % chain), (0, 0)))
        # The barrier keeps XLA from joining the sums into a single long chain.
        x = jax.lax.optimization_barrier(jnp.sum(x.reshape(-1, chain, x.shape[1]), 1))
    return x[0]


def image_sums(maps: jax.Array) -> jax.Array:
    """Sums of maps `[batch, s, s, c]` over positions in short chains, `[batch, c]`."""
    return jax.vmap(column_sums)(maps.reshape(maps.shape[0], -1, maps.shape[3]))


def product(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`[n, r]` and `[n, c]` -> their product `[r, c]`, summed over n in parts of 512.

    A float32 product of matrices may add in one long chain.
    """
    length = rows.shape[0]
    if length <= PART:
        return _dot(rows, columns)
    parts = [
        jnp.pad(x, ((0, -length % PART), (0, 0))).reshape(-1, PART, x.shape[1])
        for x in (rows, columns)
    ]

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _dot(*part), None

    start = _dot(parts[0][0], parts[1][0])
    return jax.lax.scan(add, start, (parts[0][1:], parts[1][1:]))[0]


def _dot(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())), precision=_HIGHEST)
