"""BigGAN-deep: class-conditional generator of ImageNet images of 128, 256 or 512 pixels.

A. Brock, J. Donahue, K. Simonyan, "Large Scale GAN Training for High Fidelity Natural Image
Synthesis", ICLR 2019, appendix B (BigGAN-deep), with the names of pytorch-pretrained-BigGAN, the
port of DeepMind's weights. Spectral normalisation is divided out of the weights when they are read,
and the statistics of batch normalisation are those of one truncation.

Cost at 256 pixels: 55.9 million parameters.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.pool import max_pool

__all__ = ["VARIANTS", "BigGan", "from_tensors", "tap_names"]

# Doubles the resolution?, input and output width of each block, in units of `BigGan.channels`.
_128 = ((0, 16, 16), (1, 16, 16), (0, 16, 16), (1, 16, 8), (0, 8, 8), (1, 8, 4), (0, 4, 4),
        (1, 4, 2), (0, 2, 2), (1, 2, 1))  # fmt: skip
_256 = ((0, 16, 16), (1, 16, 16), (0, 16, 16), (1, 16, 8), (0, 8, 8), (1, 8, 8), (0, 8, 8),
        (1, 8, 4), (0, 4, 4), (1, 4, 2), (0, 2, 2), (1, 2, 1))  # fmt: skip
_512 = (*_256[:9], (1, 4, 2), (0, 2, 2), (1, 2, 1), (0, 1, 1), (1, 1, 1))
VARIANTS: dict[int, tuple[tuple[int, int, int], ...]] = {128: _128, 256: _256, 512: _512}
ATTENTION = 8  # number of the layer at 64 x 64 pixels before which attention stands
STEPS = 50  # intervals of the table of statistics: truncation 0, 0.02, ..., 1

RULES: tuple[porting.Rule, ...] = (
    (r"embeddings\.weight", "embed/kernel", porting.linear_oi_to_io),
    (r"generator\.gen_z\.weight", "gen_z/kernel", porting.linear_oi_to_io),
    (r"generator\.gen_z\.bias", "gen_z/bias", porting.identity),
    (r"generator\.layers\.(\d+)\.bn_(\d)\.(scale|offset)\.weight", r"layer\1/bn\2/\3/kernel",
     porting.linear_oi_to_io),
    (r"generator\.layers\.(\d+)\.bn_(\d)\.running_(mean|var)s", r"layer\1/bn\2/\3",
     porting.identity),
    (r"generator\.layers\.(\d+)\.conv_(\d)\.weight", r"layer\1/conv\2/kernel",
     porting.conv_oihw_to_hwio),
    (r"generator\.layers\.(\d+)\.conv_(\d)\.bias", r"layer\1/conv\2/bias", porting.identity),
    (r"generator\.layers\.(\d+)\.snconv1x1_(\w+)\.weight", r"layer\1/\2/kernel",
     porting.conv_oihw_to_hwio),
    (r"generator\.layers\.(\d+)\.gamma", r"layer\1/gamma", porting.reshape(1)),
    (r"generator\.bn\.running_(mean|var)s", r"bn/\1", porting.identity),
    (r"generator\.bn\.(weight|bias)", r"bn/\1", porting.identity),
    (r"generator\.conv_to_rgb\.weight", "rgb/kernel", porting.conv_oihw_to_hwio),
    (r"generator\.conv_to_rgb\.bias", "rgb/bias", porting.identity),
)


class Norm(nn.Module):
    """Batch normalisation by stored statistics; gain and offset from a condition, or own.

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float = 1e-4

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        shape = (x.shape[-1],)
        mean = self.param("mean", nn.initializers.zeros, shape)
        variance = self.param("var", nn.initializers.ones, shape)
        if condition is None:
            gain = self.param("weight", nn.initializers.ones, shape).reshape(1, -1)
            offset = self.param("bias", nn.initializers.zeros, shape).reshape(1, -1)
        else:
            gain = 1 + nn.Dense(shape[0], use_bias=False, name="scale")(condition)
            offset = nn.Dense(shape[0], use_bias=False, name="offset")(condition)
        centred = x - mean.reshape(1, 1, 1, -1)
        centred = centred * jax.lax.rsqrt(variance + self.epsilon).reshape(1, 1, 1, -1)
        return centred * gain.reshape(-1, 1, 1, shape[0]) + offset.reshape(-1, 1, 1, shape[0])


