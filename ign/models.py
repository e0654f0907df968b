"""Networks that map images to images of the same size: two autoencoders, and a perceptron.

Shocher et al., "Idempotent Generative Network", ICLR 2024, joins DCGAN's discriminator, as encoder,
to its generator, as decoder; there are no skip connections, which would let the network copy its
input. The bottleneck convolutions over a whole 4 x 4 map are written as the equal dense layers.

The other network cuts the image into patches of 4 x 4 pixels (8 x 8 of 64 pixels) and works on the
grid of 7 x 7 (8 x 8) of them, so that all of it is products of large matrices, which suits a CPU.
The hidden layer on either side of its bottleneck gives it the nonlinear map from noise to codes
that its few convolutions lack.

Both may have the images' principal components beside them (`principal`): a fixed linear map to the
code and another from it. Layers alone learn these directions one after another, the small ones of
64 x 64 images hardly at all.

The published layout has batch normalisation, which makes the result for one image depend on the
others of its batch while training, and another function when not. The default here is group
normalisation, with which the network is one function.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.by_device import layers
from common.nets.conv_transpose import torch_padding

KINDS = ("dcgan", "patch")
NORMS = ("group", "batch", "none")
SIZES = {28: (4, 4, 3), 32: (4, 4, 4), 64: (4, 4, 4, 4)}
"""Kernel of each stride-2 stage that brings an image of this size to 4 x 4."""
PATCHES = {28: 4, 32: 4, 64: 8}
"""Pixels of a patch's side in images of this size."""

_INIT = nn.initializers.normal(0.02)  # DCGAN's
# Of last layers that add to a fixed map: what it gives is right at the start.
_SMALL_CODE, _SMALL = nn.initializers.normal(0.01), nn.initializers.normal(0.002)


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """Architecture of the network.

    Attributes:
        size: image height and width: 28, 32 or 64.
        channels: 1 or 3.
        kind: "dcgan", as published, or "patch".
        width: channels of the first stage (64 in the publication), each further stage doubling
            them; of every map of the patch network.
        latent: size of the bottleneck.
        hidden: size of the patch network's layers next to the bottleneck ("dcgan" has none).
        depth: number of those layers on either side.
        linear: a linear map beside those layers, with which images are soon reconstructed well.
        principal: fixed linear maps from the image to the code and from the code to the image, to
            which the layers add; see `principal.start` for their values. They take the place of
            `linear`.
        norm: "group" (over 8 channels), "batch" (the published layout) or "none".
        dropout: probability that a feature map is dropped while training.
        classes: number of classes of a conditional network, 0 for none.
        output: "tanh" as published, or "linear".
    """

    size: int = 28
    channels: int = 1
    kind: str = "dcgan"
    width: int = 32
    latent: int = 256
    hidden: int = 256
    depth: int = 1
    linear: bool = False
    principal: bool = False
    norm: str = "group"
    dropout: float = 0.0
    classes: int = 0
    output: str = "tanh"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"image size {self.size}, expected one of {sorted(SIZES)}")
        if self.kind not in KINDS:
            raise ValueError(f"kind of network {self.kind!r}, expected one of {KINDS}")
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r}, expected one of {NORMS}")
        if self.kind == "patch" and self.norm == "batch":
            raise ValueError("norm 'batch' is of the published layout, kind 'dcgan'")
        if self.output not in ("tanh", "linear"):
            raise ValueError(f"output {self.output!r}, expected 'tanh' or 'linear'")
        if self.principal and self.linear:
            raise ValueError("a network has a learnt linear map or a fixed one, not both")
        if self.norm == "group" and self.width % 8:
            raise ValueError(f"width {self.width} is no multiple of 8, the channels of a group")

    @property
    def independent(self) -> bool:
        """Whether an example's output never depends on the other examples of its batch."""
        return self.norm != "batch"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.size, self.size, self.channels


