"""The published classifier of COVID-19 X-rays: VGG16 with a longer head, at 128 pixels.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015. In the released code its convolutions have ImageNet's weights and stay as they are; the two
dense layers of 4,096 and the new ones (1,024, 256, 64, classes) are trained. Images go in as they
are, in [-1, 1]; grey ones are repeated.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.conv import Conv
from common.nets.pool import max_pool

__all__ = ["VggClassifier", "from_tensors"]

_HE = nn.initializers.he_normal()
GRID = 7  # pixels to which the last map is averaged (or repeated), whatever the images' size


class VggClassifier(nn.Module):
    """`[batch, height, width, 1 or 3]` -> logits `[batch, classes]`.

    Attributes:
        stages: (channels, convolutions) of each; after each the size is halved.
        widths: of the dense layers; after the first two there is dropout of a half.
        classes: number of classes.
    """

    stages: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    widths: tuple[int, ...] = (4096, 4096, 1024, 256, 64)
    classes: int = 2

    def setup(self) -> None:
        self.convs = [
            Conv(width, (3, 3), 1, 1, kernel_init=_HE, name=f"conv{number}_{index}")
            for number, (width, count) in enumerate(self.stages, 1)
            for index in range(1, count + 1)
        ]
        self.denses = [nn.Dense(width, kernel_init=_HE, name=f"dense{i}")
                       for i, width in enumerate(self.widths, 1)]
        self.drop = nn.Dropout(0.5)
        self.out = nn.Dense(self.classes)

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The last convolution's output, before its pool: `[batch, h / 16, w / 16, channels]`."""
        del train
        if x.shape[-1] == 1:
            x = jnp.repeat(x, 3, axis=-1)
        convs = iter(self.convs)
        for number, (_, count) in enumerate(self.stages):
            x = x if number == 0 else max_pool(x, (2, 2), (2, 2))
            for _ in range(count):
                x = nn.relu(next(convs)(x))
        return x

    def head(self, found: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[batch, classes]` of features."""
        x = _grid(max_pool(found, (2, 2), (2, 2)))
        x = x.reshape(x.shape[0], -1)
        for index, dense in enumerate(self.denses):
            x = nn.relu(dense(x))
            x = self.drop(x, deterministic=not train) if index < 2 else x
        return self.out(x)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.features(x, train), train)


def from_tensors(module: VggClassifier, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of the convolutions and of the first two dense layers.

    Args:
        module: the network.
        tensors: name -> array, with the names of torchvision's VGG16 (`features.0.weight`,
            `classifier.0.weight`); its last layer, of another task, is left out.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0),
                            jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))["params"]
    wanted = {name: tree for name, tree in shapes.items()
              if name.startswith("conv") or name in ("dense1", "dense2")}
    places, place = {}, 0  # torchvision counts rectifiers and pools, too
    for number, (_, count) in enumerate(module.stages, 1):
        for index in range(1, count + 1):
            places[str(place)], place = f"conv{number}_{index}", place + 2
        place += 1
    found = {}
    for name, array in tensors.items():
        match = re.fullmatch(r"(features|classifier)\.(\d+)\.(weight|bias)", name)
        if match and match[1] == "classifier" and match[2] == "6":
            continue
        if match and match[1] == "features":
            name = f"{places.get(match[2], name)}/{match[3]}"
        elif match:
            name = {"0": "dense1", "3": "dense2"}.get(match[2], name) + f"/{match[3]}"
        found[name] = array
    depth = module.stages[-1][0]

    def from_grid(array: np.ndarray) -> np.ndarray:
        """`[out, channels * 7 * 7]` to `[7 * 7 * channels, out]`."""
        whole = array.reshape(len(array), depth, GRID, GRID)
        return whole.transpose(2, 3, 1, 0).reshape(-1, len(array))

    return porting.port(found, (
        (r"(conv\d_\d)/weight", r"\1/kernel", porting.conv_oihw_to_hwio),
        (r"dense1/weight", "dense1/kernel", from_grid),
        (r"dense2/weight", "dense2/kernel", porting.linear_oi_to_io),
        (r"(\w+)/bias", r"\1/bias", porting.identity),
    ), wanted)


def _grid(x: jax.Array) -> jax.Array:
    """PyTorch's adaptive average: pixel i is the mean of floor(i n / 7) to ceil((i + 1) n / 7)."""

    def table(size: int) -> jax.Array:
        rows = np.zeros((GRID, size), np.float32)
        for i in range(GRID):
            first, last = i * size // GRID, -(-(i + 1) * size // GRID)
            rows[i, first:last] = 1 / (last - first)
        return jnp.asarray(rows, x.dtype)

    return jnp.einsum("ih,nhwc,jw->nijc", table(x.shape[1]), x, table(x.shape[2]))
