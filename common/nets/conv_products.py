"""Convolutions as matrix products: what a population under `vmap` needs.

`vmap` over networks turns a convolution into one with a group for each network, for which neither
CPUs nor accelerators have fast kernels, least of all for its gradients. Written as slices and one
matrix product, it becomes a batched product. Pixels are one axis in it: CPUs take several times as
long for the gradients of a product over several axes. Parameters are those of
`flax.linen.Conv` and `common.nets.conv_transpose.ConvTranspose2x`, results equal up to the order
of summation.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Pads = Sequence[tuple[int, int]]


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, precision: Any = None
) -> jax.Array:
    """Correlation of square strides.

    Blocks of ``stride x stride`` pixels are taken as channels, so that the kernel meets whole
    blocks at stride 1 and few slices are needed.

    Args:
      x: ``[batch, height, width, in]``.
      kernel: ``[kh, kw, in, out]``.
      stride: of both axes.
      pads: zeros before and after each axis.
      precision: of the product.
    """
    height, width, channels, features = kernel.shape
    blocks = -(-height // stride), -(-width // stride)
    counts = [(size + sum(pad) - k) // stride + 1 for size, pad, k in
              zip(x.shape[1:3], pads, (height, width), strict=True)]
    full = [stride * (count + block - 1) for count, block in zip(counts, blocks, strict=True)]
    ends = [(low, length - size - low, 0) for (low, _), length, size in
            zip(pads, full, x.shape[1:3], strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    x = x.reshape(len(x), full[0] // stride, stride, full[1] // stride, stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    parts = [x[:, i : i + counts[0], j : j + counts[1]]
             for i in range(blocks[0]) for j in range(blocks[1])]
    patches = jnp.stack(parts, axis=3).reshape(len(x) * counts[0] * counts[1], -1)
    kernel = _whole_blocks(kernel, blocks, stride).transpose(0, 2, 1, 3, 4, 5)
    y = jnp.matmul(patches, kernel.reshape(-1, features), precision=precision)
    return y.reshape(len(x), *counts, features)


def conv_transpose_2x(
    x: jax.Array, kernel: jax.Array, pads: Pads, precision: Any = None
) -> jax.Array:
    """Transposed convolution of stride 2; see `common.nets.conv_transpose`.

    Args:
      x: ``[batch, height, width, in]``.
      kernel: ``[kh, kw, in, out]``, correlated as it is with the spread-out input.
      pads: pixels added around the spread-out input.
      precision: of the product.
    """
    height, width, channels, features = kernel.shape
    blocks = -(-height // 2), -(-width // 2)
    # The kernel's last tap meets a pixel's first output: pixel i reaches 2 i + tap - cut.
    kernel = _whole_blocks(kernel[::-1, ::-1], blocks, 2).transpose(4, 0, 2, 1, 3, 5)
    made = jnp.matmul(x.reshape(-1, channels), kernel.reshape(channels, -1), precision=precision)
    made = made.reshape(*x.shape[:3], *blocks, 4 * features)
    zero = jnp.zeros((), x.dtype)
    total: Any = 0
    for i in range(blocks[0]):
        for j in range(blocks[1]):
            ends = [(0, 0, 0), (i, blocks[0] - 1 - i, 0), (j, blocks[1] - 1 - j, 0), (0, 0, 0)]
            total = total + jax.lax.pad(made[:, :, :, i, j], zero, ends)
    rows, columns = total.shape[1:3]
    total = total.reshape(len(x), rows, columns, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    total = total.reshape(len(x), 2 * rows, 2 * columns, features)
    ends = []
    for size, (low, high), k, length in zip(
            x.shape[1:3], pads, (height, width), total.shape[1:3], strict=True):
        cut, wanted = k - 1 - low, 2 * size - 1 + low + high - (k - 1)
        ends.append((-cut, cut + wanted - length, 0))
    return jax.lax.pad(total, zero, [(0, 0, 0), *ends, (0, 0, 0)])


class Conv(nn.Module):
    """`flax.linen.Conv` of square strides with numbers as padding, in the form of this module."""

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv(x, kernel, self.strides, [(self.padding, self.padding)] * 2)
        return _with_bias(self, y) if self.use_bias else y


class ConvTranspose2x(nn.Module):
    """`common.nets.conv_transpose.ConvTranspose2x` with numbers as padding, as products."""

    features: int
    kernel_size: tuple[int, int]
    padding: Pads
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        y = conv_transpose_2x(x, self.param("kernel", self.kernel_init, shape), self.padding)
        return _with_bias(self, y) if self.use_bias else y


def _with_bias(layer: nn.Module, y: jax.Array) -> jax.Array:
    bias = layer.param("bias", nn.initializers.zeros_init(), (y.shape[-1],))
    return y + bias.reshape(1, 1, 1, -1)


def _whole_blocks(kernel: jax.Array, blocks: tuple[int, int], size: int) -> jax.Array:
    """The kernel, zeros behind it, as ``[blocks, size, blocks, size, in, out]``."""
    height, width, channels, features = kernel.shape
    ends = [(0, size * blocks[0] - height), (0, size * blocks[1] - width), (0, 0), (0, 0)]
    return jnp.pad(kernel, ends).reshape(
        blocks[0], size, blocks[1], size, channels, features)
