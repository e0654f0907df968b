"""Networks of medXGAN: classifier, generator, discriminator, encoder; small ones and the published.

Images are float32 ``[batch, size, size, channels]`` in [-1, 1]. The published layouts (brain at 64
pixels, COVID-19 X-rays at 128) follow the released code: transposed convolutions of stride 2
without padding, batch normalisation, dropout after every layer of the discriminator. The small ones
enlarge by subpixel convolutions, which are far cheaper on a CPU, and normalise each image alone.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.by_device import layers
from common.nets.conv_transpose import torch_padding
from common.nets.fusion import gradient_once
from common.nets.pool import max_pool

_DCGAN = nn.initializers.normal(0.02)


def _scale_init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Scales of batch normalisation: N(1, 0.02)."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def _batch_norm(train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=0.9, scale_init=_scale_init, name=name)


class Classifier(nn.Module):
    """Small classifier: convolutions to a part of the size, logits by a global average.

    Attributes:
      widths: channels of the convolutions; after each but the last the size is halved.
      classes: number of classes.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    classes: int = 2

    def setup(self) -> None:
        conv, _ = layers()
        self.convs = [conv(width, (3, 3), padding=1, name=f"conv{i}") for i, width in
                      enumerate(self.widths)]
        self.dense = nn.Dense(self.classes)

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Last convolution's output, ``[batch, size / 2^(n - 1), ..., widths[-1]]``."""
        del train
        for conv in self.convs[:-1]:
            # the other way round is the same, and four times the work for the ReLU
            x = nn.relu(max_pool(conv(x), (2, 2), (2, 2)))
        return nn.relu(self.convs[-1](x))

    def head(self, found: jax.Array, train: bool = False) -> jax.Array:
        """Logits ``[batch, classes]`` of features."""
        del train
        return self.dense(jnp.mean(found, axis=(1, 2)))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(x))


class BrainClassifier(nn.Module):
    """The published classifier of brain slices (64 pixels, three channels)."""

    classes: int = 2

    def setup(self) -> None:
        sizes = ((16, 3), (32, 6), (32, 6))
        conv, _ = layers()
        self.convs = [
            conv(width, (k, k), padding=0, use_bias=False, kernel_init=_DCGAN)
            for width, k in sizes
        ]
        self.norms = [nn.BatchNorm(momentum=0.9, scale_init=_scale_init) for _ in sizes]
        self.drop = nn.Dropout(0.2)
        self.dense = nn.Dense(self.classes)

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Before the last pooling: ``[batch, 8, 8, 32]`` at 64 pixels."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(nn.relu(conv(x)), use_running_average=not train)
            if i < 2:
                x = self.drop(max_pool(x, (2, 2), (2, 2)), deterministic=not train)
        return x

    def head(self, found: jax.Array, train: bool = False) -> jax.Array:
        x = self.drop(max_pool(found, (2, 2), (2, 2)), deterministic=not train)
        return self.dense(x.reshape(x.shape[0], -1))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(x, train), train)


class Generator(nn.Module):
    """Codes to images by subpixel convolutions.

    Attributes:
      size: side of the images, 4 times a power of 2 (or 6 times: 48, 96).
      widths: channels at the coarsest size and after each doubling but the last.
      channels: of the images.
    """

    size: int = 32
    widths: tuple[int, ...] = (128, 64, 32)
    channels: int = 1

    @nn.compact
    def __call__(self, z1: jax.Array, z2: jax.Array, train: bool = False) -> jax.Array:
        """Images of anatomy codes ``[batch, d1]`` and pathology codes ``[batch, d2]``."""
        del train
        first = self.size >> len(self.widths)
        if first << len(self.widths) != self.size:
            raise ValueError(f"size {self.size} cannot be halved {len(self.widths)} times")
        conv, _ = layers()
        x = nn.Dense(first * first * self.widths[0], name="start")(jnp.concatenate([z1, z2], -1))
        x = x.reshape(-1, first, first, self.widths[0])
        for i, width in enumerate((*self.widths[1:], 16)):
            x = nn.leaky_relu(nn.GroupNorm(8, name=f"norm{i}")(x), 0.2)
            x = gradient_once(depth_to_space(conv(4 * width, (3, 3), padding=1, name=f"up{i}")(x)))
        x = nn.leaky_relu(nn.GroupNorm(8, name="norm")(x), 0.2)
        return jnp.tanh(conv(self.channels, (3, 3), padding=1, name="image")(x))


class PaperGenerator(nn.Module):
    """The published generator: 1-5-13-29-64 pixels, or 1-5-13-29-61-128 with five layers.

    Attributes:
      widths: output channels of the layers but the last; (384, 256, 192) for 64 pixels.
      channels: of the images.
    """

    widths: tuple[int, ...] = (384, 256, 192)
    channels: int = 3

    @nn.compact
    def __call__(self, z1: jax.Array, z2: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(768, name="start")(jnp.concatenate([z1, z2], -1))[:, None, None, :]
        _, transposed = layers()
        for i, width in enumerate(self.widths):
            x = transposed(width, (5, 5), torch_padding((5, 5)), use_bias=False,
                           kernel_init=_DCGAN, name=f"up{i}")(x)
            x = nn.relu(_batch_norm(train, f"norm{i}")(x))
        x = transposed(self.channels, (8, 8), torch_padding((8, 8)), use_bias=False,
                       kernel_init=_DCGAN, name="image")(x)
        return jnp.tanh(x)


class Discriminator(nn.Module):
    """Convolutions of stride 2 and a linear output: one logit for each image, ``[batch]``."""

    widths: tuple[int, ...] = (32, 64, 128)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = _trunk(x, self.widths)
        return nn.Dense(1, name="dense")(x)[:, 0]


class PaperDiscriminator(nn.Module):
    """The published discriminator: 16-32-64-128-256-512 channels, strides 2, 1, 2, 1, 2, 1."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, _ = layers()
        for i, width in enumerate(self.widths):
            stride, padding = (2, 1) if i % 2 == 0 else (1, 0)
            x = conv(width, (3, 3), stride, padding, use_bias=False, kernel_init=_DCGAN,
                     name=f"conv{i}")(x)
            if i:
                x = _batch_norm(train, f"norm{i}")(x)
            x = nn.Dropout(0.5, deterministic=not train)(nn.leaky_relu(x, 0.2))
        return nn.Dense(1, name="dense")(x.reshape(x.shape[0], -1))[:, 0]


class Encoder(nn.Module):
    """Images to the means and log variances of both codes; the published method has none.

    Attributes:
      latent: sizes of z1 and z2.
      widths: channels of the convolutions.
    """

    latent: tuple[int, int] = (64, 8)
    widths: tuple[int, ...] = (32, 64, 128)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = sum(self.latent)
        found = nn.Dense(2 * total, name="dense")(_trunk(x, self.widths))
        # Bounded, so that a log variance cannot run away at the start.
        return found[:, :total], jnp.clip(found[:, total:], -8.0, 4.0)


def depth_to_space(x: jax.Array) -> jax.Array:
    """``[batch, h, w, 4 c]`` to ``[batch, 2 h, 2 w, c]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def _trunk(x: jax.Array, widths: tuple[int, ...]) -> jax.Array:
    conv, _ = layers()
    for i, width in enumerate(widths):
        x = nn.leaky_relu(conv(width, (4, 4), 2, 1, name=f"conv{i}")(x), 0.2)
    return x.reshape(x.shape[0], -1)
