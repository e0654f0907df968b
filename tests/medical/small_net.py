"""A small convolutional classifier with known parameters, in JAX."""

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, np.ndarray]


def make(seed: int, channels: int = 1, width: int = 4, classes: int = 2) -> Params:
    """Random parameters: two 3 x 3 convolutions (the second with stride 2) and a dense layer."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    return {
        "first": normal(3, 3, channels, width),
        "bias": normal(1, width)[0],
        "second": normal(3, 3, width, width),
        "dense": 3 * normal(width, classes),
    }


def features(params: Params, images: jax.Array) -> jax.Array:
    """Output of the second convolution, ``[batch, h / 2, w / 2, width]``."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        images, params["first"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers)
    # Softplus: integrated gradients of a smooth net have quadrature errors that can be bounded.
    x = jax.nn.softplus(x + params["bias"].reshape(1, 1, 1, -1))
    x = jax.lax.conv_general_dilated(
        x, params["second"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers)
    return jax.nn.relu(x)


def head(params: Params, found: jax.Array) -> jax.Array:
    """Logits ``[batch, classes]`` from the features."""
    # The square makes the dense layer's gradient depend on its input.
    pooled = jnp.mean(found, axis=(1, 2))
    return (pooled + pooled**2) @ params["dense"]


def logits(params: Params, images: jax.Array) -> jax.Array:
    return head(params, features(params, images))
