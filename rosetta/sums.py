"""Sums of many float32 values: compensated running sums, and sums in short chains.

Each addition keeps its rounding error (Knuth's two-sum), so that a sum of a million terms has the
error of its terms and not of its length. XLA keeps the order of float32 additions; this needs it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

__all__ = ["Sum", "column_sums"]

# Terms that are added one after another: their rounding errors stay near the format's precision.
CHAIN = 256


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
