"""Convolution whose gradients are fast inside loops on CPUs.

XLA's CPU compiler brings a convolution into the one form its fast kernels take (batch, space,
features) only at the top of a program. Gradients come in other forms, so within `lax.scan`,
`lax.map`, `lax.cond` and the like they fall to naive loops, 10 to 40 times slower
(`benchmarks/convolutions_in_loops.py`). Here both gradients are written as convolutions of that
form to begin with; on other devices, and for what they do not cover, nothing is changed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_NUMBERS = ("NHWC", "HWIO", "NHWC")
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
    dx = _conv(slope, turned, inner, _pads(to_x), strides, outer, precision)
    # The kernel's gradient: channels take the place of the batch, and the batch of the channels.
    dk = _conv(x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3), outer, _pads(to_kernel),
               inner, strides, precision)
    return dx, dk.transpose(1, 2, 0, 3)


_conv.defvjp(_forward, _backward)


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)


def _pads(values: list[Pair]) -> Pads:
    return values[0], values[1]
