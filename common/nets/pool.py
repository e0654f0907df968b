"""Maximum over windows whose gradient is fast on CPUs.

The gradient of a maximum over windows sends each slope to the window's greatest value. XLA has one
operation for it (`select_and_scatter`), which its CPU compiler turns into a scalar loop, slower
than the convolutions around it. Here the window's values are strided slices and the gradient is
made of comparisons with them; on other devices nothing is changed.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.fusion import once

__all__ = ["max_pool"]

Pair = tuple[int, int]


def max_pool(
    x: jax.Array, window_shape: Pair, strides: Pair, padding: str | Sequence[Pair] = "VALID"
) -> jax.Array:
    """`flax.linen.max_pool` of images `[batch, height, width, channels]`.

    Of equal greatest values the first (by rows) gets the slope, as there. On a CPU it can be
    differentiated in reverse, any number of times, but not forwards (`jax.jvp`).
    """
    if x.ndim != 4 or jax.default_backend() != "cpu":
        return nn.max_pool(x, window_shape, strides, padding)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], window_shape, strides, padding)
    (top, bottom), (left, right) = padding
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    return _pool(x, tuple(window_shape), tuple(strides), pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool(x: jax.Array, window: Pair, strides: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    return nn.max_pool(x, window, strides, pads)


def _forward(
    x: jax.Array, window: Pair, strides: Pair, pads: tuple[Pair, Pair]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _pool(x, window, strides, pads)
    return y, (x, y)


def _backward(
    window: Pair, strides: Pair, pads: tuple[Pair, Pair],
    saved: tuple[jax.Array, jax.Array], slope: jax.Array,
) -> tuple[jax.Array]:
    x, y = saved
    rows, columns = y.shape[1:3]
    zero, least = jnp.zeros((), x.dtype), jnp.array(-jnp.inf, x.dtype)
    around = jax.lax.pad(x, least, [(0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)])
    height, width = around.shape[1:3]
    spans = ((rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1)
    found = jnp.zeros(y.shape, bool)
    total = jnp.zeros((), x.dtype)
    for i in range(window[0]):
        for j in range(window[1]):
            own = around[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
            chosen = (own == y) & ~found
            found |= chosen
            ends = [(0, 0, 0), (i, height - i - spans[0], strides[0] - 1),
                    (j, width - j - spans[1], strides[1] - 1), (0, 0, 0)]
            total = total + jax.lax.pad(jnp.where(chosen, slope, zero), zero, ends)
    (top, bottom), (left, right) = pads
    return (once(total[:, top : height - bottom, left : width - right]),)


_pool.defvjp(_forward, _backward)
