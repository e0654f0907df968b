"""ResNet with bottleneck blocks (v1.5): supervised and DINO ResNet-50 checkpoints.

K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride on the 3x3
convolution as in torchvision. The names of torchvision (also timm and torch.hub, among them DINO's
`dino_resnet50`, which has no classifier) and of the Hugging Face hub (`microsoft/resnet-50`) are
read.

Cost of ResNet-50 at 224 x 224: 25.6 million parameters; 4.1 billion multiply-adds an image.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.pool import max_pool

__all__ = ["ResNet", "from_tensors"]

_BATCH_NORM = ("weight", "scale"), ("bias", "bias")


def _norm_rules(source: str, target: str) -> tuple[porting.Rule, ...]:
    """Rules of one batch normalisation."""
    return (
        *((rf"{source}\.{name}", f"params/{target}/{goal}", porting.identity)
          for name, goal in _BATCH_NORM),
        (rf"{source}\.running_(?P<statistic>mean|var)", rf"batch_stats/{target}/\g<statistic>",
         porting.identity),
    )


_TORCHVISION: tuple[porting.Rule, ...] = (
    (r".*num_batches_tracked", porting.DROP, porting.identity),
    (r"conv1\.weight", "params/conv1/kernel", porting.conv_oihw_to_hwio),
    (r"layer(\d)\.(\d+)\.(conv\d)\.weight", r"params/layer\1_\2/\3/kernel",
     porting.conv_oihw_to_hwio),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"params/layer\1_\2/downsample/kernel",
     porting.conv_oihw_to_hwio),
    (r"fc\.weight", "params/fc/kernel", porting.linear_oi_to_io),
    (r"fc\.bias", "params/fc/bias", porting.identity),
    *_norm_rules("bn1", "bn1"),
    *_norm_rules(r"layer(\d)\.(\d+)\.(bn\d)", r"layer\1_\2/\3"),
    *_norm_rules(r"layer(\d)\.(\d+)\.downsample\.1", r"layer\1_\2/downsample_bn"),
)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, and a shortcut."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(name: str) -> nn.BatchNorm:
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)

        width = self.channels // 4
        y = nn.Conv(width, (1, 1), use_bias=False, name="conv1")(x)
        y = nn.relu(norm("bn1")(y))
        y = nn.Conv(width, (3, 3), self.stride, 1, use_bias=False, name="conv2")(y)
        y = nn.relu(norm("bn2")(y))
        y = norm("bn3")(nn.Conv(self.channels, (1, 1), use_bias=False, name="conv3")(y))
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), self.stride, use_bias=False, name="downsample")(x)
            x = norm("downsample_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """`[batch, height, width, 3]` -> logits (or pooled features) and the outputs of the layers.

    Attributes:
        stages: number of blocks in each layer; (3, 4, 6, 3) is ResNet-50.
        stem: channels of the first convolution.
        channels: output channels of each layer.
        classes: number of classes; 0 for no classifier, then the pooled features are returned.

    The second result maps "layer1", "layer2", ... to `[batch, height, width, channels]`. Images are
    RGB in [0, 1] less ImageNet's mean, over its deviation. With `train`, batch statistics
    normalise and are stored in the collection `batch_stats`.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = nn.Conv(self.stem, (7, 7), 2, 3, use_bias=False, name="conv1")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name="bn1")(x))
        x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        taps = {}
        for number, (blocks, width) in enumerate(zip(self.stages, self.channels, strict=True), 1):
            for index in range(blocks):
                stride = 2 if number > 1 and index == 0 else 1
                x = Bottleneck(width, stride, name=f"layer{number}_{index}")(x, train)
            taps[f"layer{number}"] = x
        x = jnp.mean(x, axis=(1, 2))
        return (nn.Dense(self.classes, name="fc")(x) if self.classes else x), taps


def from_tensors(module: ResNet, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network; `classes` must be 0 for checkpoints without classifier.
        tensors: name -> array, with the names of torchvision or of the Hugging Face hub.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    hub = any("embedder." in name for name in tensors)
    return porting.port(tensors, _hub_rules() if hub else _TORCHVISION, shapes)


def _hub_rules() -> tuple[porting.Rule, ...]:
    """Names of `transformers.ResNetModel` and `ResNetForImageClassification`; layers count from 0.

    A regular expression cannot add 1, so there is one set of rules for each layer and convolution.
    """
    rules: list[porting.Rule] = [
        (r".*num_batches_tracked", porting.DROP, porting.identity),
        (r"(?:resnet\.)?embedder\.embedder\.convolution\.weight", "params/conv1/kernel",
         porting.conv_oihw_to_hwio),
        (r"classifier\.1\.weight", "params/fc/kernel", porting.linear_oi_to_io),
        (r"classifier\.1\.bias", "params/fc/bias", porting.identity),
        *_norm_rules(r"(?:resnet\.)?embedder\.embedder\.normalization", "bn1"),
    ]
    for stage in range(4):
        block = rf"(?:resnet\.)?encoder\.stages\.{stage}\.layers\.(\d+)\."
        parts = [(f"layer\\.{i}", f"conv{i + 1}", f"bn{i + 1}") for i in range(3)]
        for source, conv, norm in [*parts, ("shortcut", "downsample", "downsample_bn")]:
            target = rf"layer{stage + 1}_\1"
            rules.append((rf"{block}{source}\.convolution\.weight",
                          rf"params/{target}/{conv}/kernel", porting.conv_oihw_to_hwio))
            rules += _norm_rules(rf"{block}{source}\.normalization", f"{target}/{norm}")
    return tuple(rules)