class Principal(nn.Module):
    """Fixed affine maps image -> code and code -> image, before the tanh; no gradient reaches them.

    Until `principal.start` gives them values they are 0.
    """

    config: NetConfig

    def setup(self) -> None:
        c = self.config
        pixels, zeros = math.prod(c.shape), nn.initializers.zeros
        self.encoder = self.param("encoder", zeros, (pixels, c.latent))
        self.encoder_bias = self.param("encoder_bias", zeros, (c.latent,))
        self.decoder = self.param("decoder", zeros, (c.latent, pixels))
        self.decoder_bias = self.param("decoder_bias", zeros, (pixels,))

    def encode(self, x: jax.Array) -> jax.Array:
        """`[batch, size, size, channels]` -> `[batch, latent]`."""
        fixed = jax.lax.stop_gradient((self.encoder, self.encoder_bias))
        return x.reshape(x.shape[0], -1) @ fixed[0] + fixed[1][None]

    def decode(self, code: jax.Array) -> jax.Array:
        """`[batch, latent]` -> `[batch, size, size, channels]`."""
        fixed = jax.lax.stop_gradient((self.decoder, self.decoder_bias))
        return (code @ fixed[0] + fixed[1][None]).reshape(-1, *self.config.shape)


class Autoencoder(nn.Module):
    """`[batch, size, size, channels]` in [-1, 1] -> the same shape: DCGAN's layers.

    With `train`, dropout is active (stream "dropout") and batch normalisation uses the statistics
    of the batch and updates its averages (collection "batch_stats").
    """

    config: NetConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        c = self.config
        kernels = SIZES[c.size]
        finish = _finisher(c, x, labels, train)
        fixed = Principal(c, name="principal") if c.principal else None
        code = fixed.encode(x) if fixed else 0.0
        small = _SMALL if fixed else _INIT
        convolution, transposed = layers()
        for index, kernel in enumerate(kernels):
            conv = convolution(
                c.width * 2**index, (kernel, kernel), 2, 1, kernel_init=_INIT, name=f"down{index}"
            )
            x = finish(conv(x), f"down{index}", index > 0, 0.2)
        top = c.width * 2 ** (len(kernels) - 1)
        x = x.reshape(x.shape[0], 16 * top)
        code += nn.Dense(c.latent, kernel_init=small, name="encode")(x)
        x = nn.Dense(16 * top, kernel_init=_INIT, name="decode")(code).reshape(-1, 4, 4, top)
        x = finish(x, "decode", True, 0.0)
        for index in reversed(range(len(kernels))):
            last = index == 0
            features = c.channels if last else c.width * 2 ** (index - 1)
            kernel = kernels[index]
            up = transposed(
                features,
                (kernel, kernel),
                torch_padding((kernel, kernel), 1),
                kernel_init=small if last else _INIT,
                name=f"up{index}",
            )
            x = up(x)
            if not last:
                x = finish(x, f"up{index}", True, 0.0)
        x = x + fixed.decode(code) if fixed else x
        return jnp.tanh(x) if c.output == "tanh" else x


def grid_conv(
    features: int, name: str | None = None, kernel_init: Any = nn.linear.default_kernel_init
) -> nn.Module:
    """3 x 3 convolution on a grid `[batch, rows, columns, channels]`, border of zeros."""
    conv: nn.Module = layers()[0](
        features, (3, 3), padding=1, kernel_init=kernel_init, name=name
    )
    return conv


class PatchAutoencoder(nn.Module):
    """`[batch, size, size, channels]` in [-1, 1] -> the same shape, on the grid of patches.

    Arguments as of `Autoencoder`; there is no batch normalisation.
    """

    config: NetConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        c = self.config
        side = PATCHES[c.size]
        cells = c.size // side
        finish = _finisher(c, x, labels, train)
        fixed = Principal(c, name="principal") if c.principal else None
        code = fixed.encode(x) if fixed else None
        x = x.reshape(-1, cells, side, cells, side, c.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, cells, cells, side * side * c.channels)
        for name in ("down0", "down1"):
            x = finish(grid_conv(c.width, name=name)(x), name, True, 0.2)
        x = x.reshape(-1, cells * cells * c.width)
        if code is None:
            code, last = _dense(c, x, c.latent, "encode"), nn.linear.default_kernel_init
        else:
            both, last = jnp.concatenate([x, code], axis=1), _SMALL
            code += _dense(c, both, c.latent, "encode", _SMALL_CODE)
        x = _dense(c, code, cells * cells * c.width, "decode").reshape(-1, cells, cells, c.width)
        x = finish(x, "decode", True, 0.0)
        x = finish(grid_conv(c.width, name="up1")(x), "up1", True, 0.0)
        x = grid_conv(side * side * c.channels, "up0", last)(x)
        x = x.reshape(-1, cells, cells, side, side, c.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, c.size, c.size, c.channels)
        x = x + fixed.decode(code) if fixed else x
        return jnp.tanh(x) if c.output == "tanh" else x


