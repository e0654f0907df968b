"""Tests of the depthwise separable convolution against XLA's grouped convolution."""

import jax
import numpy as np
import pytest
from jax import lax

from common.nets.separable import SeparableConv, depthwise_conv


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
def test_equals_grouped_convolution(stride, size):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, *size, 6))
    kernel = jax.random.normal(keys[1], (3, 3, 1, 6))
    expected = lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6, precision="highest")
    actual = jax.jit(depthwise_conv, static_argnums=2)(x, kernel, stride)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_module_and_bad_kernel():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 6))
    y, variables = jax.jit(SeparableConv(5, stride=2).init_with_output)(jax.random.key(1), x)
    assert y.shape == (2, 4, 4, 5)
    assert variables["params"]["depthwise"].shape == (3, 3, 1, 6)
    with pytest.raises(ValueError, match=r"expected a kernel \[kh, kw, 1, 6\], found shape"):
        depthwise_conv(x, np.zeros((3, 3, 6, 1), np.float32))
