"""Networks that map images to images of the same size: the DCGAN autoencoder, and a perceptron.

Shocher et al., "Idempotent Generative Network", ICLR 2024, joins DCGAN's discriminator, as encoder,
to its generator, as decoder; there are no skip connections, which would let the network copy its
input. The bottleneck convolutions over a whole 4 x 4 map are written as the equal dense layers.

The published layout has batch normalisation, which makes the result for one image depend on the
others of its batch while training, and another function when not. The default here is group
normalisation, with which the network is one function.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.conv_transpose import ConvTranspose2x, torch_padding

NORMS = ("group", "batch", "none")
SIZES = {28: (4, 4, 3), 32: (4, 4, 4), 64: (4, 4, 4, 4)}
"""Kernel of each stride-2 stage that brings an image of this size to 4 x 4."""

_INIT = nn.initializers.normal(0.02)  # DCGAN's


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """Architecture of the network.

    Attributes:
        size: image height and width: 28, 32 or 64.
        channels: 1 or 3.
        width: channels of the first stage (64 in the publication); each stage doubles them.
        latent: size of the bottleneck.
        norm: "group" (over 8 channels), "batch" (the published layout) or "none".
        dropout: probability that a feature map is dropped while training.
        classes: number of classes of a conditional network, 0 for none.
        output: "tanh" as published, or "linear".
    """

    size: int = 28
    channels: int = 1
    width: int = 32
    latent: int = 256
    norm: str = "group"
    dropout: float = 0.0
    classes: int = 0
    output: str = "tanh"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"image size {self.size}, expected one of {sorted(SIZES)}")
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r}, expected one of {NORMS}")
        if self.output not in ("tanh", "linear"):
            raise ValueError(f"output {self.output!r}, expected 'tanh' or 'linear'")
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


class Autoencoder(nn.Module):
    """`[batch, size, size, channels]` in [-1, 1] -> the same shape.

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
        if x.shape[1:] != c.shape:
            raise ValueError(f"images {x.shape[1:]} for a network of {c.shape}")
        if (labels is None) == bool(c.classes):
            raise ValueError(f"a network of {c.classes} classes was called with labels {labels}")
        embedded = None
        if labels is not None:
            embedded = nn.Embed(c.classes, 32, name="label")(labels)

        def finish(x: jax.Array, name: str, normalise: bool, slope: float) -> jax.Array:
            x = self._norm(x, f"{name}_norm", train) if normalise else x
            if embedded is not None:
                x = _modulate(x, embedded, f"{name}_label")
            x = nn.leaky_relu(x, slope)
            if c.dropout:
                # Whole maps are dropped; from the dense layer's too.
                drop = nn.Dropout(c.dropout, broadcast_dims=(1, 2), deterministic=not train)
                x = drop(x)
            return x

        for index, kernel in enumerate(kernels):
            conv = nn.Conv(
                c.width * 2**index, (kernel, kernel), 2, 1, kernel_init=_INIT, name=f"down{index}"
            )
            x = finish(conv(x), f"down{index}", index > 0, 0.2)
        top = c.width * 2 ** (len(kernels) - 1)
        x = x.reshape(x.shape[0], 16 * top)
        x = nn.Dense(c.latent, kernel_init=_INIT, name="encode")(x)
        x = nn.Dense(16 * top, kernel_init=_INIT, name="decode")(x).reshape(-1, 4, 4, top)
        x = finish(x, "decode", True, 0.0)
        for index in reversed(range(len(kernels))):
            last = index == 0
            features = c.channels if last else c.width * 2 ** (index - 1)
            kernel = kernels[index]
            up = ConvTranspose2x(
                features,
                (kernel, kernel),
                torch_padding((kernel, kernel), 1),
                kernel_init=_INIT,
                name=f"up{index}",
            )
            x = up(x)
            if not last:
                x = finish(x, f"up{index}", True, 0.0)
        return jnp.tanh(x) if c.output == "tanh" else x

    def _norm(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        if self.config.norm == "batch":
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)(x)
        if self.config.norm == "group":
            return nn.GroupNorm(num_groups=None, group_size=8, epsilon=1e-5, name=name)(x)
        return x


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
