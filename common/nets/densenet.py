"""DenseNet: the trunk of DeepCOVID-Fuse and of most chest X-ray classifiers.

G. Huang et al., "Densely Connected Convolutional Networks", CVPR 2017. Checkpoints with the names
of torchvision (also timm and torchxrayvision, whose layers carry the same names) and of Keras
(`keras.applications.DenseNet121`) are read. The two differ in the epsilon of batch normalisation
(1e-5 and 1.001e-5) and in the momentum (0.9 and 0.99): set them by `epsilon` and `momentum`.

Cost of DenseNet-121 at 224 x 224: 8.0 million parameters (7.04 without classifier); 2.9 billion
multiply-adds an image.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.conv import Conv
from common.nets.pool import max_pool

__all__ = ["DenseNet", "from_tensors"]

_NORM = (("weight", "params", "scale"), ("bias", "params", "bias"),
         ("running_mean", "batch_stats", "mean"), ("running_var", "batch_stats", "var"))
_KERAS_NORM = (("gamma", "params", "scale"), ("beta", "params", "bias"),
               ("moving_mean", "batch_stats", "mean"), ("moving_variance", "batch_stats", "var"))


def _norm(module: Any, train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=module.momentum, epsilon=module.epsilon, name=name)


class DenseLayer(nn.Module):
    """Normalise, 1x1 to four times the growth, normalise, 3x3 to the growth; appended to the input.

    Attributes:
        growth: channels that the layer adds.
        epsilon: of batch normalisation.
        momentum: of its averages.
    """

    growth: int
    epsilon: float
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.relu(_norm(self, train, name)(y))

        y = Conv(4 * self.growth, (1, 1), use_bias=False, name="conv1")(norm("norm1", x))
        y = Conv(self.growth, (3, 3), 1, 1, use_bias=False, name="conv2")(norm("norm2", y))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """`[batch, height, width, channels]` -> logits, or the last feature map without classifier.

    Attributes:
        blocks: layers in each dense block; (6, 12, 24, 16) is DenseNet-121.
        growth: channels that each layer adds.
        stem: channels of the first convolution.
        classes: number of classes; 0 for no classifier: then the normalised feature map
            `[batch, height / 32, width / 32, features]` is returned, for pooling or Grad-CAM. Its
            rectifier is applied before pooling (torchvision and Keras).
        epsilon: of batch normalisation: 1e-5 (torchvision) or 1.001e-5 (Keras).
        momentum: of its averages: 0.9 (torchvision) or 0.99 (Keras).

    With `train`, batch statistics normalise and are stored in the collection `batch_stats`.
    """

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: int = 64
    classes: int = 1000
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.relu(_norm(self, train, name)(y))

        x = Conv(self.stem, (7, 7), 2, 3, use_bias=False, name="conv0")(x)
        x = max_pool(norm("norm0", x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for number, layers in enumerate(self.blocks, 1):
            for index in range(1, layers + 1):
                name = f"block{number}_layer{index}"
                x = DenseLayer(self.growth, self.epsilon, self.momentum, name=name)(x, train)
            if number < len(self.blocks):
                half = x.shape[-1] // 2
                x = norm(f"transition{number}_norm", x)
                x = Conv(half, (1, 1), use_bias=False, name=f"transition{number}_conv")(x)
                x = nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4.0
        x = norm("norm5", x)
        if not self.classes:
            return x
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


def from_tensors(module: DenseNet, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network; `classes` must be 0 for checkpoints without classifier.
        tensors: name -> array, with the names of torchvision (`features.denseblock1...`, of old
            files also `norm.1` for `norm1`) or of Keras (`conv2_block1_1_conv/kernel`, with or
            without `:0`).

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    keras = any("_block1_1_conv" in name for name in tensors)
    channels = next((a.shape[2] if keras else a.shape[1] for n, a in tensors.items()
                     if "conv0" in n or n.startswith("conv1/conv/kernel")), 3)
    x = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return porting.port(tensors, _keras_rules(module) if keras else _torchvision_rules(), shapes)


def _torchvision_rules() -> tuple[porting.Rule, ...]:
    layer, target = r"features\.denseblock(\d)\.denselayer(\d+)", r"block\1_layer\2"
    rules: list[porting.Rule] = [
        (r".*num_batches_tracked", porting.DROP, porting.identity),
        (r"features\.conv0\.weight", "params/conv0/kernel", porting.conv_oihw_to_hwio),
        (rf"{layer}\.conv\.?([12])\.weight", rf"params/{target}/conv\3/kernel",
         porting.conv_oihw_to_hwio),
        (r"features\.transition(\d)\.conv\.weight", r"params/transition\1_conv/kernel",
         porting.conv_oihw_to_hwio),
        (r"classifier\.weight", "params/classifier/kernel", porting.linear_oi_to_io),
        (r"classifier\.bias", "params/classifier/bias", porting.identity),
    ]
    for source, kind, goal in _NORM:
        rules += [
            (rf"features\.(norm[05])\.{source}", rf"{kind}/\1/{goal}", porting.identity),
            (rf"{layer}\.norm\.?([12])\.{source}", rf"{kind}/{target}/norm\3/{goal}",
             porting.identity),
            (rf"features\.transition(\d)\.norm\.{source}", rf"{kind}/transition\1_norm/{goal}",
             porting.identity),
        ]
    return tuple(rules)


def _keras_rules(module: DenseNet) -> tuple[porting.Rule, ...]:
    """Names of `keras.applications`: block n is `conv{n + 1}`, transition n is `pool{n + 1}`."""
    end = r"(?::0)?"
    rules: list[porting.Rule] = [
        (rf"conv1/conv/kernel{end}", "params/conv0/kernel", porting.identity),
        (rf"predictions/kernel{end}", "params/classifier/kernel", porting.identity),
        (rf"predictions/bias{end}", "params/classifier/bias", porting.identity),
    ]
    for source, kind, goal in _KERAS_NORM:
        rules += [(rf"conv1/bn/{source}{end}", f"{kind}/norm0/{goal}", porting.identity),
                  (rf"bn/{source}{end}", f"{kind}/norm5/{goal}", porting.identity)]
    for number in range(1, len(module.blocks) + 1):
        block, target = rf"conv{number + 1}_block(\d+)", rf"block{number}_layer\1"
        rules += [
            (rf"{block}_([12])_conv/kernel{end}", rf"params/{target}/conv\2/kernel",
             porting.identity),
            (rf"pool{number + 1}_conv/kernel{end}", f"params/transition{number}_conv/kernel",
             porting.identity),
        ]
        for source, kind, goal in _KERAS_NORM:
            rules += [
                # Keras counts the two normalisations of a layer 0 and 1.
                (rf"{block}_0_bn/{source}{end}", rf"{kind}/{target}/norm1/{goal}",
                 porting.identity),
                (rf"{block}_1_bn/{source}{end}", rf"{kind}/{target}/norm2/{goal}",
                 porting.identity),
                (rf"pool{number + 1}_bn/{source}{end}", f"{kind}/transition{number}_norm/{goal}",
                 porting.identity),
            ]
    return tuple(rules)
