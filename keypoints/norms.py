"""Group normalisation, stateless, of any rank; on a CPU its sums are matrix products."""

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["GroupNorm"]

_EPSILON = 1e-5


class GroupNorm(nn.Module):
    """Normalises each example over positions and over groups of `size` channels (Wu and He, 2018).

    `[batch, ..., channels]`, statistics in float32. An example's result does not depend on the
    others of its batch, in training and evaluation alike. On a CPU sums over positions are products
    with ones, which XLA computes many times faster there than a reduction over these axes.

    Attributes:
        size: channels of a group; fewer where the channels are not a multiple of it.
    """

    size: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        size = self.size if channels % self.size == 0 else channels
        flat = x.reshape(x.shape[0], -1, channels).astype(jnp.float32)
        ones = jnp.full((1, flat.shape[1]), 1.0 / flat.shape[1], jnp.float32)

        def average(values: jax.Array) -> jax.Array:  # [batch, channels], equal within a group
            if jax.default_backend() == "cpu":
                own = jnp.einsum("op,npc->nc", ones, values, precision="highest")
            else:  # there a product with one row is slow and a reduction fuses
                own = values.mean(axis=1)
            groups = own.reshape(x.shape[0], -1, size).mean(axis=-1, keepdims=True)
            return jnp.broadcast_to(groups, (x.shape[0], channels // size, size)).reshape(own.shape)

        mean = average(flat)
        centred = flat - mean[:, None]
        deviation = jnp.sqrt(average(jnp.square(centred)) + _EPSILON)
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        y = centred * (scale[None] / deviation)[:, None] + bias[None, None]
        return y.reshape(x.shape).astype(x.dtype)
