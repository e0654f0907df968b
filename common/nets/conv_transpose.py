"""Exact transposed convolution with stride 2, as four ordinary convolutions and an interleave.

A transposed convolution correlates the input, spread out with zeros between its pixels, with the
kernel. Of the zeros' products none is needed: the output pixels of one parity of row and column
only ever meet the kernel taps of one parity of row and column, so each of the four parities
("phases") is a plain convolution of the input with every second tap. The result is the same up to
the order of summation, and so are the gradients, which XLA computes slowly for spread-out inputs on
CPUs. Few output channels, as of images, are a product of matrices there (`conv_products`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets import conv_products
from common.nets.conv import conv_general_dilated

__all__ = ["ConvTranspose2x", "conv_transpose_2x", "torch_padding"]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_FEW = 4  # output channels up to which CPUs are faster with one product of matrices

# Pixels added before and after each spatial axis of the spread-out input (negative: removed).
Padding = str | Sequence[tuple[int, int]]


class _Phase(NamedTuple):
    """The outputs `2m + parity` of one axis: `sum_j kernel[first + 2j] * x[m + offset + j]`."""

    first: int
    offset: int
    taps: int


def torch_padding(
    kernel_size: Sequence[int], padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
) -> list[tuple[int, int]]:
    """Returns the padding that equals `torch.nn.ConvTranspose2d(padding=, output_padding=)`.

    Args:
        kernel_size: height and width of the kernel.
        padding: PyTorch's `padding`, one number or one for each axis.
        output_padding: PyTorch's `output_padding` (0 or 1 with stride 2).

    Raises:
        ValueError: negative padding, or output padding that PyTorch refuses.
    """
    paddings = (padding,) * 2 if isinstance(padding, int) else tuple(padding)
    extras = (output_padding,) * 2 if isinstance(output_padding, int) else tuple(output_padding)
    if min(paddings) < 0 or any(extra not in (0, 1) for extra in extras):
        raise ValueError(
            f"expected padding >= 0 and output_padding 0 or 1, found {paddings} and {extras}")
    return [(k - 1 - p, k - 1 - p + extra)
            for k, p, extra in zip(kernel_size, paddings, extras, strict=True)]


def conv_transpose_2x(
    x: jax.Array, kernel: jax.Array, padding: Padding = "SAME", precision: Any = None
) -> jax.Array:
    """Transposed convolution with stride 2: `lax.conv_transpose(x, kernel, (2, 2), padding)`.

    Args:
        x: `[batch, height, width, in]`.
        kernel: `[kernel height, kernel width, in, out]`, correlated as it is (Flax's convention;
            see `porting.conv_transpose_iohw_to_hwio` for PyTorch's).
        padding: "SAME" (output exactly twice as large), "VALID", or pairs for the two axes as in
            `lax.conv_transpose`; see `torch_padding`.
        precision: as in `lax.conv_general_dilated`.

    Returns:
        `[batch, L(height), L(width), out]` with `L(n) = 2 n - 1 + before + after - (k - 1)`.

    Raises:
        ValueError: wrong shapes, unknown padding or an empty output.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(f"expected x [batch, height, width, in] and kernel [kh, kw, in, out], "
                         f"found shapes {tuple(x.shape)} and {tuple(kernel.shape)}")
    pads = [_pair(kernel.shape[axis], padding, axis) for axis in (0, 1)]
    lengths = [2 * x.shape[1 + axis] - 1 + sum(pads[axis]) - (kernel.shape[axis] - 1)
               for axis in (0, 1)]
    if min(lengths) < 1:
        raise ValueError(f"the output would be {lengths[0]} x {lengths[1]}")
    if x.shape[1:3] == (1, 1):
        return _of_one_pixel(x, kernel, pads, lengths, precision)
    if kernel.shape[3] <= _FEW and jax.default_backend() == "cpu":
        return conv_products.conv_transpose_2x(x, kernel, pads, precision)
    # All phases are computed with ceil(L / 2) rows and columns; the surplus of an odd L is cut off.
    counts = [-(-length // 2) for length in lengths]
    phases = [[_phase(kernel.shape[axis], pads[axis][0], parity) for parity in (0, 1)]
              for axis in (0, 1)]
    outputs = []
    for rows in phases[0]:
        for columns in phases[1]:
            if rows.taps == 0 or columns.taps == 0:  # kernel of one row or column
                shape = (x.shape[0], *counts, kernel.shape[3])
                outputs.append(jnp.zeros(shape, jnp.result_type(x, kernel)))
                continue
            window = [
                (-phase.offset, count - 1 + phase.offset + phase.taps - size)
                for phase, count, size in zip(
                    (rows, columns), counts, x.shape[1:3], strict=True)
            ]
            outputs.append(conv_general_dilated(
                x, kernel[rows.first::2, columns.first::2], (1, 1), window,
                dimension_numbers=_DIMENSIONS, precision=precision))
    y = jnp.stack(outputs, axis=3).reshape(x.shape[0], *counts, 2, 2, kernel.shape[3])
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], 2 * counts[0], 2 * counts[1], -1)
    return y[:, :lengths[0], :lengths[1]]


def _of_one_pixel(
    x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]], lengths: Sequence[int],
    precision: Any,
) -> jax.Array:
    """A single pixel meets every tap once: output `before - t` is its product with tap `t`."""
    y = jnp.einsum("bc,hwco->bhwo", x[:, 0, 0], kernel, precision=precision)[:, ::-1, ::-1]
    starts = [pads[axis][0] - (kernel.shape[axis] - 1) for axis in (0, 1)]
    ends = [(start, length - start - size, 0)
            for start, length, size in zip(starts, lengths, kernel.shape[:2], strict=True)]
    return jax.lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *ends, (0, 0, 0)])


class ConvTranspose2x(nn.Module):
    """Drop-in for `nn.ConvTranspose(features, kernel_size, (2, 2), padding)`: same parameters.

    Attributes:
        features: output channels.
        kernel_size: height and width of the kernel.
        padding: see `conv_transpose_2x`.
        use_bias: whether a bias is added.
        dtype: computation dtype; None: that of inputs and parameters.
        param_dtype: dtype of the parameters.
        precision: as in `lax.conv_general_dilated`.
        kernel_init, bias_init: initialisers.
    """

    features: int
    kernel_size: tuple[int, int]
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = (self.param("bias", self.bias_init, (self.features,), self.param_dtype)
                if self.use_bias else None)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv_transpose_2x(x, kernel, self.padding, self.precision)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def _phase(kernel: int, before: int, parity: int) -> _Phase:
    """Returns which taps meet which inputs for the outputs `2m + parity` of one axis.

    Output o meets input i through tap t where `o + t - before = 2 i`.
    """
    first = (before - parity) % 2
    return _Phase(first, (parity + first - before) // 2, len(range(first, kernel, 2)))


def _pair(kernel: int, padding: Padding, axis: int) -> tuple[int, int]:
    """Returns the pixels added before and after one axis, as in `lax.conv_transpose`."""
    if not isinstance(padding, str):
        before, after = padding[axis]
        return before, after
    if padding == "SAME":
        before = kernel - 1 if kernel < 3 else -(-kernel // 2)
        return before, kernel - before
    if padding == "VALID":
        return kernel - 1, kernel - 1 + max(2 - kernel, 0)
    raise ValueError(f"unknown padding {padding!r}, expected 'SAME', 'VALID' or pairs")
