"""Convolution whose gradients are fast inside loops on CPUs.

XLA's CPU compiler brings a convolution into the one form its fast kernels take (batch, space,
features) only at the top of a program. Gradients come in other forms, so within `lax.scan`,
`lax.map`, `lax.cond` and the like they fall to naive loops, 10 to 40 times slower
(`benchmarks/convolutions_in_loops.py`). Here both gradients are written as convolutions of that
form to begin with; on other devices, and for what they do not cover, nothing is changed.

The fast kernels also refuse a window that is larger than the image, whatever is padded around it:
the gradient of a kernel whose output is larger than its input, as in transposed convolutions, was
ten to thirty times slower for that. Such images are padded first.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_NUMBERS = ("NHWC", "HWIO", "NHWC")
_FEW, _PATCH = 4, 48  # input channels, and values of a patch, up to which a product is faster
Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, and what `flax.linen.Conv` takes under this name.

    On a CPU, 2-D convolutions of one group in the form NHWC, HWIO get the gradients of this module:
    they can be differentiated in reverse, any number of times, but not forwards (`jax.jvp`).
    """
    covered = (
        lhs.ndim == 4 and feature_group_count == batch_group_count == 1
        and preferred_element_type is None and jax.default_backend() == "cpu"
        and jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NUMBERS))
    if not covered:
        return jax.lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, batch_group_count, precision, preferred_element_type)
    strides, inner = _pair(window_strides), _pair(lhs_dilation or (1, 1))
    outer = _pair(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        if inner != (1, 1):
            raise ValueError(f"padding {padding!r} with a dilated image: give the numbers")
        window = tuple((n - 1) * d + 1 for n, d in zip(rhs.shape[:2], outer, strict=True))
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
    (top, bottom), (left, right) = padding
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    return _conv(lhs, rhs, strides, pads, inner, outer, precision)


class Conv(nn.Conv):
    """`flax.linen.Conv` with the gradients of this module."""

    conv_general_dilated: Any = conv_general_dilated


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _conv(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, inner: Pair, outer: Pair,
    precision: Any,
) -> jax.Array:
    """`inner` and `outer` are the dilations of image and kernel."""
    spans = [(n - 1) * d + 1 for n, d in zip(kernel.shape[:2], outer, strict=True)]
    sizes = [(n - 1) * d + 1 for n, d in zip(x.shape[1:3], inner, strict=True)]
    if any(span > size for span, size in zip(spans, sizes, strict=True)):
        ends = [(*pair, d - 1) for pair, d in zip(pads, inner, strict=True)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
        x = jax.lax.optimization_barrier(x)  # or the compiler makes it the convolution's padding
        pads, inner = ((0, 0), (0, 0)), (1, 1)
    elif _is_product(kernel, inner, outer):
        return _of_few_channels(x, kernel, strides, pads, precision)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, pads, inner, outer, _NUMBERS, precision=precision)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, inner: Pair, outer: Pair,
    precision: Any,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, strides, pads, inner, outer, precision), (x, kernel)


def _backward(
    strides: Pair, pads: Pads, inner: Pair, outer: Pair, precision: Any,
    saved: tuple[jax.Array, jax.Array], slope: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    to_x, to_kernel = [], []
    for axis in range(2):
        size = (x.shape[1 + axis] - 1) * inner[axis] + 1
        window = (kernel.shape[axis] - 1) * outer[axis] + 1
        out = (slope.shape[1 + axis] - 1) * strides[axis] + 1
        low, high = pads[axis]
        # The transpose of a convolution: slopes spread by the stride, under the turned kernel.
        before = window - 1 - low
        to_x.append((before, size + window - 1 - out - before))
        to_kernel.append((low, out + window - 1 - size - low))
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    if _is_product(kernel, inner, outer):
        dx = _slope_of_few_channels(x.shape, kernel, strides, pads, slope, precision)
    else:
        dx = _conv(slope, turned, inner, _pads(to_x), strides, outer, precision)
    # The kernel's gradient: channels take the place of the batch, and the batch of the channels.
    dk = _conv(x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3), outer, _pads(to_kernel),
               inner, strides, precision)
    return dx, dk.transpose(1, 2, 0, 3)


_conv.defvjp(_forward, _backward)


def _is_product(kernel: jax.Array, inner: Pair, outer: Pair) -> bool:
    """Whether a product of matrices is faster; patches of larger kernels cost too much memory."""
    height, width, channels, _ = kernel.shape
    few = channels <= _FEW and height * width * channels <= _PATCH
    return few and inner == outer == (1, 1)


def _of_few_channels(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, precision: Any
) -> jax.Array:
    """The convolution of `x` by a product of matrices: for few channels the fast kernels are not.

    Strided slices are the patches, the first axes of the product are all pixels.
    """
    x = _padded(x, pads)
    height, width, channels, features = kernel.shape
    rows, columns = ((n - k) // s + 1 for n, k, s in
                     zip(x.shape[1:3], (height, width), strides, strict=True))
    patches = jnp.concatenate([
        x[:, i : i + (rows - 1) * strides[0] + 1 : strides[0],
          j : j + (columns - 1) * strides[1] + 1 : strides[1]]
        for i in range(height) for j in range(width)], axis=3)
    flat = patches.reshape(-1, height * width * channels)
    y = jnp.matmul(flat, kernel.reshape(-1, features), precision=precision)
    return y.reshape(len(x), rows, columns, features)


def _slope_of_few_channels(
    shape: tuple[int, ...], kernel: jax.Array, strides: Pair, pads: Pads, slope: jax.Array,
    precision: Any,
) -> jax.Array:
    """The gradient of `_of_few_channels` in an image of `shape`: a product, and a sum of shifts."""
    height, width, channels, features = kernel.shape
    flat = kernel.transpose(3, 0, 1, 2).reshape(features, -1)
    made = jnp.matmul(slope.reshape(-1, features), flat, precision=precision)
    made = made.reshape(*slope.shape[:3], height, width, channels)
    sizes = [n + sum(pad) for n, pad in zip(shape[1:3], pads, strict=True)]
    spans = [(n - 1) * s + 1 for n, s in zip(slope.shape[1:3], strides, strict=True)]
    zero = jnp.zeros((), slope.dtype)
    total: Any = zero
    for i in range(height):
        for j in range(width):
            ends = [(0, 0, 0), (i, sizes[0] - spans[0] - i, strides[0] - 1),
                    (j, sizes[1] - spans[1] - j, strides[1] - 1), (0, 0, 0)]
            total = total + jax.lax.pad(made[:, :, :, i, j], zero, ends)
    # What fell on the padding is cut off (negative padding is put back as zeros).
    return _padded(total, tuple((-low, -high) for low, high in pads))


def _padded(x: jax.Array, pads: Any) -> jax.Array:
    ends = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ends)


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)


def _pads(values: list[Pair]) -> Pads:
    return values[0], values[1]
