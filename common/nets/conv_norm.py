"""Convolution, batch normalisation and rectifier, as Inception networks and Xception stack them.

Their published weights come from two families that call the layers differently: PyTorch's
`X.conv.weight`, `X.bn.weight`, and Keras', which numbers unnamed layers in the order of their
making (`conv2d_17`, `batch_normalization_17`). Here are the layer and what turns either into its
parameters.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from common import porting
from common.nets.conv import Conv

__all__ = [
    "BN_PARTS", "STYLES", "ConvNorm", "called", "keras_numbers", "layers", "plain_names", "rules",
]  # fmt: skip

STYLES = ("keras", "torch")
"""Whose network: they differ in the constants of batch normalisation and the padding of pools."""
BN_PARTS = {
    "gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var",  # Keras
    "weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var",  # PyTorch
}


class ConvNorm(nn.Module):
    """`[batch, height, width, in]` to `[batch, height', width', features]`.

    Attributes:
        features: output channels.
        kernel: height and width of the kernel.
        stride: step in both directions.
        padding: "SAME" or "VALID".
        epsilon: of batch normalisation.
        momentum: of its averages.
        rectified: whether negative outputs are cut off.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    epsilon: float = 1e-3
    momentum: float = 0.99
    rectified: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(self.features, self.kernel, self.stride, self.padding, use_bias=False,
                 name="conv")(x)
        x = nn.BatchNorm(not train, momentum=self.momentum, epsilon=self.epsilon, name="bn")(x)
        return nn.relu(x) if self.rectified else x


def layers(momentum: float, train: bool) -> tuple[Callable, Callable]:
    """`conv(name, x, maps, height(, width))` that keeps the size, and `valid(name, x, maps, kernel,
    stride)` without padding: what the two Inception networks are stacked from.

    To be called, and its results, inside a module's compact method.
    """

    def conv(name: str, x: jax.Array, maps: int, *kernel: int) -> jax.Array:
        size = (kernel[0], kernel[-1])
        return ConvNorm(maps, size, momentum=momentum, name=name)(x, train)

    def valid(name: str, x: jax.Array, maps: int, kernel: int = 3, stride: int = 1) -> jax.Array:
        size = (kernel, kernel)
        return ConvNorm(maps, size, stride, "VALID", momentum=momentum, name=name)(x, train)

    return conv, valid


def rules(conv: porting.Transform) -> tuple[porting.Rule, ...]:
    """Rules of tensors named `LAYER/conv/kernel` and `LAYER/bn/scale|bias|mean|var`."""
    return (
        (r"(\w+)/conv/kernel", r"params/\1/conv/kernel", conv),
        (r"(\w+)/bn/(scale|bias)", r"params/\1/bn/\2", porting.identity),
        (r"(\w+)/bn/(mean|var)", r"batch_stats/\1/bn/\2", porting.identity),
    )


def plain_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's `a.b.conv.weight` as `a_b/conv/kernel`, and likewise for `bn`; others as they are.

    Counts of batches are left out.
    """
    found = {}
    for name, array in tensors.items():
        match = re.fullmatch(r"(.+)\.(conv|bn)\.(\w+)", name)
        if name.endswith("num_batches_tracked"):
            continue
        if match:
            layer, kind, part = match.groups()
            end = "kernel" if kind == "conv" else BN_PARTS.get(part, part)
            name = f"{layer.replace('.', '_')}/{kind}/{end}"
        found[name] = array
    return found


def keras_numbers(
    tensors: Mapping[str, np.ndarray], layers: Sequence[str]
) -> dict[str, np.ndarray]:
    """Keras' `conv2d_7/kernel` as `LAYER/conv/kernel`, and `batch_normalization_7/...` likewise.

    The numbers go on counting from model to model within one program, so only their order means
    something: the n-th smallest is `layers[n]`. A normalisation without `gamma` gets ones. The
    ending `:0` of older files is dropped; layers with a name stay as they are.

    Raises:
        PortingError: other numbers of such layers than `layers`.
    """
    tensors = {re.sub(r":0$", "", name): array for name, array in tensors.items()}
    found = dict(tensors)
    for kind, short in (("conv2d", "conv"), ("batch_normalization", "bn")):
        pattern = rf"{kind}(?:_(\d+))?/(\w+)"
        matches = [m for m in (re.fullmatch(pattern, name) for name in tensors) if m]
        numbers = sorted({int(m[1] or 0) for m in matches})
        if len(numbers) != len(layers):
            raise porting.PortingError(
                f"{len(numbers)} layers are called {kind}, {len(layers)} were expected")
        for match in matches:
            layer = layers[numbers.index(int(match[1] or 0))]
            part = match[2] if short == "conv" else BN_PARTS.get(match[2], match[2])
            found[f"{layer}/{short}/{part}"] = found.pop(match[0])
        if short == "bn":
            for layer in layers:
                if f"{layer}/bn/scale" not in found and f"{layer}/bn/bias" in found:
                    found[f"{layer}/bn/scale"] = np.ones_like(found[f"{layer}/bn/bias"])
    return found


def called(module: nn.Module, shapes_of: jax.ShapeDtypeStruct) -> tuple[Any, tuple[str, ...]]:
    """Shapes of the variables, and the names of the `ConvNorm` layers in the order of their calls.

    Args:
        module: network; `shapes_of` its input.
    """
    names: list[str] = []

    def note(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, ConvNorm) and context.method_name == "__call__":
            names.append(str(context.module.name))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(module.init, jax.random.key(0), shapes_of)
    return shapes, tuple(names)
