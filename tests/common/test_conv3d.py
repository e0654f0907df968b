"""The folded 3-D convolution against JAX's and Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from common.nets.conv3d import Conv3D, conv3d


def native(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision="highest")


@pytest.mark.parametrize(("size", "depth", "out"), [
    ((1, 1, 1), 6, 4), ((3, 3, 3), 5, 4), ((5, 1, 3), 5, 4),
    ((3, 3, 3), 6, 4), ((5, 1, 3), 4, 2), ((3, 3, 3), 6, 17),  # first two here: in pairs
])  # fmt: skip
def test_equals_lax_with_gradients(size, depth, out):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, depth, 4, 6, 3))
    kernel = jax.random.normal(keys[1], (*size, 3, out))

    def loss(function):
        return lambda x, k: jnp.sum(jnp.sin(function(x, k)))

    def folded(x, k):
        return conv3d(x, k, True)

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(
            jax.jit(folded)(x, kernel), jax.jit(native)(x, kernel), atol=3e-5)
        actual = jax.jit(jax.grad(loss(folded), (0, 1)))(x, kernel)
        expected = jax.jit(jax.grad(loss(native), (0, 1)))(x, kernel)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=2e-4)


@pytest.mark.parametrize(("depth", "out", "pairs"), [(6, 16, True), (5, 16, False), (6, 17, False)])
def test_planes_go_in_pairs_where_few_channels_go_out(depth, out, pairs):
    x, kernel = jnp.zeros((1, depth, 4, 4, 3)), jnp.zeros((3, 3, 3, 3, out))
    text = jax.jit(lambda x, k: conv3d(x, k, True)).lower(x, kernel).as_text()
    assert (f"tensor<3x3x12x{2 * out}xf32>" in text) == pairs
    assert (f"tensor<3x3x9x{out}xf32>" in text) != pairs


@pytest.mark.parametrize("folded", [True, False])
def test_module_is_a_drop_in(folded):
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 4, 2))
    reference = nn.Conv(5, (3, 3, 3))
    ours = Conv3D(5, folded=folded)
    params = reference.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), params)
    params = jax.tree.map(lambda p: p + 0.1, params)
    np.testing.assert_allclose(ours.apply(params, x), reference.apply(params, x), atol=2e-5)


def test_bad_input_is_refused():
    x = jnp.zeros((1, 4, 4, 4, 2))
    with pytest.raises(ValueError, match="expected x"):
        conv3d(x, jnp.zeros((3, 3, 3, 3, 2)))
    with pytest.raises(ValueError, match="must be odd"):
        conv3d(x, jnp.zeros((2, 3, 3, 2, 2)))
