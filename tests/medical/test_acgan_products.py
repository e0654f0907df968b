"""Networks of matrix products take the parameters of the ordinary ones, with penalties."""

import jax
import jax.numpy as jnp
import numpy as np

from medical.acgan import losses, models


def near(first, second, tolerance: float = 2e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
                 first, second)


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
