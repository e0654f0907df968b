"""Inception-ResNet-v2: the feature map of Keras' and timm's network.

C. Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", AAAI 2017.

Cost: 54.3 million parameters without classifier; 13 billion multiply-adds an image of 299 x 299.
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
from common.nets.conv_norm import (
    BN_PARTS,
    STYLES,
    called,
    keras_numbers,
    layers,
    plain_names,
    rules,
)
from common.nets.pool import max_pool

__all__ = ["InceptionResNetV2", "from_tensors"]


class InceptionResNetV2(nn.Module):
    """`[batch, height, width, channels]` -> feature map `[batch, about height / 32, ..., 1536]`.

    Attributes:
        style: "keras" or "torch": whose names the weights have; the networks are the same.
        momentum: of the averages of batch normalisation.
        repeats: blocks at the three resolutions; the last is followed by one more.

    Images have at least 75 pixels a side. With `train`, batch statistics normalise and are stored
    in the collection `batch_stats`.
    """

    style: str = "keras"
    momentum: float = 0.99
    repeats: tuple[int, int, int] = (10, 20, 9)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}; known: {', '.join(STYLES)}")

        conv, valid = layers(self.momentum, train)

        def largest(y: jax.Array) -> jax.Array:
            return max_pool(y, (3, 3), (2, 2))

        def joined(at: str, y: jax.Array, branches: list[jax.Array], scale: float) -> jax.Array:
            found = jnp.concatenate(branches, -1)
            return y + scale * Conv(y.shape[-1], (1, 1), name=f"{at}_conv2d")(found)

        # Calls stand in the order in which Keras makes its layers: it numbers them.
        x = conv("conv2d_2b", valid("conv2d_2a", valid("conv2d_1a", x, 32, stride=2), 32), 64, 3)
        x = largest(valid("conv2d_4a", valid("conv2d_3b", largest(x), 80, 1), 192))
        at = "mixed_5b_branch"
        one = conv(f"{at}0", x, 96, 1)
        five = conv(f"{at}1_1", conv(f"{at}1_0", x, 48, 1), 64, 5)
        twice = conv(f"{at}2_1", conv(f"{at}2_0", x, 64, 1), 96, 3)
        twice = conv(f"{at}2_2", twice, 96, 3)
        mean = nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)
        x = jnp.concatenate([one, five, twice, conv(f"{at}3_1", mean, 64, 1)], -1)
        for index in range(self.repeats[0]):
            at = f"repeat_{index}"
            one = conv(f"{at}_branch0", x, 32, 1)
            three = conv(f"{at}_branch1_1", conv(f"{at}_branch1_0", x, 32, 1), 32, 3)
            twice = conv(f"{at}_branch2_1", conv(f"{at}_branch2_0", x, 32, 1), 48, 3)
            twice = conv(f"{at}_branch2_2", twice, 64, 3)
            x = nn.relu(joined(at, x, [one, three, twice], 0.17))
        at = "mixed_6a_branch"
        first = valid(f"{at}0", x, 384, stride=2)
        twice = conv(f"{at}1_1", conv(f"{at}1_0", x, 256, 1), 256, 3)
        x = jnp.concatenate([first, valid(f"{at}1_2", twice, 384, stride=2), largest(x)], -1)
        for index in range(self.repeats[1]):
            at = f"repeat_1_{index}"
            one = conv(f"{at}_branch0", x, 192, 1)
            seven = conv(f"{at}_branch1_1", conv(f"{at}_branch1_0", x, 128, 1), 160, 1, 7)
            seven = conv(f"{at}_branch1_2", seven, 192, 7, 1)
            x = nn.relu(joined(at, x, [one, seven], 0.1))
        at = "mixed_7a_branch"
        one = valid(f"{at}0_1", conv(f"{at}0_0", x, 256, 1), 384, stride=2)
        two = valid(f"{at}1_1", conv(f"{at}1_0", x, 256, 1), 288, stride=2)
        twice = conv(f"{at}2_1", conv(f"{at}2_0", x, 256, 1), 288, 3)
        twice = valid(f"{at}2_2", twice, 320, stride=2)
        x = jnp.concatenate([one, two, twice, largest(x)], -1)
        for index in range(self.repeats[2] + 1):
            last = index == self.repeats[2]
            at = "block8" if last else f"repeat_2_{index}"
            one = conv(f"{at}_branch0", x, 192, 1)
            three = conv(f"{at}_branch1_1", conv(f"{at}_branch1_0", x, 192, 1), 224, 1, 3)
            three = conv(f"{at}_branch1_2", three, 256, 3, 1)
            x = joined(at, x, [one, three], 1.0 if last else 0.2)
            x = x if last else nn.relu(x)
        return conv("conv2d_7b", x, 1536, 1)


def from_tensors(module: InceptionResNetV2, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network, of the tensors' family.
        tensors: name -> array, without classifier, with the names of timm (`mixed_5b.branch0...`)
            or of Keras.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    shapes, names = called(module, jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32))
    torch = module.style == "torch"
    kernel = porting.conv_oihw_to_hwio if torch else porting.identity
    own = ((r"(\w+)/conv2d/kernel", r"params/\1_conv2d/kernel", kernel),
           (r"(\w+)/conv2d/bias", r"params/\1_conv2d/bias", porting.identity))
    if torch:
        found = plain_names(tensors)
        for name in list(found):
            match = re.fullmatch(r"(.+)\.conv2d\.(weight|bias)", name)
            if match:
                end = "kernel" if match[2] == "weight" else "bias"
                found[f"{match[1].replace('.', '_')}/conv2d/{end}"] = found.pop(name)
        return porting.port(found, (*rules(kernel), *own), shapes)
    found = keras_numbers(tensors, [name for name in names if name != "conv2d_7b"])
    for name in list(found):
        changed = _keras_name(name, module.repeats)
        if changed != name:
            found[changed] = found.pop(name)
    last = "conv2d_7b/bn/"
    if f"{last}scale" not in found and f"{last}bias" in found:
        found[f"{last}scale"] = np.ones_like(found[f"{last}bias"])
    return porting.port(found, (*rules(kernel), *own), shapes)


def _keras_name(name: str, repeats: tuple[int, int, int]) -> str:
    """Of the layers that Keras names: `block35_1_conv` counts from 1, the last block8 is alone."""
    match = re.fullmatch(r"block(35|17|8)_(\d+)_conv/(kernel|bias)", name)
    if match:
        stage, index = ("35", "17", "8").index(match[1]), int(match[2]) - 1
        at = ("repeat", "repeat_1", "repeat_2")[stage] + f"_{index}"
        if stage == 2 and index == repeats[2]:
            at = "block8"
        return f"{at}/conv2d/{match[3]}"
    match = re.fullmatch(r"conv_7b(_bn)?/(\w+)", name)
    if match:
        return f"conv2d_7b/bn/{BN_PARTS[match[2]]}" if match[1] else f"conv2d_7b/conv/{match[2]}"
    return name
