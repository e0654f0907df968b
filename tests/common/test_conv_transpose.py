"""Tests of the stride-2 transposed convolution against JAX's and Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.nets.conv_transpose import ConvTranspose2x, conv_transpose_2x, torch_padding

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
PADDINGS = ["SAME", "VALID", ((0, 0), (1, 2)), ((3, 1), (2, 2)), ((5, -1), (-1, 4))]


def arrays(kernel, height=5, width=4, features=4):
    keys = jax.random.split(jax.random.key(kernel), 2)
    x = jax.random.normal(keys[0], (2, height, width, 3))
    return x, jax.random.normal(keys[1], (kernel, kernel, 3, features))


@pytest.mark.parametrize("features", [4, 5])  # few are a product of matrices on CPUs
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_equals_lax(kernel, padding, features):
    x, weights = arrays(kernel, features=features)
    expected = lax.conv_transpose(x, weights, (2, 2), padding, dimension_numbers=DIMENSIONS,
                                  precision="highest")
    actual = jax.jit(lambda x, w: conv_transpose_2x(x, w, padding, "highest"))(x, weights)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("padding", ["VALID", "SAME", ((0, 0), (1, 2)), ((3, 4), (4, 4))])
@pytest.mark.parametrize("kernel", [1, 4, 5])
def test_one_pixel(kernel, padding):
    x, weights = arrays(kernel, 1, 1)
    if not isinstance(padding, str) and 2 - kernel + sum(padding[0]) < 1:
        with pytest.raises(ValueError, match="the output would be"):
            conv_transpose_2x(x, weights, padding)
        return

    def run(function, x, w):
        y, back = jax.vjp(lambda x, w: function(x, w), x, w)
        return y, *back(jnp.cos(y))

    expected = run(lambda x, w: lax.conv_transpose(
        x, w, (2, 2), padding, dimension_numbers=DIMENSIONS, precision="highest"), x, weights)
    found = run(lambda x, w: conv_transpose_2x(x, w, padding, "highest"), x, weights)
    for a, e in zip(found, expected, strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, atol=3e-5)


def test_few_features_are_a_product_on_cpus():
    for features in (4, 5):
        x, weights = jnp.ones((2, 5, 4, 8)), jnp.ones((4, 4, 8, features))
        text = jax.jit(conv_transpose_2x).lower(x, weights).as_text()
        product = features == 4 and jax.default_backend() == "cpu"
        assert ("stablehlo.convolution" in text) != product


@pytest.mark.parametrize("features", [4, 5])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_gradients_equal_lax(kernel, features):
    x, weights = arrays(kernel, features=features)

    def loss(function):
        return lambda x, w: jnp.sum(jnp.sin(function(x, w)))

    def reference(x, w):
        return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=DIMENSIONS,
                                  precision="highest")

    def ours(x, w):
        return conv_transpose_2x(x, w, precision="highest")

    expected = jax.jit(jax.grad(loss(reference), (0, 1)))(x, weights)
    actual = jax.jit(jax.grad(loss(ours), (0, 1)))(x, weights)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=5e-5)


def test_rectangular_kernel_and_vmap():
    x, _ = arrays(3)
    weights = jax.random.normal(jax.random.key(1), (6, 3, 5, 3, 4))  # six kernels of 3 x 5
    actual = jax.jit(jax.vmap(conv_transpose_2x, (None, 0)))(x, weights)
    expected = lax.conv_transpose(x, weights[4], (2, 2), "SAME", dimension_numbers=DIMENSIONS)
    np.testing.assert_allclose(actual[4], expected, atol=2e-5)


@pytest.mark.parametrize("use_bias", [True, False])
def test_module_is_a_drop_in(use_bias):
    x, _ = arrays(4)
    reference = nn.ConvTranspose(6, (4, 4), (2, 2), use_bias=use_bias, precision="highest")
    ours = ConvTranspose2x(6, (4, 4), use_bias=use_bias, precision="highest")
    params = reference.init(jax.random.key(0), x)
    fresh = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, fresh, params)  # also the same initial values
    params = jax.tree.map(lambda p: p + 0.1, params)
    np.testing.assert_allclose(ours.apply(params, x), reference.apply(params, x), atol=2e-5)


def test_module_computes_in_its_dtype():
    x, _ = arrays(4)
    ours = ConvTranspose2x(6, (4, 4), dtype=jnp.bfloat16)
    params = ours.init(jax.random.key(0), x)
    assert ours.apply(params, x).dtype == jnp.bfloat16
    assert params["params"]["kernel"].dtype == jnp.float32


def test_bad_input_is_refused():
    x, weights = arrays(3)
    with pytest.raises(ValueError, match="expected x"):
        conv_transpose_2x(x, weights[:, :, :2])
    with pytest.raises(ValueError, match="unknown padding 'same'"):
        conv_transpose_2x(x, weights, "same")
    with pytest.raises(ValueError, match="output would be -1 x"):
        conv_transpose_2x(x, weights, ((-4, -4), (0, 0)))
    with pytest.raises(ValueError, match="output_padding 0 or 1"):
        torch_padding((3, 3), 1, 2)
