"""The image tower of CLIP's ResNet-50: average pooling instead of strides, attention pooling.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
2021 (CLIP/clip/model.py). Three convolutions as stem; bottlenecks of stride 1, followed by average
pooling where the resolution halves, in the shortcut as well. The names of OpenAI's state dict
(`visual.*`, the text tower is left out) and of open_clip's `RN50` are read; OpenAI's own file is a
TorchScript archive, of which `rosetta.zoo.torchscript` reads the tensors.

Cost at 224 x 224: 38.3 million parameters; 6.1 billion multiply-adds an image.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common import porting

__all__ = ["ClipResNet", "from_tensors"]

# Text tower, temperature and TorchScript's constants.
_TEXT = (
    r"(?:transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection"
    r"|logit_scale|logit_bias|input_resolution|context_length|vocab_size"
)
_BLOCK = r"(?:visual\.)?layer(\d)\.(\d+)\."


def _norm_rules(source: str, target: str) -> tuple[porting.Rule, ...]:
    return (
        (rf"{source}\.weight", f"params/{target}/scale", porting.identity),
        (rf"{source}\.bias", f"params/{target}/bias", porting.identity),
        (rf"{source}\.running_(?P<statistic>mean|var)", rf"batch_stats/{target}/\g<statistic>",
         porting.identity),
    )


RULES: tuple[porting.Rule, ...] = (
    (r".*num_batches_tracked", porting.DROP, porting.identity),
    (r"(?:visual\.)?(conv\d)\.weight", r"params/\1/kernel", porting.conv_oihw_to_hwio),
    (_BLOCK + r"(conv\d)\.weight", r"params/layer\1_\2/\3/kernel", porting.conv_oihw_to_hwio),
    (_BLOCK + r"downsample\.0\.weight", r"params/layer\1_\2/downsample/kernel",
     porting.conv_oihw_to_hwio),
    *_norm_rules(r"(?:visual\.)?(bn\d)", r"\1"),
    *_norm_rules(_BLOCK + r"(bn\d)", r"layer\1_\2/\3"),
    *_norm_rules(_BLOCK + r"downsample\.1", r"layer\1_\2/downsample_bn"),
    (r"(?:visual\.)?attnpool\.positional_embedding", "params/pool/position", porting.identity),
    (r"(?:visual\.)?attnpool\.([qkvc])_proj\.weight", r"params/pool/\1/kernel",
     porting.linear_oi_to_io),
    (r"(?:visual\.)?attnpool\.([qkvc])_proj\.bias", r"params/pool/\1/bias", porting.identity),
)


def _pooled(x: jax.Array, size: int) -> jax.Array:
    """Mean of `size x size` cells."""
    if size == 1:
        return x
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height // size, size, width // size, size, channels)
    return jnp.mean(cells, axis=(2, 4))


class Bottleneck(nn.Module):
    """1x1, 3x3, pooling, 1x1; the shortcut is pooled and projected where the shape changes."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(name: str) -> nn.BatchNorm:
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)

        channels = 4 * self.width
        y = nn.Conv(self.width, (1, 1), use_bias=False, name="conv1")(x)
        y = nn.relu(norm("bn1")(y))
        y = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv2")(y)
        y = _pooled(nn.relu(norm("bn2")(y)), self.stride)
        y = norm("bn3")(nn.Conv(channels, (1, 1), use_bias=False, name="conv3")(y))
        if self.stride > 1 or x.shape[-1] != channels:
            x = _pooled(x, self.stride)
            x = nn.Conv(channels, (1, 1), use_bias=False, name="downsample")(x)
            x = norm("downsample_bn")(x)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """`[batch, s, s, channels]` -> `[batch, features]`: the mean attends to itself and to cells."""

    heads: int
    features: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels = x.shape[0], x.shape[3]
        if x.shape[1:3] != (self.size, self.size):
            raise ValueError(f"maps of {x.shape[1:3]} cells, the network is for {self.size}")
        x = x.reshape(batch, -1, channels)
        x = jnp.concatenate([jnp.mean(x, 1, keepdims=True), x], 1)
        shape = (x.shape[1], channels)
        position = self.param("position", nn.initializers.normal(channels**-0.5), shape)
        x = x + lax.expand_dims(position, (0,))
        split = (batch, -1, self.heads, channels // self.heads)
        query = nn.Dense(channels, name="q")(x[:, :1]).reshape(split)
        key = nn.Dense(channels, name="k")(x).reshape(split)
        value = nn.Dense(channels, name="v")(x).reshape(split)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * split[-1] ** -0.5
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        return nn.Dense(self.features, name="c")(y.reshape(batch, channels))


class ClipResNet(nn.Module):
    """`[batch, size, size, 3]` -> image embedding `[batch, features]` and the layers' outputs.

    Attributes:
        stages: number of blocks in each layer; (3, 4, 6, 3) is RN50.
        width: channels after the stem; layer n has `width * 2^(n + 1)`.
        features: size of the embedding.
        size: side of the images in pixels.

    The second result maps "layer1" to "layer4" to `[batch, height, width, channels]`. Images are
    RGB in [0, 1] less CLIP's mean, over its deviation. With `train`, batch statistics normalise and
    are stored in the collection `batch_stats`.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    features: int = 1024
    size: int = 224

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        for index, channels in enumerate((self.width // 2, self.width // 2, self.width), 1):
            stride = 2 if index == 1 else 1
            conv = nn.Conv(channels, (3, 3), stride, 1, use_bias=False, name=f"conv{index}")
            norm = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=f"bn{index}")
            x = nn.relu(norm(conv(x)))
        x = _pooled(x, 2)
        taps = {}
        for number, blocks in enumerate(self.stages, 1):
            for index in range(blocks):
                stride = 2 if number > 1 and index == 0 else 1
                width = self.width * 2 ** (number - 1)
                x = Bottleneck(width, stride, name=f"layer{number}_{index}")(x, train)
            taps[f"layer{number}"] = x
        heads = self.width * 32 // 64
        return AttentionPool(heads, self.features, self.size // 32, name="pool")(x), taps


def from_tensors(module: ClipResNet, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network.
        tensors: name -> array: a whole CLIP model's (names with `visual.`) or the image tower's.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    x = jax.ShapeDtypeStruct((1, module.size, module.size, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    whole = any(name.startswith("visual.") for name in tensors)
    text: tuple[porting.Rule, ...] = ((_TEXT, porting.DROP, porting.identity),) if whole else ()
    return porting.port(tensors, (*text, *RULES), shapes)
