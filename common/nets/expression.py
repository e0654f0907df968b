"""Facial expression in seven classes: face-api.js's network, four small densely summed blocks.

Architecture: "FaceExpressionNet" of face-api.js 0.22 (V. Muehler, MIT). Each block halves the
resolution and sums its own intermediate results before each further separable convolution.

Cost: 0.32 million parameters; 0.05 billion multiply-adds an image.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting, registry, tfjs_reader
from common.nets import face_images
from common.nets.separable import SeparableConv

__all__ = ["EXPRESSIONS", "MARGIN", "Expression", "load_params", "predict", "predict_all"]

EXPRESSIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
INPUT_SIZE = 112
MARGIN = 0.15  # border that tight 64x64 crops need, see `predict`

RULES: tuple[porting.Rule, ...] = (
    (r"dense0/conv0/filters", r"dense0/conv0/kernel", porting.identity),
    (r"dense0/conv0/bias", r"dense0/conv0/bias", porting.identity),
    (r"(.+)/depthwise_filter", r"\1/depthwise", porting.depthwise_hwim_to_hwio),
    (r"(.+)/pointwise_filter", r"\1/pointwise/kernel", porting.identity),
    (r"(dense.+)/bias", r"\1/pointwise/bias", porting.identity),
    (r"fc/weights", r"fc/kernel", porting.identity),
    (r"fc/bias", r"fc/bias", porting.identity),
)


class SummedBlock(nn.Module):
    """Four convolutions, each of the rectified sum of all previous results; the first strides."""

    channels: int
    first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.first:
            total = nn.relu(nn.Conv(self.channels, (3, 3), 2, "SAME", name="conv0")(x))
        else:
            total = nn.relu(SeparableConv(self.channels, stride=2, name="conv0")(x))
        x = total
        for index in range(1, 4):
            total = total + SeparableConv(self.channels, name=f"conv{index}")(x)
            x = nn.relu(total)
        return x


class Expression(nn.Module):
    """`[batch, 112, 112, 3]` as `face_images.prepare` returns it -> logits `[batch, 7]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, channels in enumerate((32, 64, 128, 256)):
            x = SummedBlock(channels, first=index == 0, name=f"dense{index}")(x)
        return nn.Dense(len(EXPRESSIONS), name="fc")(jnp.mean(x, axis=(1, 2)))


def load_params() -> dict[str, Any]:
    """Returns the network's parameters as nested dicts of float32 NumPy arrays.

    Raises:
        registry.RegistryError: the weights cannot be obtained.
        porting.PortingError: the tensors are not those of this network.
    """
    path = registry.fetch("face-api") / "face_expression_model-weights_manifest.json"
    x = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(Expression().init, jax.random.key(0), x)["params"]
    return porting.port(tfjs_reader.read_manifest(path), RULES, shapes)


@functools.partial(jax.jit, static_argnames="margin")
def predict(params: dict[str, Any], images: jax.Array, margin: float = MARGIN) -> jax.Array:
    """Estimates the expression.

    Args:
        params: from `load_params`.
        images: `[batch, height, width, channels]` in [0, 1], one upright face each; grey or RGB.
        margin: border by edge repetition, as a fraction of the size. The default suits crops from
            above the eyebrows to the chin; use 0 for crops that show the whole head.

    Returns:
        Probabilities `[batch, 7]` in the order of `EXPRESSIONS`.
    """
    x = face_images.prepare(images, INPUT_SIZE, margin)
    logits = cast(jax.Array, Expression().apply({"params": params}, x))
    return jax.nn.softmax(logits)


def predict_all(
    params: dict[str, Any], images: np.ndarray, batch_size: int = 8, margin: float = MARGIN
) -> np.ndarray:
    """Applies `predict` to any number of images (uint8 or [0, 1]) in batches -> `[count, 7]`."""
    function = functools.partial(predict, margin=margin)
    return face_images.in_batches(function, params, images, batch_size)
