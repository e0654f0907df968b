"""Face recogniser with 128-d embeddings: dlib's ResNet v1 with the weights of face-api.js.

Architecture: D. E. King, "High Quality Face Recognition with Deep Metric Learning", dlib blog,
2017: 29 convolutions in four stages of residual blocks with 32, 64, 128 and 256 channels; a block
that halves the resolution adds the average-pooled input, padded with zero channels. The classifier
is a linear map of the pooled features without bias. Two photographs are of one person if their
embeddings are closer than about 0.6 (Euclidean).

Measured on the 400 Olivetti faces (grey, 64x64) with the default border: area under the ROC curve
of all pairs 0.9999, rank-1 identification from one photograph a person 99.5 %.

Cost: 5.61 million parameters; 0.25 billion multiply-adds an image.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common import porting, registry, tfjs_reader
from common.nets import face_images
from common.nets.pool import max_pool

__all__ = ["FaceRecogniser", "MARGIN", "SAME_PERSON_DISTANCE", "embed", "embed_all", "load_params"]

INPUT_SIZE = 150
MARGIN = 0.1  # border that tight 64x64 crops need, see `embed`
SAME_PERSON_DISTANCE = 0.6

# Name and channels of each residual block; "down" blocks halve the resolution.
_BLOCKS = (
    ("conv32_1", 32), ("conv32_2", 32), ("conv32_3", 32),
    ("conv64_down", 64), ("conv64_1", 64), ("conv64_2", 64), ("conv64_3", 64),
    ("conv128_down", 128), ("conv128_1", 128), ("conv128_2", 128),
    ("conv256_down", 256), ("conv256_1", 256), ("conv256_2", 256), ("conv256_down_out", 256),
)

RULES: tuple[porting.Rule, ...] = (
    (r"(.+)/conv/filters", r"\1/conv/kernel", porting.identity),
    (r"(.+)/conv/bias", r"\1/conv/bias", porting.identity),
    (r"(.+)/scale/weights", r"\1/scale", porting.identity),
    (r"(.+)/scale/biases", r"\1/shift", porting.identity),
    (r"fc", r"fc/kernel", porting.identity),
)


class ScaledConv(nn.Module):
    """Convolution with bias, then an affine map of each channel (a folded batch normalisation)."""

    channels: int
    kernel: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = "SAME" if self.stride == 1 else "VALID"
        x = nn.Conv(self.channels, (self.kernel,) * 2, self.stride, padding, name="conv")(x)
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        shift = self.param("shift", nn.initializers.zeros, (self.channels,))
        return x * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; with `down` the resolution is halved."""

    channels: int
    down: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(ScaledConv(self.channels, stride=2 if self.down else 1, name="conv1")(x))
        y = ScaledConv(self.channels, name="conv2")(y)
        if self.down:
            x = 0.25 * nn.pool(x, 0.0, lax.add, (2, 2), (2, 2), "VALID")  # mean of 2x2 pixels
            # The unpadded convolution may come out smaller than the pooled input, which may have
            # fewer channels: each is filled up with zeros at the end of its axes.
            y = _pad_end(y, x.shape[1], x.shape[2], y.shape[3])
            x = _pad_end(x, x.shape[1], x.shape[2], y.shape[3])
        return nn.relu(x + y)


class FaceRecogniser(nn.Module):
    """`[batch, 150, 150, 3]` as `face_images.prepare` returns it -> `[batch, 128]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(ScaledConv(32, kernel=7, stride=2, name="conv32_down")(x))
        x = max_pool(x, (3, 3), (2, 2))
        for name, channels in _BLOCKS:
            x = ResidualBlock(channels, down="down" in name, name=name)(x)
        return nn.Dense(128, use_bias=False, name="fc")(jnp.mean(x, axis=(1, 2)))


def load_params() -> dict[str, Any]:
    """Returns the recogniser's parameters as nested dicts of float32 NumPy arrays.

    Raises:
        registry.RegistryError: the weights cannot be obtained.
        porting.PortingError: the tensors are not those of this network.
    """
    path = registry.fetch("face-api") / "face_recognition_model-weights_manifest.json"
    return porting.port(tfjs_reader.read_manifest(path), RULES, _shapes())


@functools.partial(jax.jit, static_argnames="margin")
def embed(params: dict[str, Any], images: jax.Array, margin: float = MARGIN) -> jax.Array:
    """Embeds face crops.

    Args:
        params: from `load_params`.
        images: `[batch, height, width, channels]` in [0, 1], one upright face each; grey or RGB.
        margin: border by edge repetition, as a fraction of the size. The default suits crops from
            above the eyebrows to the chin (Olivetti); use 0 for crops that show the whole head.

    Returns:
        `[batch, 128]`; not normalised (norms are about 1.4), compare by Euclidean distance.
    """
    x = face_images.prepare(images, INPUT_SIZE, margin)
    return cast(jax.Array, FaceRecogniser().apply({"params": params}, x))


def embed_all(
    params: dict[str, Any], images: np.ndarray, batch_size: int = 8, margin: float = MARGIN
) -> np.ndarray:
    """Embeds any number of images (uint8 or [0, 1]) in batches -> `[count, 128]` float32."""
    function = functools.partial(embed, margin=margin)
    return face_images.in_batches(function, params, images, batch_size)


def _pad_end(x: jax.Array, height: int, width: int, channels: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]),
                       (0, channels - x.shape[3])))


def _shapes() -> Any:
    x = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    return jax.eval_shape(FaceRecogniser().init, jax.random.key(0), x)["params"]
