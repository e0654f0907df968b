"""ResNet-50 as a trunk: the feature map of torchvision's and of Keras' network.

K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. torchvision (v1.5) halves
the size in a block's 3x3 convolution, Keras' `ResNet50` (v1, as published) in the first 1x1;
their epsilons of batch normalisation differ, too. `style` says which is meant. Keras' convolutions
have biases before a batch normalisation, which are read into its mean: the same function.

Cost: 23.5 million parameters without classifier; 4.1 (Keras 3.9) billion multiply-adds an image of
224 x 224.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.conv_norm import BN_PARTS, STYLES, ConvNorm, plain_names, rules
from common.nets.pool import max_pool

__all__ = ["ResNetTrunk", "from_tensors"]

_EPSILON = {"keras": 1.001e-5, "torch": 1e-5}


class ResNetTrunk(nn.Module):
    """`[batch, height, width, channels]` -> feature map `[batch, height / 32, width / 32, maps]`.

    Attributes:
        stages: blocks at each resolution; (3, 4, 6, 3) is ResNet-50.
        stem: channels of the first convolution; stage n has `4 stem 2^n` maps.
        style: "keras" or "torch", see the module.
        momentum: of the averages of batch normalisation.

    With `train`, batch statistics normalise and are stored in the collection `batch_stats`.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    style: str = "keras"
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}; known: {', '.join(STYLES)}")

        def conv(name: str, y: jax.Array, maps: int, kernel: int = 1, stride: int = 1,
                 rectified: bool = True) -> jax.Array:
            # Padding by hand: "SAME" would pad a stride of 2 at the end only.
            y = jnp.pad(y, ((0, 0), *[(kernel // 2, kernel // 2)] * 2, (0, 0)))
            return ConvNorm(maps, (kernel, kernel), stride, "VALID", _EPSILON[self.style],
                            self.momentum, rectified, name=name)(y, train)

        x = max_pool(conv("stem", x, self.stem, 7, 2), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for number, blocks in enumerate(self.stages, 1):
            width = self.stem << (number - 1)
            for index in range(blocks):
                at, step = f"layer{number}_{index}", 2 if number > 1 and index == 0 else 1
                steps = (step, 1) if self.style == "keras" else (1, step)
                skip = x
                if index == 0:
                    skip = conv(f"{at}_skip", x, 4 * width, 1, step, rectified=False)
                y = conv(f"{at}_2", conv(f"{at}_1", x, width, 1, steps[0]), width, 3, steps[1])
                x = nn.relu(skip + conv(f"{at}_3", y, 4 * width, rectified=False))
        return x


def from_tensors(module: ResNetTrunk, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network, of the tensors' family.
        tensors: name -> array, without classifier, with the names of torchvision (also timm) or of
            Keras.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0),
                            jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    torch = module.style == "torch"
    rename = _torch_name if torch else _keras_name
    found = {rename(re.sub(":0$", "", name)): array
             for name, array in plain_names(tensors).items()}
    for name in [n for n in found if n.endswith("/conv/bias")]:
        mean = name.replace("/conv/bias", "/bn/mean")
        if mean in found:
            found[mean] = found[mean] - found.pop(name)
    return porting.port(
        found, rules(porting.conv_oihw_to_hwio if torch else porting.identity), shapes)


def _torch_name(name: str) -> str:
    match = re.fullmatch(r"(?:layer(\d)\.(\d+)\.)?(conv|bn|downsample\.)(\d)\.(\w+)", name)
    if not match:
        return name
    stage, index, kind, number, part = match.groups()
    if kind == "downsample.":
        kind, number = ("conv" if number == "0" else "bn"), "skip"
    layer = f"layer{stage}_{index}_{number}" if stage else "stem"
    end = "kernel" if kind == "conv" else BN_PARTS.get(part, part)
    return f"{layer}/{kind}/{end}"


def _keras_name(name: str) -> str:
    """`conv2_block1_0_conv/kernel`: stages count from 2, blocks from 1, and 0 is the shortcut."""
    match = re.fullmatch(r"conv(\d)(?:_block(\d+)_(\d))?_(conv|bn)/(\w+)", name)
    if not match:
        return name
    stage, block, number, kind, part = match.groups()
    layer = "stem"
    if block:
        layer = f"layer{int(stage) - 1}_{int(block) - 1}_{'skip' if number == '0' else number}"
    return f"{layer}/{kind}/{part if kind == 'conv' else BN_PARTS.get(part, part)}"
