"""From images to feature maps: a small residual encoder, a ResNet, and the feature pyramid."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nets import resnet
from keypoints.norms import GroupNorm

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Residual(nn.Module):
    """Two 3 x 3 convolutions with norms and a shortcut."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(GroupNorm()(nn.Conv(self.channels, (3, 3), use_bias=False)(x)))
        y = GroupNorm()(nn.Conv(self.channels, (3, 3), use_bias=False)(y))
        return nn.relu(x + y)


class Encoder(nn.Module):
    """`[images, h, w, 3]` -> features at strides 2, 4, 8, ...

    Each halving is a 4 x 4 convolution with one pixel of padding: the centre of an output pixel is
    the centre of its 2 x 2 block, so maps of all strides follow the half-pixel convention of
    `cameras.resize`.

    Attributes:
        channels: at each stride from 2 on.
        blocks: residual blocks at each stride from 4 on.
    """

    channels: tuple[int, ...]
    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features = []
        x = 2.0 * x - 1.0
        for level, channels in enumerate(self.channels):
            x = nn.Conv(channels, (4, 4), 2, 1, use_bias=False, name=f"halve{level}")(x)
            x = nn.relu(GroupNorm(name=f"norm{level}")(x))
            for block in range(self.blocks if level else 0):
                x = Residual(channels, name=f"block{level}_{block}")(x)
            features.append(x)
        return features[1:]


class ResNetEncoder(nn.Module):
    """ResNet with frozen batch statistics: ImageNet's weights may be put in, see `pretrained`.

    `[images, h, w, 3]` -> features at strides 4, 8, 16, ... Pixel i of the map at stride s lies on
    pixel s i of the image: its odd kernels keep the corners in place, not the centres. Statistics
    do not follow the batches, so an image's result does not depend on others; they are parameters
    without gradient.

    Attributes:
        stages: number of blocks at each stride.
        channels: at each stride.
        stem: channels of the first convolution.
    """

    stages: tuple[int, ...]
    channels: tuple[int, ...]
    stem: int

    def network(self) -> resnet.ResNet:
        """The network, without classifier."""
        return resnet.ResNet(self.stages, self.stem, self.channels, classes=0, parent=None)

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        network = self.network()

        def fresh(key: jax.Array, collection: str) -> Any:
            return network.init(key, x[:1])[collection]

        params = self.param("weights", fresh, "params")
        statistics = jax.lax.stop_gradient(self.param("statistics", fresh, "batch_stats"))
        mean = jnp.asarray(_MEAN, x.dtype).reshape(1, 1, 1, 3)
        deviation = jnp.asarray(_DEVIATION, x.dtype).reshape(1, 1, 1, 3)
        variables = {"params": params, "batch_stats": statistics}
        found: Any = network.apply(variables, (x - mean) / deviation)
        return [found[1][f"layer{number}"] for number in range(1, len(self.stages) + 1)]


def double(x: jax.Array) -> jax.Array:
    """Twice the size of `[images, h, w, channels]`, bilinear, the first pixel stays in place."""
    for axis in (1, 2):
        size = x.shape[axis]
        rest = jax.lax.slice_in_dim(x, 1, size, axis=axis)
        last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
        between = 0.5 * (x + jnp.concatenate([rest, last], axis=axis))
        shape = tuple(2 * n if a == axis else n for a, n in enumerate(x.shape))
        x = jnp.stack([x, between], axis=axis + 1).reshape(shape)
    return x


class Pyramid(nn.Module):
    """Top-down sum of lateral 1 x 1 convolutions: features from stride 4 on -> maps at stride 4.

    Attributes:
        channels: of the pyramid.
        outputs: channels of the maps.
        corners: whether the first pixels of all maps lie on each other, else their centres.
    """

    channels: int
    outputs: int
    corners: bool = False

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> jax.Array:
        x = None
        for index, feature in reversed(list(enumerate(features, 1))):
            project = nn.Conv(self.channels, (1, 1), use_bias=False, name=f"lateral{index}")
            lateral = project(feature)
            lateral = nn.relu(GroupNorm(name=f"norm{index}")(lateral))
            if x is not None:
                x = double(x) if self.corners else jax.image.resize(x, lateral.shape, "bilinear")
                x = nn.Conv(self.channels, (1, 1), use_bias=False, name=f"down{index}")(x)
                lateral = lateral + x
            x = lateral
        x = nn.Conv(self.channels, (3, 3), use_bias=False, name="smooth")(x)
        x = nn.relu(GroupNorm(name="smooth_norm")(x))
        return nn.Conv(self.outputs, (1, 1), name="predict")(x)