class GenBlock(nn.Module):
    """Four normalised convolutions (1x1, 3x3, 3x3, 1x1) and a shortcut that drops channels."""

    up: bool
    channels: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        taps = []
        hidden = x.shape[-1] // 4
        y = x
        for index, (width, kernel) in enumerate(
            ((hidden, 1), (hidden, 3), (hidden, 3), (self.channels, 1))
        ):
            y = nn.relu(Norm(self.epsilon, name=f"bn{index}")(y, condition))
            if self.up and index == 1:
                y = _doubled(y)
            y = nn.Conv(width, (kernel, kernel), padding=kernel // 2, name=f"conv{index}")(y)
            taps.append(y)
        if x.shape[-1] != self.channels:
            x = x[..., : x.shape[-1] // 2]
        return y + (_doubled(x) if self.up else x), taps


class Attention(nn.Module):
    """Self-attention over positions with keys and values pooled by two; no scaling of scores."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        batch, height, width, channels = x.shape

        def conv(name: str, features: int, y: jax.Array) -> jax.Array:
            return nn.Conv(features, (1, 1), use_bias=False, name=name)(y)

        theta = conv("theta", channels // 8, x)
        phi, g = conv("phi", channels // 8, x), conv("g", channels // 2, x)
        query = theta.reshape(batch, -1, channels // 8)
        key = max_pool(phi, (2, 2), (2, 2)).reshape(batch, -1, channels // 8)
        value = max_pool(g, (2, 2), (2, 2)).reshape(batch, -1, channels // 2)
        weights = nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key))
        y = jnp.einsum("bqk,bkc->bqc", weights, value).reshape(batch, height, width, -1)
        o = conv("o_conv", channels, y)
        gamma = self.param("gamma", nn.initializers.zeros, (1,)).reshape(1, 1, 1, 1)
        return x + gamma * o, {"theta": theta, "phi": phi, "g": g, "o_conv": o}


class BigGan(nn.Module):
    """Noise `[batch, 128]` and classes `[batch, 1000]` -> images `[batch, s, s, 3]` in [-1, 1].

    Attributes:
        blocks: see `VARIANTS`.
        channels: unit of width; 128 in the published weights.
        latent: size of the noise and of the class embedding.
        classes: number of classes.
        attention: number of the layer that is attention; None for none.
        epsilon: of batch normalisation.

    Classes are one-hot or any mixture. The second result maps the names of `tap_names` to the
    outputs of all convolutions, `[batch, height, width, channels]`.
    """

    blocks: tuple[tuple[int, int, int], ...] = _256
    channels: int = 128
    latent: int = 128
    classes: int = 1000
    attention: int | None = ATTENTION
    epsilon: float = 1e-4

    @nn.compact
    def __call__(
        self, z: jax.Array, classes: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        embedded = nn.Dense(self.latent, use_bias=False, name="embed")(classes)
        condition = jnp.concatenate([z, embedded], axis=1)
        width = 16 * self.channels
        x = nn.Dense(16 * width, name="gen_z")(condition).reshape(-1, 4, 4, width)
        taps: dict[str, jax.Array] = {}
        number = 0
        for index, (up, _, out) in enumerate(self.blocks):
            if index == self.attention:
                x, found = Attention(name=f"layer{number}")(x)
                taps |= {f"layer{number}.{name}": y for name, y in found.items()}
                number += 1
            block = GenBlock(bool(up), out * self.channels, self.epsilon, name=f"layer{number}")
            x, convs = block(x, condition)
            taps |= {f"layer{number}.conv{i}": y for i, y in enumerate(convs)}
            number += 1
        x = nn.relu(Norm(self.epsilon, name="bn")(x))
        taps["rgb"] = x = nn.Conv(self.channels, (3, 3), padding=1, name="rgb")(x)
        return jnp.tanh(x[..., :3]), taps


def tap_names(module: BigGan) -> tuple[str, ...]:
    """The taps in the order of the published numbering of units."""
    names: list[str] = []
    number = 0
    for index in range(len(module.blocks)):
        if index == module.attention:
            names += [f"layer{number}.{part}" for part in ("theta", "phi", "g", "o_conv")]
            number += 1
        names += [f"layer{number}.conv{i}" for i in range(4)]
        number += 1
    return (*names, "rgb")


def from_tensors(
    module: BigGan, tensors: Mapping[str, np.ndarray], truncation: float = 1.0
) -> dict[str, Any]:
    """Returns `{"params": ...}` from a checkpoint's tensors.

    Args:
        module: the network.
        tensors: name -> array, as pytorch-pretrained-BigGAN stores them.
        truncation: of the noise that will be used, 0 to 1; statistics between the table's steps
            of 0.02 are interpolated linearly (the PyTorch package exchanges the two weights).

    Raises:
        ValueError: truncation outside the table.
        porting.PortingError: the tensors are not those of this network.
    """
    if not 0 <= truncation <= 1:
        raise ValueError(f"truncation {truncation} is not between 0 and 1")
    source: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        array = np.asarray(array)
        if name.endswith((".weight_u", ".weight_v")):
            continue
        if name.endswith(".weight_orig"):
            name = name.removesuffix("_orig")
            array = _normalised(array, tensors, name)
        elif re.search(r"\.running_(means|vars)$", name):
            low = min(int(truncation * STEPS + 1e-9), STEPS - 1)
            part = truncation * STEPS - low
            array = (1 - part) * array[low] + part * array[low + 1]
        source[name] = array
    x = jax.ShapeDtypeStruct((1, module.latent), jnp.float32)
    y = jax.ShapeDtypeStruct((1, module.classes), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, y)["params"]
    return {"params": porting.port(source, RULES, shapes)}


def _normalised(weight: np.ndarray, tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A weight over its largest singular value, as the stored vectors estimate it."""
    if f"{name}_u" not in tensors or f"{name}_v" not in tensors:
        raise porting.PortingError(f"{name}_orig without {name}_u and {name}_v")
    u, v = (np.asarray(tensors[f"{name}_{part}"], np.float64) for part in "uv")
    return weight / (u @ weight.reshape(len(weight), -1).astype(np.float64) @ v)


def _doubled(x: jax.Array) -> jax.Array:
    """Twice as many rows and columns, by repetition."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