def _dense(
    c: NetConfig, x: jax.Array, features: int, name: str,
    last: Any = nn.linear.default_kernel_init,
) -> jax.Array:
    """`c.depth` hidden layers, those after the first added to what they are given, and the last,
    whose kernel `last` initialises.

    With `c.linear` a linear map beside all of them is added.
    """
    y = nn.leaky_relu(nn.Dense(c.hidden, name=f"{name}_hidden")(x), 0.2)
    for index in range(1, c.depth):
        y += nn.leaky_relu(nn.Dense(c.hidden, name=f"{name}_hidden{index}")(y), 0.2)
    y = nn.Dense(features, kernel_init=last, name=name)(y)
    return y + nn.Dense(features, use_bias=False, name=f"{name}_linear")(x) if c.linear else y


def build(config: NetConfig) -> nn.Module:
    """The network of a configuration: `(images, labels=None, train=False) -> images`."""
    return Autoencoder(config) if config.kind == "dcgan" else PatchAutoencoder(config)


def _finisher(
    c: NetConfig, x: jax.Array, labels: jax.Array | None, train: bool
) -> Callable[[jax.Array, str, bool, float], jax.Array]:
    """What follows a layer: `(maps, name, normalise, slope) -> maps`. Checks the network's input.

    Called by a network's `__call__`, whose submodules the layers become.
    """
    if x.shape[1:] != c.shape:
        raise ValueError(f"images {x.shape[1:]} for a network of {c.shape}")
    if (labels is None) == bool(c.classes):
        raise ValueError(f"a network of {c.classes} classes was called with labels {labels}")
    embedded = None if labels is None else nn.Embed(c.classes, 32, name="label")(labels)

    def finish(x: jax.Array, name: str, normalise: bool, slope: float) -> jax.Array:
        if normalise and c.norm == "batch":
            x = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
        elif normalise and c.norm == "group":
            x = nn.GroupNorm(None, group_size=8, epsilon=1e-5, name=f"{name}_norm")(x)
        if embedded is not None:
            x = _modulate(x, embedded, f"{name}_label")
        x = nn.leaky_relu(x, slope)
        if c.dropout:
            # Whole maps are dropped; from the dense layer's too.
            x = nn.Dropout(c.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        return x

    return finish


def _modulate(x: jax.Array, embedded: jax.Array, name: str) -> jax.Array:
    """Scales and shifts each map by a linear function of the label's embedding."""
    scale, shift = jnp.split(nn.Dense(2 * x.shape[-1], name=name)(embedded), 2, axis=-1)
    return x * (1.0 + scale[:, None, None, :]) + shift[:, None, None, :]


class Perceptron(nn.Module):
    """`[batch, ...]` -> the same shape by dense layers: toys in the plane, and tests.

    Attributes:
        widths: of the hidden layers.
        output: "tanh" or "linear".
    """

    widths: tuple[int, ...] = (64, 64)
    output: str = "linear"

    @nn.compact
    def __call__(self, x: jax.Array, labels: Any = None, train: bool = False) -> jax.Array:
        del train
        if labels is not None:
            raise ValueError("the perceptron has no conditional form")
        h = x.reshape(x.shape[0], -1)
        size = h.shape[1]
        for index, width in enumerate(self.widths):
            h = nn.leaky_relu(nn.Dense(width, name=f"dense{index}")(h), 0.2)
        h = nn.Dense(size, name="out")(h).reshape(x.shape)
        return jnp.tanh(h) if self.output == "tanh" else h


def init(
    net: nn.Module, key: jax.Array, shape: tuple[int, ...], classes: int = 0
) -> dict[str, Any]:
    """All variables of a network for images of `shape` `[height, width, channels]` or `[dims]`."""
    labels = jnp.zeros(1, jnp.int32) if classes else None
    return dict(net.init(key, jnp.zeros((1, *shape)), labels))
