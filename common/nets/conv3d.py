"""3-D convolution with stride 1 as one 2-D convolution, the depth taps folded into the channels.

XLA's native 3-D convolution on a CPU is several times slower than the same sum written so. The
result is exact up to the order of additions. On other devices the native form is used.

A 2-D convolution to few channels spends more time on gathering its windows than on multiplying
them. So where there are few, two neighbouring planes are computed at once: their windows overlap.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from common.nets.fusion import once

__all__ = ["Conv3D", "conv3d"]

_FEW = 16  # channels out, up to which two planes at once are faster; at 32 they are slower


def conv3d(x: jax.Array, kernel: jax.Array, folded: bool | None = None) -> jax.Array:
    """Convolution with stride 1 and zero padding that keeps the size (odd kernels).

    Args:
        x: `[batch, depth, height, width, channels]`.
        kernel: `[kd, kh, kw, channels, out]`, kd, kh and kw odd.
        folded: whether to fold; None folds on CPUs. Folding holds kd shifted copies of `x`,
            (kd + 1) / 2 where planes go in pairs.

    Returns:
        `[batch, depth, height, width, out]`.

    Raises:
        ValueError: ranks or channels do not fit, or the kernel is even.
    """
    if x.ndim != 5 or kernel.ndim != 5 or x.shape[-1] != kernel.shape[3]:
        raise ValueError(f"expected x [b, d, h, w, c] and kernel [kd, kh, kw, c, out], found "
                         f"{x.shape} and {kernel.shape}")
    if any(size % 2 == 0 for size in kernel.shape[:3]):
        raise ValueError(f"the kernel {kernel.shape[:3]} must be odd along each axis")
    if folded is None:
        folded = jax.default_backend() == "cpu"
    if not folded:
        return lax.conv_general_dilated(
            x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    batch, depth, height, width, channels = x.shape
    taps, kh, kw, _, out = kernel.shape
    planes = 2 if out <= _FEW and depth % 2 == 0 and taps > 1 else 1
    count, window = depth // planes, taps + planes - 1
    half = taps // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0), (0, 0), (0, 0)))
    last = planes * (count - 1) + 1
    shifted = [lax.slice_in_dim(padded, tap, tap + last, planes, 1) for tap in range(window)]
    windows = once(jnp.concatenate(shifted, axis=-1).reshape(
        batch * count, height, width, window * channels))
    # Plane i of the result is made of the taps i, i + 1, ... of the window.
    each = [jnp.pad(kernel, ((i, planes - 1 - i), *((0, 0),) * 4)) for i in range(planes)]
    flat = jnp.stack(each, axis=4).transpose(1, 2, 0, 3, 4, 5)
    flat = flat.reshape(kh, kw, window * channels, planes * out)
    y = lax.conv_general_dilated(
        windows, flat, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = y.reshape(batch, count, height, width, planes, out).transpose(0, 1, 4, 2, 3, 5)
    return y.reshape(batch, depth, height, width, out)


class Conv3D(nn.Module):
    """Drop-in for `nn.Conv(features, kernel_size)` on volumes with stride 1 and an odd kernel.

    Attributes:
        features: output channels.
        kernel_size: (kd, kh, kw).
        use_bias: whether a bias is added.
        folded: as in `conv3d`.
    """

    features: int
    kernel_size: Sequence[int] = (3, 3, 3)
    use_bias: bool = True
    folded: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = conv3d(x, kernel.astype(x.dtype), self.folded)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias.astype(x.dtype).reshape(1, 1, 1, 1, -1)
        return y
