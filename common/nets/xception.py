"""Xception: the feature map of Keras' network and of its PyTorch port (timm's `legacy_xception`).

F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017. The port
pads its pools on both sides, Keras (TensorFlow's "SAME") at the end first where the size is even;
and the port has another epsilon of batch normalisation. `style` says which is meant.

Cost: 20.9 million parameters without classifier; 8.4 billion multiply-adds an image of 299 x 299.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.conv import Conv
from common.nets.conv_norm import BN_PARTS, STYLES, ConvNorm, called, keras_numbers, rules
from common.nets.pool import max_pool
from common.nets.separable import depthwise_conv

__all__ = ["Xception", "from_tensors"]

_EPSILON = {"keras": 1e-3, "torch": 1e-5}
_REP = re.compile(r"block(\d+)\.rep\.(\d+)\.(.+)")


class Separable(nn.Module):
    """3x3 depthwise and 1x1 convolution without biases, then batch normalisation."""

    features: int
    epsilon: float
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kernel = self.param("depthwise", nn.initializers.lecun_normal(), (3, 3, 1, x.shape[-1]))
        x = Conv(self.features, (1, 1), use_bias=False, name="pointwise")(depthwise_conv(x, kernel))
        return nn.BatchNorm(not train, momentum=self.momentum, epsilon=self.epsilon, name="bn")(x)


class Xception(nn.Module):
    """`[batch, height, width, channels]` -> feature map `[batch, about height / 32, ..., 2048]`.

    Attributes:
        style: "keras" or "torch", see the module.
        momentum: of the averages of batch normalisation.
        widths: of the three blocks that halve the size.
        middle: blocks between them and the last.

    Images have at least 71 pixels a side. With `train`, batch statistics normalise and are stored
    in the collection `batch_stats`.
    """

    style: str = "keras"
    momentum: float = 0.99
    widths: tuple[int, int, int] = (128, 256, 728)
    middle: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}; known: {', '.join(STYLES)}")
        epsilon, momentum = _EPSILON[self.style], self.momentum

        def plain(name: str, y: jax.Array, maps: int, kernel: int, stride: int, padding: str,
                  rectified: bool = True) -> jax.Array:
            return ConvNorm(maps, (kernel, kernel), stride, padding, epsilon, momentum, rectified,
                            name=name)(y, train)

        def separable(name: str, y: jax.Array, maps: int) -> jax.Array:
            return Separable(maps, epsilon=epsilon, momentum=momentum, name=name)(y, train)

        def halved(block: int, y: jax.Array, maps: tuple[int, int]) -> jax.Array:
            skip = plain(f"block{block}_skip", y, maps[1], 1, 2, "SAME", rectified=False)
            for index, width in enumerate(maps, 1):
                # The first block's input has been rectified already.
                y = y if (block, index) == (2, 1) else nn.relu(y)
                y = separable(f"block{block}_sepconv{index}", y, width)
            pads = "SAME" if self.style == "keras" else ((1, 1), (1, 1))
            return max_pool(y, (3, 3), (2, 2), pads) + skip

        x = plain("block1_conv1", x, 32, 3, 2, "VALID")
        x = plain("block1_conv2", x, 64, 3, 1, "VALID")
        for block, width in enumerate(self.widths, 2):
            x = halved(block, x, (width, width))
        last = 5 + self.middle
        for block in range(5, last):
            y = x
            for index in (1, 2, 3):
                y = separable(f"block{block}_sepconv{index}", nn.relu(y), self.widths[-1])
            x = x + y
        x = halved(last, x, (self.widths[-1], 1024))
        x = nn.relu(separable(f"block{last + 1}_sepconv1", x, 1536))
        return nn.relu(separable(f"block{last + 1}_sepconv2", x, 2048))


def from_tensors(module: Xception, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network, of the tensors' family.
        tensors: name -> array, without classifier, with the names of the PyTorch port
            (`block1.rep.0.conv1.weight`) or of Keras.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    shapes, layers = called(module, jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32))
    torch = module.style == "torch"
    kernel = porting.conv_oihw_to_hwio if torch else porting.identity
    depthwise = kernel if torch else porting.depthwise_hwim_to_hwio
    every = (
        *rules(kernel),
        (r"(\w+)/depthwise", r"params/\1/depthwise", depthwise),
        (r"(\w+)/pointwise", r"params/\1/pointwise/kernel", kernel),
    )
    if torch:
        found = {_torch_name(n, module.middle): a for n, a in tensors.items()
                 if not n.endswith("num_batches_tracked")}
    else:
        skips = [name for name in layers if name.endswith("_skip")]
        found = {_keras_name(n): a for n, a in keras_numbers(tensors, skips).items()}
    return porting.port(found, every, shapes)


def _keras_name(name: str) -> str:
    match = re.fullmatch(r"(block\d+_(?:sep)?conv\d)(_bn)?/(\w+)", name)
    if not match:
        return name
    layer, norm, part = match.groups()
    if norm:
        return f"{layer}/bn/{BN_PARTS.get(part, part)}"
    ends = {"depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise",
            "kernel": "conv/kernel"}
    return f"{layer}/{ends.get(part, part)}"


def _torch_name(name: str, middle: int) -> str:
    """The port's block n is Keras' block n + 1, its `conv3` and `conv4` are the last block's."""
    tops = {"conv1": "block1_conv1", "conv2": "block1_conv2",
            "conv3": f"block{middle + 6}_sepconv1", "conv4": f"block{middle + 6}_sepconv2"}
    match = re.fullmatch(r"(conv|bn)(\d)\.(.+)", name)
    if match:
        kind, number, part = match.groups()
        layer = tops.get(f"conv{number}", name)
        if kind == "bn":
            return f"{layer}/bn/{BN_PARTS.get(part, part)}"
        ends = {"weight": "conv/kernel", "conv1.weight": "depthwise",
                "pointwise.weight": "pointwise"}
        return f"{layer}/{ends.get(part, part)}"
    match = re.fullmatch(r"block(\d+)\.skip(bn)?\.(\w+)", name)
    if match:
        layer = f"block{int(match[1]) + 1}_skip"
        return f"{layer}/bn/{BN_PARTS.get(match[3], match[3])}" if match[2] else (
            f"{layer}/conv/kernel")
    match = _REP.fullmatch(name)
    if not match:
        return name
    block, place, part = int(match[1]), int(match[2]), match[3]
    # In the list of a block: (rectifier,) convolution, normalisation; the first has no rectifier.
    index = (place + (1 if block == 1 else 0)) // 3 + 1
    layer = f"block{block + 1}_sepconv{index}"
    ends = {"conv1.weight": "depthwise", "pointwise.weight": "pointwise"}
    return f"{layer}/{ends[part]}" if part in ends else f"{layer}/bn/{BN_PARTS.get(part, part)}"
