"""Networks of 28 (Fashion-MNIST, MNIST), 32 (CIFAR-10) and more pixels: generator and trunk.

The discriminator's class head is the classifier; a CNN baseline is trunk and class head alone. The
layouts are those of the released code.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets import conv_products
from common.nets.conv import Conv
from common.nets.conv_transpose import ConvTranspose2x, torch_padding
from common.nets.pool import max_pool

_DCGAN = nn.initializers.normal(0.02)


class Generator(nn.Module):
    """Codes and classes to images ``[batch, size, size, channels]`` in [-1, 1].

    From 4 pixels each layer doubles the size; 28 are reached by 4, 7, 14 and 28.

    Attributes:
      widths: channels at 4 pixels and at each size but the last: (512, 256, 128) as published for
        28 and 32 pixels, (1024, 512, 256, 128, 64) for 128.
      classes: number of classes, given one-hot beside the code.
      size: 28, or 4 times 2 to the power of the number of widths.
      channels: of the images.
      products: convolutions as matrix products, for populations under `vmap`.
    """

    widths: tuple[int, ...] = (512, 256, 128)
    classes: int = 10
    size: int = 28
    channels: int = 1
    products: bool = False

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, train: bool = False) -> jax.Array:
        kernels = kernels_of(self.size, len(self.widths))
        x = jnp.concatenate([z, jax.nn.one_hot(labels, self.classes, dtype=z.dtype)], axis=-1)
        x = nn.Dense(16 * self.widths[0], use_bias=False, kernel_init=_DCGAN, name="start")(x)
        x = x.reshape(-1, 4, 4, self.widths[0])
        after = (*self.widths[1:], self.channels)
        layer: Any = conv_products.ConvTranspose2x if self.products else ConvTranspose2x
        for i, (width, kernel) in enumerate(zip(after, kernels, strict=True)):
            x = nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x)
            x = layer(
                width, (kernel, kernel), torch_padding((kernel, kernel), 1), use_bias=False,
                kernel_init=_DCGAN, name=f"up{i}")(nn.relu(x))
        return jnp.tanh(x)


def kernels_of(size: int, layers: int) -> tuple[int, ...]:
    """Kernels of the generator's layers from 4 pixels to `size`.

    Raises:
      ValueError: so many layers do not lead there.
    """
    if size == 28 and layers == 3:
        return 3, 4, 4
    if 4 << layers != size:
        raise ValueError(f"{layers} layers lead from 4 to {4 << layers} pixels (3 also to 28), not "
                         f"to {size}")
    return (4,) * layers


class Discriminator(nn.Module):
    """Images to a source score ``[batch]`` and class logits ``[batch, classes]``.

    Attributes:
      widths: channels after each halving; (128, 256, 512) as published, at 28 and 128 pixels.
      classes: number of classes.
      norm: "batch" (as released) or "none": with batch normalisation the gradient penalty of one
        image depends on the others.
      products: as of `Generator`.
    """

    widths: tuple[int, ...] = (128, 256, 512)
    classes: int = 10
    norm: str = "batch"
    products: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        if self.norm not in ("batch", "none"):
            raise ValueError(f"norm {self.norm!r}; known: batch, none")
        layer: Any = conv_products.Conv if self.products else Conv
        for i, width in enumerate(self.widths):
            x = layer(width, (4, 4), 2, 1, use_bias=False, kernel_init=_DCGAN, name=f"conv{i}")(x)
            if self.norm == "batch":
                x = nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        flat = x.reshape(x.shape[0], -1)
        source = nn.Dense(1, name="source")(flat)[:, 0]
        return source, nn.Dense(self.classes, name="class")(flat)


class AlexDiscriminator(nn.Module):
    """The published trunk for CIFAR-10 (32 pixels): AlexNet without normalisation.

    Attributes:
      widths: channels of the five convolutions; (64, 192, 384, 256, 256) as published.
      dense: units of the two dense layers in front of each head; 4096 as published.
      classes: number of classes.
      products: as of `Generator`.
    """

    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    dense: int = 4096
    classes: int = 10
    products: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        layer: Any = conv_products.Conv if self.products else Conv
        for i, width in enumerate(self.widths):
            x = nn.relu(layer(width, (3, 3), 2 if i == 0 else 1, 1, name=f"conv{i}")(x))
            if i in (0, 1, len(self.widths) - 1):
                x = max_pool(x, (2, 2), (2, 2))
        flat = x.reshape(x.shape[0], -1)

        def head(name: str, units: int) -> jax.Array:
            y = flat
            for i in range(2):
                y = nn.Dropout(0.5, deterministic=not train)(y)
                y = nn.relu(nn.Dense(self.dense, name=f"{name}_dense{i}")(y))
            return nn.Dense(units, name=name)(y)

        return head("source", 1)[:, 0], head("class", self.classes)
