"""EfficientNet-Lite0 to Lite4: ImageNet classifiers of mobile inverted bottlenecks without gating.

M. Tan, Q. Le, "EfficientNet", ICML 2019, in the Lite variants of the TensorFlow TPU repository
(2020): ReLU6 instead of swish, no squeeze-and-excitation, stem and head of fixed width and the
first and last stage of fixed depth.

Measured with the weights of Lite0: `coffee.png` of scikit-image is class 967, espresso.

Cost of Lite0 at 224 x 224: 4.7 million parameters; 0.4 billion multiply-adds an image.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import porting, registry, torch_reader

__all__ = ["SIZES", "EfficientNetLite", "load_variables", "preprocess"]

# Width, depth and input size in pixels of each variant.
_VARIANTS = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
SIZES = {name: size for name, (_, _, size) in _VARIANTS.items()}

# Blocks, kernel, stride, expansion and channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

# Names of the PyTorch implementation that the packages follow.
RULES: tuple[porting.Rule, ...] = (
    (r".*num_batches_tracked", porting.DROP, porting.identity),
    (r"_blocks\.(\d+)\._(\w+conv)\.weight", r"params/block\1/\2/kernel", porting.conv_oihw_to_hwio),
    (r"_blocks\.(\d+)\._bn(\d)\.weight", r"params/block\1/bn\2/scale", porting.identity),
    (r"_blocks\.(\d+)\._bn(\d)\.bias", r"params/block\1/bn\2/bias", porting.identity),
    (r"_blocks\.(\d+)\._bn(\d)\.running_(mean|var)", r"batch_stats/block\1/bn\2/\3",
     porting.identity),
    (r"_conv_(stem|head)\.weight", r"params/\1/kernel", porting.conv_oihw_to_hwio),
    (r"_bn(\d)\.weight", r"params/bn\1/scale", porting.identity),
    (r"_bn(\d)\.bias", r"params/bn\1/bias", porting.identity),
    (r"_bn(\d)\.running_(mean|var)", r"batch_stats/bn\1/\2", porting.identity),
    (r"_fc\.weight", r"params/fc/kernel", porting.linear_oi_to_io),
    (r"_fc\.bias", r"params/fc/bias", porting.identity),
)


def _norm(name: str, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, name=name)


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; a shortcut where the shape stays."""

    kernel: int
    stride: int
    expansion: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = nn.Conv(width, (1, 1), use_bias=False, name="expand_conv")(y)
            y = nn.relu6(_norm("bn0", train)(y))
        y = nn.Conv(
            width, (self.kernel,) * 2, self.stride, "SAME", feature_group_count=width,
            use_bias=False, name="depthwise_conv",
        )(y)
        y = nn.relu6(_norm("bn1", train)(y))
        y = nn.Conv(self.channels, (1, 1), use_bias=False, name="project_conv")(y)
        y = _norm("bn2", train)(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.channels else y


class EfficientNetLite(nn.Module):
    """`[batch, size, size, 3]` from `preprocess` -> logits `[batch, classes]` and block outputs.

    Attributes:
        variant: "lite0" to "lite4".
        classes: number of classes.

    The second result maps "block0", "block1", ... to `[batch, height, width, channels]`. With
    `train`, batch statistics normalise and are stored in the collection `batch_stats`.
    """

    variant: str = "lite0"
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        width, depth, _ = _VARIANTS[self.variant]
        x = nn.Conv(32, (3, 3), 2, "SAME", use_bias=False, name="stem")(x)
        x = nn.relu6(_norm("bn0", train)(x))
        taps: dict[str, jax.Array] = {}
        for index, (blocks, kernel, stride, expansion, channels) in enumerate(_STAGES):
            if index not in (0, len(_STAGES) - 1):
                blocks = math.ceil(blocks * depth)
            for repeat in range(blocks):
                name = f"block{len(taps)}"
                step = stride if repeat == 0 else 1
                block = Block(kernel, step, expansion, _rounded(channels * width), name=name)
                taps[name] = x = block(x, train)
        x = nn.Conv(1280, (1, 1), use_bias=False, name="head")(x)
        x = jnp.mean(nn.relu6(_norm("bn1", train)(x)), axis=(1, 2))
        return nn.Dense(self.classes, name="fc")(x), taps


def preprocess(images: jax.Array) -> jax.Array:
    """RGB images in [0, 1] -> the network's range, `(255 x - 127) / 128`."""
    return (images * 255 - 127) / 128


def load_variables(variant: str = "lite0") -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` with ImageNet weights from the registry.

    Raises:
        registry.RegistryError: the weights are not in the table or cannot be obtained.
        porting.PortingError: the tensors are not those of this network.
    """
    folder = registry.fetch(f"efficientnet-{variant}")
    (path,) = folder.glob("*.pth")
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(EfficientNetLite(variant).init, jax.random.key(0), x)
    return porting.port(torch_reader.read(path), RULES, shapes)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is at least 0.9 of `channels`."""
    result = max(8, int(channels + 4) // 8 * 8)
    return result + 8 if result < 0.9 * channels else result
