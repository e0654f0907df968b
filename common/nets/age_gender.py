"""Apparent age and gender of a face: face-api.js's network, a small Xception with two linear heads.

Architecture: blocks of depthwise separable convolutions with residual connections, after F.
Chollet, "Xception", CVPR 2017, as "AgeGenderNet" of face-api.js 0.22 (V. Muehler, MIT): entry flow
with two reductions, two middle blocks, one reduction to 256 channels, a separable convolution to
512, average pooling. "Gender" means the binary label of its training data as read from a
photograph, not a fact about the person shown.

Measured on 999 CelebA photographs, grey 64x64 crops against colour crops of 115x115 pixels: the
same gender in 97 %, correlation of age 0.93, mean absolute difference 4 years.

Cost: 0.42 million parameters; 0.1 billion multiply-adds an image.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting, registry, tfjs_reader
from common.nets import face_images
from common.nets.pool import max_pool
from common.nets.separable import SeparableConv

__all__ = ["MARGIN", "AgeGender", "load_params", "predict", "predict_all"]

INPUT_SIZE = 112
MARGIN = 0.05  # border that tight 64x64 crops need, see `predict`
MIDDLE_BLOCKS = 2

RULES: tuple[porting.Rule, ...] = (
    (r"(?:entry|middle|exit)_flow/(.+)/depthwise_filter", r"\1/depthwise",
     porting.depthwise_hwim_to_hwio),
    (r"(?:entry|middle|exit)_flow/(.+)/pointwise_filter", r"\1/pointwise/kernel", porting.identity),
    (r"(?:entry|middle|exit)_flow/(.+separable_conv\d|separable_conv)/bias", r"\1/pointwise/bias",
     porting.identity),
    (r"(?:entry|middle|exit)_flow/(.+)/filters", r"\1/kernel", porting.identity),
    (r"(?:entry|middle|exit)_flow/(.+)/bias", r"\1/bias", porting.identity),
    (r"fc/(age|gender)/weights", r"\1/kernel", porting.identity),
    (r"fc/(age|gender)/bias", r"\1/bias", porting.identity),
)


class ReductionBlock(nn.Module):
    """Two separable convolutions and maximum pooling with stride 2, plus a strided projection."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = SeparableConv(self.channels, name="separable_conv0")(nn.relu(x))
        y = SeparableConv(self.channels, name="separable_conv1")(nn.relu(y))
        y = max_pool(y, (3, 3), (2, 2), "SAME")
        return y + nn.Conv(self.channels, (1, 1), 2, name="expansion_conv")(x)


class MainBlock(nn.Module):
    """Three pre-activated separable convolutions with an identity shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for index in range(3):
            y = SeparableConv(x.shape[-1], name=f"separable_conv{index}")(nn.relu(y))
        return x + y


class AgeGender(nn.Module):
    """`[batch, 112, 112, 3]` as `face_images.prepare` returns it -> age and gender logits.

    Returns a pair of arrays `[batch]` (years) and `[batch, 2]` (logits of male, female).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(nn.Conv(32, (3, 3), 2, "SAME", name="conv_in")(x))
        x = ReductionBlock(64, name="reduction_block_0")(x)
        x = ReductionBlock(128, name="reduction_block_1")(x)
        for index in range(MIDDLE_BLOCKS):
            x = MainBlock(name=f"main_block_{index}")(x)
        x = ReductionBlock(256, name="reduction_block")(x)
        x = nn.relu(SeparableConv(512, name="separable_conv")(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(1, name="age")(x)[:, 0], nn.Dense(2, name="gender")(x)


def load_params() -> dict[str, Any]:
    """Returns the network's parameters as nested dicts of float32 NumPy arrays.

    Raises:
        registry.RegistryError: the weights cannot be obtained.
        porting.PortingError: the tensors are not those of this network.
    """
    path = registry.fetch("face-api") / "age_gender_model-weights_manifest.json"
    x = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(AgeGender().init, jax.random.key(0), x)["params"]
    return porting.port(tfjs_reader.read_manifest(path), RULES, shapes)


@functools.partial(jax.jit, static_argnames="margin")
def predict(
    params: dict[str, Any], images: jax.Array, margin: float = MARGIN
) -> tuple[jax.Array, jax.Array]:
    """Estimates age and gender.

    Args:
        params: from `load_params`.
        images: `[batch, height, width, channels]` in [0, 1], one upright face each; grey or RGB.
        margin: border by edge repetition, as a fraction of the size. The default suits crops from
            above the eyebrows to the chin; use 0 for crops that show the whole head. The age
            depends on it: on 999 grey 64x64 CelebA faces a border of 0.15 lowers the mean by 11
            years.

    Returns:
        Apparent age in years and probability of the label "male", each `[batch]`.
    """
    x = face_images.prepare(images, INPUT_SIZE, margin)
    outputs = AgeGender().apply({"params": params}, x)
    age, gender = cast(tuple[jax.Array, jax.Array], outputs)
    return age, jax.nn.softmax(gender)[:, 0]


def predict_all(
    params: dict[str, Any], images: np.ndarray, batch_size: int = 8, margin: float = MARGIN
) -> tuple[np.ndarray, np.ndarray]:
    """Applies `predict` to any number of images (uint8 or [0, 1]) in batches."""
    function = functools.partial(predict, margin=margin)
    return face_images.in_batches(function, params, images, batch_size)
