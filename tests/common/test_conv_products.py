"""Convolutions as matrix products equal the ordinary ones, with gradients."""

import jax
import numpy as np
import pytest

from common.nets import conv_products
from common.nets.conv_transpose import conv_transpose_2x, torch_padding


def near(first, second, tolerance: float = 2e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
                 first, second)


@pytest.mark.parametrize(("size", "kernel", "stride", "pad"), [
    (28, 4, 2, 1), (7, 4, 2, 1), (8, 3, 2, 1), (9, 3, 1, 1), (9, 5, 3, 0)])
def test_convolution(size, kernel, stride, pad):
    keys = jax.random.split(jax.random.key(size), 3)
    x = jax.random.normal(keys[0], (2, size, size + 1, 3))
    weights = jax.random.normal(keys[1], (kernel, kernel, 3, 5))

    def expected(x, weights):
        return jax.lax.conv_general_dilated(
            x, weights, (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def found(x, weights):
        return conv_products.conv(x, weights, stride, [(pad, pad)] * 2)

    slope = jax.random.normal(keys[2], expected(x, weights).shape)
    with jax.default_matmul_precision("highest"):
        first, pull_first = jax.vjp(expected, x, weights)
        second, pull_second = jax.vjp(found, x, weights)
        near(first, second)
        near(pull_first(slope), pull_second(slope), 1e-4)


@pytest.mark.parametrize(("size", "kernel", "pad"), [(4, 3, 1), (7, 4, 1), (5, 5, 0), (3, 8, 0)])
def test_transposed_convolution(size, kernel, pad):
    keys = jax.random.split(jax.random.key(size), 3)
    x = jax.random.normal(keys[0], (2, size, size + 2, 3))
    weights = jax.random.normal(keys[1], (kernel, kernel, 3, 5))
    pads = torch_padding((kernel, kernel), pad)
    with jax.default_matmul_precision("highest"):
        first, pull_first = jax.vjp(lambda *v: conv_transpose_2x(*v, pads), x, weights)
        second, pull_second = jax.vjp(
            lambda *v: conv_products.conv_transpose_2x(*v, pads), x, weights)
        slope = jax.random.normal(keys[2], first.shape)
        near(first, second)
        near(pull_first(slope), pull_second(slope), 1e-4)
