"""Networks for 28-pixel grey images (Fashion-MNIST, MNIST): generator, and trunk with two heads.

The discriminator's class head is the classifier; a CNN baseline is trunk and class head alone.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets.conv import Conv
from common.nets.conv_transpose import ConvTranspose2x, torch_padding

_DCGAN = nn.initializers.normal(0.02)


class Generator(nn.Module):
    """Codes and classes to images ``[batch, 28, 28, 1]`` in [-1, 1], by 4, 7, 14 and 28 pixels.

    Attributes:
      widths: channels at 4, 7 and 14 pixels; (512, 256, 128) as published.
      classes: number of classes, given one-hot beside the code.
    """

    widths: tuple[int, int, int] = (512, 256, 128)
    classes: int = 10

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, train: bool = False) -> jax.Array:
        x = jnp.concatenate([z, jax.nn.one_hot(labels, self.classes, dtype=z.dtype)], axis=-1)
        x = nn.Dense(16 * self.widths[0], use_bias=False, kernel_init=_DCGAN, name="start")(x)
        x = x.reshape(-1, 4, 4, self.widths[0])
        for i, (width, kernel) in enumerate(zip((*self.widths[1:], 1), (3, 4, 4), strict=True)):
            x = nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x)
            x = ConvTranspose2x(
                width, (kernel, kernel), torch_padding((kernel, kernel), 1), use_bias=False,
                kernel_init=_DCGAN, name=f"up{i}")(nn.relu(x))
        return jnp.tanh(x)


class Discriminator(nn.Module):
    """Images to a source score ``[batch]`` and class logits ``[batch, classes]``.

    Attributes:
      widths: channels at 14, 7 and 3 pixels; (128, 256, 512) as published.
      classes: number of classes.
      norm: "batch" (as released) or "none": with batch normalisation the gradient penalty of one
        image depends on the others.
    """

    widths: tuple[int, int, int] = (128, 256, 512)
    classes: int = 10
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        if self.norm not in ("batch", "none"):
            raise ValueError(f"norm {self.norm!r}; known: batch, none")
        for i, width in enumerate(self.widths):
            x = Conv(width, (4, 4), 2, 1, use_bias=False, kernel_init=_DCGAN,
                        name=f"conv{i}")(x)
            if self.norm == "batch":
                x = nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        flat = x.reshape(x.shape[0], -1)
        source = nn.Dense(1, name="source")(flat)[:, 0]
        return source, nn.Dense(self.classes, name="class")(flat)
