"""Depthwise separable convolution whose 3x3 depthwise part is a sum of shifted products.

XLA's grouped convolution is slow on CPUs with one channel a group; nine shifted multiply-adds fuse
into one pass and give the same result up to the order of summation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["SeparableConv", "depthwise_conv"]


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Depthwise convolution with the padding that TensorFlow calls "SAME".

    Args:
        x: `[batch, height, width, channels]`.
        kernel: `[kh, kw, 1, channels]`.
        stride: step in both directions.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), channels]`.

    Raises:
        ValueError: the kernel does not have one filter a channel.
    """
    if kernel.ndim != 4 or kernel.shape[2] != 1 or kernel.shape[3] != x.shape[3]:
        raise ValueError(
            f"expected a kernel [kh, kw, 1, {x.shape[3]}], found shape {tuple(kernel.shape)}")
    padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")
    height, width = (-(-size // stride) for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            window = x[:, row:row + stride * (height - 1) + 1:stride,
                       column:column + stride * (width - 1) + 1:stride]
            total = total + window * kernel[row, column, 0].reshape(1, 1, 1, -1)
    return total


class SeparableConv(nn.Module):
    """3x3 depthwise convolution without bias, then a 1x1 convolution with bias."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("depthwise", nn.initializers.lecun_normal(), (3, 3, 1, x.shape[-1]))
        x = depthwise_conv(x, kernel, self.stride)
        return nn.Conv(self.channels, (1, 1), name="pointwise")(x)
