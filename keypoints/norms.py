"""Group normalisation, stateless, of any rank; on a CPU its sums are matrix products."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.fusion import once

__all__ = ["GroupNorm"]

_EPSILON = 1e-5

Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # what the gradient needs


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
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        flat = x.reshape(x.shape[0], -1, channels).astype(jnp.float32)
        y = _normalise(flat, scale, bias, size)
        return y.reshape(x.shape).astype(x.dtype)


def _positions(values: jax.Array) -> jax.Array:
    """Mean over positions, `[batch, positions, channels]` -> `[batch, channels]`."""
    if jax.default_backend() != "cpu":  # a product with one row is slow and a reduction fuses
        return values.mean(axis=1)
    ones = jnp.full(values.shape[:2], 1.0 / values.shape[1], jnp.float32)
    return jnp.einsum("np,npc->nc", ones, values, precision="highest")


def _groups(values: jax.Array, size: int) -> jax.Array:
    """Mean within each group, `[batch, channels]` -> the same shape."""
    batch, channels = values.shape
    means = values.reshape(batch, -1, size).mean(axis=-1, keepdims=True)
    return jnp.broadcast_to(means, (batch, channels // size, size)).reshape(batch, channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, size: int) -> jax.Array:
    return _forward(x, scale, bias, size)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, size: int) -> tuple[jax.Array, Kept]:
    mean = _groups(_positions(x), size)
    centred = x - mean[:, None]
    deviation = jnp.sqrt(_groups(_positions(jnp.square(centred)), size) + _EPSILON)
    y = centred * (scale[None] / deviation)[:, None] + bias[None, None]
    return y, (x, mean, deviation, scale)


def _backward(size: int, kept: Kept, change: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by the two averages that they all need (Wu and He, 2018, differentiated)."""
    x, mean, deviation, scale = kept
    unit = (x - mean[:, None]) / deviation[:, None]
    of_bias, of_scale = _positions(change), _positions(change * unit)
    shift = _groups(of_bias * scale[None], size)
    slope = _groups(of_scale * scale[None], size)
    dx = (change * scale[None, None] - shift[:, None] - unit * slope[:, None]) / deviation[:, None]
    count = x.shape[1]
    return once(dx), count * of_scale.sum(axis=0), count * of_bias.sum(axis=0)


_normalise.defvjp(_forward, _backward)
