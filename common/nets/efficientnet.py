"""EfficientNet-B0 to B7: the feature map of Keras', torchvision's and timm's networks.

M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019. Keras (and timm's `tf_efficientnet_*`) pads as TensorFlow does and has epsilon 1e-3;
torchvision (and timm's `efficientnet_*`) pads both sides alike and has 1e-5. `style` says which is
meant. Dropping whole blocks at random, which the published training does, is left out.

Cost of B2: 7.8 million parameters without classifier; 0.7 billion multiply-adds an image of
224 x 224.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.conv import Conv
from common.nets.conv_norm import BN_PARTS, STYLES

__all__ = ["SCALES", "EfficientNet", "from_tensors"]

SCALES = {"b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4), "b4": (1.4, 1.8),
          "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1)}
"""Width and depth of each variant."""
_EPSILON = {"keras": 1e-3, "torch": 1e-5}
# Blocks, kernel, stride, expansion and channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


class Block(nn.Module):
    """Expansion, depthwise convolution, gate, projection; a shortcut where the shape stays."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    style: str
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.BatchNorm(not train, momentum=self.momentum, epsilon=_EPSILON[self.style],
                                name=name)(y)

        width, y = x.shape[-1] * self.expansion, x
        if self.expansion != 1:
            y = Conv(width, (1, 1), use_bias=False, name="expand")(y)
            y = nn.silu(norm("expand_bn", y))
        y = nn.Conv(width, (self.kernel,) * 2, self.stride, _pads(self.kernel, self.style),
                    feature_group_count=width, use_bias=False, name="depthwise")(y)
        y = nn.silu(norm("depthwise_bn", y))
        gate = jnp.mean(y, axis=(1, 2), keepdims=True)
        gate = nn.silu(Conv(max(1, x.shape[-1] // 4), (1, 1), name="reduce")(gate))
        y = y * nn.sigmoid(Conv(width, (1, 1), name="enlarge")(gate))
        y = Conv(self.channels, (1, 1), use_bias=False, name="project")(y)
        y = norm("project_bn", y)
        return x + y if self.stride == 1 and x.shape[-1] == self.channels else y


class EfficientNet(nn.Module):
    """`[batch, height, width, channels]` -> feature map `[batch, height / 32, width / 32, maps]`.

    Attributes:
        width, depth: scales of channels and blocks, see `SCALES`; B2 has 1,408 maps.
        style: "keras" or "torch", see the module.
        momentum: of the averages of batch normalisation.

    With `train`, batch statistics normalise and are stored in the collection `batch_stats`.
    """

    width: float = 1.1
    depth: float = 1.2
    style: str = "keras"
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}; known: {', '.join(STYLES)}")

        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.BatchNorm(not train, momentum=self.momentum, epsilon=_EPSILON[self.style],
                                name=name)(y)

        x = Conv(_rounded(32 * self.width), (3, 3), 2, _pads(3, self.style), use_bias=False,
                 name="stem")(x)
        x = nn.silu(norm("stem_bn", x))
        for number, (blocks, kernel, stride, expansion, channels) in enumerate(_STAGES, 1):
            for index in range(math.ceil(blocks * self.depth)):
                x = Block(kernel, stride if index == 0 else 1, expansion,
                          _rounded(channels * self.width), self.style, self.momentum,
                          name=f"block{number}_{index}")(x, train)
        x = Conv(_rounded(1280 * self.width), (1, 1), use_bias=False, name="top")(x)
        return nn.silu(norm("top_bn", x))


def from_tensors(module: EfficientNet, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network.
        tensors: name -> array, without classifier, with the names of torchvision, timm or Keras
            (without its layers `rescaling` and `normalization`).

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0),
                            jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    keras = any(name.startswith("stem_conv") for name in tensors)
    rename = _keras_name if keras else (
        _timm_name if "conv_stem.weight" in tensors else _torchvision_name)
    found = {rename(re.sub(":0$", "", name)): array for name, array in tensors.items()
             if not name.endswith("num_batches_tracked")}
    kernel = porting.identity if keras else porting.conv_oihw_to_hwio
    depthwise = porting.depthwise_hwim_to_hwio if keras else kernel
    where = r"((?:block\d_\d+/)?\w+)"
    return porting.port(found, (
        (r"(block\d_\d+)/depthwise/kernel", r"params/\1/depthwise/kernel", depthwise),
        (rf"{where}/kernel", r"params/\1/kernel", kernel),
        (rf"{where}_bn/(scale|bias)", r"params/\1_bn/\2", porting.identity),
        (rf"{where}_bn/(mean|var)", r"batch_stats/\1_bn/\2", porting.identity),
        (rf"{where}/bias", r"params/\1/bias", porting.identity),
    ), shapes)


def _pads(kernel: int, style: str) -> Any:
    return "SAME" if style == "keras" else [(kernel // 2, kernel // 2)] * 2


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is at least 0.9 of `channels`."""
    result = max(8, int(channels + 4) // 8 * 8)
    return result + 8 if result < 0.9 * channels else result


def _part(layer: str, part: str, norm: bool) -> str:
    """`LAYER/kernel`, `LAYER/bias` or `LAYER_bn/scale` and so on."""
    if norm:
        return f"{layer}_bn/{BN_PARTS.get(part, part)}"
    return f"{layer}/{'bias' if part == 'bias' else 'kernel'}"


def _keras_name(name: str) -> str:
    """`block2a_expand_conv/kernel`, `block2a_bn/gamma` (of the depthwise layer), `top_conv/...`."""
    match = re.fullmatch(r"(stem|top)_(conv|bn)/(\w+)", name)
    if match:
        return _part(match[1], match[3], match[2] == "bn")
    layers = {"dwconv": "depthwise", "bn": "depthwise", "expand_conv": "expand",
              "expand_bn": "expand", "se_reduce": "reduce", "se_expand": "enlarge",
              "project_conv": "project", "project_bn": "project"}
    match = re.fullmatch(r"block(\d)([a-z])_(\w+)/(\w+)", name)
    if not match or match[3] not in layers:
        return name
    at = f"block{match[1]}_{ord(match[2]) - ord('a')}"
    return _part(f"{at}/{layers[match[3]]}", match[4], match[3].endswith("bn"))


def _timm_name(name: str) -> str:
    """`blocks.1.0.conv_pw.weight`: the first stage has no expansion, its names shift by one."""
    tops = {"conv_stem": "stem", "bn1": "stem", "conv_head": "top", "bn2": "top"}
    match = re.fullmatch(r"(conv_stem|bn1|conv_head|bn2)\.(\w+)", name)
    if match:
        return _part(tops[match[1]], match[2], match[1].startswith("bn"))
    match = re.fullmatch(r"blocks\.(\d)\.(\d+)\.(?:se\.)?(\w+)\.(\w+)", name)
    if not match:
        return name
    stage, index, layer, part = match.groups()
    first = {"conv_dw": "depthwise", "bn1": "depthwise", "conv_pw": "project", "bn2": "project"}
    later = {"conv_pw": "expand", "bn1": "expand", "conv_dw": "depthwise", "bn2": "depthwise",
             "conv_pwl": "project", "bn3": "project"}
    gates = {"conv_reduce": "reduce", "conv_expand": "enlarge"}
    table = {**(first if stage == "0" else later), **gates}
    if layer not in table:
        return name
    return _part(f"block{int(stage) + 1}_{index}/{table[layer]}", part, layer.startswith("bn"))


def _torchvision_name(name: str) -> str:
    """`features.2.0.block.1.0.weight`; the first stage has no expansion, its places shift."""
    match = re.fullmatch(r"features\.([08])\.([01])\.(\w+)", name)
    if match:
        return _part("stem" if match[1] == "0" else "top", match[3], match[2] == "1")
    match = re.fullmatch(r"features\.(\d)\.(\d+)\.block\.(\d)\.(\w+)\.(\w+)", name)
    if not match:
        return name
    stage, index, place, inner, part = match.groups()
    whole = ("expand", "depthwise", "gate", "project")
    order = whole[1:] if stage == "1" else whole
    layer = order[int(place)] if int(place) < len(order) else ""
    if layer == "gate":
        layer = {"fc1": "reduce", "fc2": "enlarge"}.get(inner, "")
    return _part(f"block{stage}_{index}/{layer}", part, inner == "1") if layer else name
