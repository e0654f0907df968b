"""Convolutions as matrix products equal the ordinary ones, with gradients and penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nets.conv_transpose import conv_transpose_2x, torch_padding
from medical.acgan import losses, models, products


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
        return products.conv(x, weights, stride, [(pad, pad)] * 2)

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
        second, pull_second = jax.vjp(lambda *v: products.conv_transpose_2x(*v, pads), x, weights)
        slope = jax.random.normal(keys[2], first.shape)
        near(first, second)
        near(pull_first(slope), pull_second(slope), 1e-4)


def test_networks_take_the_same_parameters():
    plain = models.Generator((8, 4, 4)), models.Discriminator((4, 4, 8))
    other = (models.Generator((8, 4, 4), products=True),
             models.Discriminator((4, 4, 8), products=True))
    z, labels = jax.random.normal(jax.random.key(0), (3, 5)), jnp.arange(3)
    made = plain[0].init(jax.random.key(1), z, labels)
    images = plain[0].apply(made, z, labels)
    near(images, other[0].apply(made, z, labels))
    judged = plain[1].init(jax.random.key(2), images)
    near(plain[1].apply(judged, images), other[1].apply(judged, images))

    def penalty(net, params):
        variables = {**judged, "params": params}
        return losses.gradient_penalty(
            lambda x: net.apply(variables, x)[0], images, -images, jnp.full(3, 0.3)).sum()

    near(jax.grad(lambda p: penalty(plain[1], p))(judged["params"]),
         jax.grad(lambda p: penalty(other[1], p))(judged["params"]), 1e-4)


def test_alexnet_takes_the_same_parameters():
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    plain, other = (models.AlexDiscriminator((4, 4, 8, 8, 8), 16, products=flag)
                    for flag in (False, True))
    held = plain.init(jax.random.key(1), images)
    near(plain.apply(held, images), other.apply(held, images))
