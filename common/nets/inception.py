"""Inception v3 as the Frechet inception distance uses it.

C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016. FID (M.
Heusel et al., NeurIPS 2017) is defined by TensorFlow's graph of December 2015, which differs from
torchvision's network: average pooling leaves its padding out of the mean, the last block pools by
the maximum, there are 1,008 classes. The weights are read from the PyTorch port that pytorch-fid
and its successors distribute (`pt_inception-2015-12-05-6726825d.pth`, by the user; 95 MB).

Cost: 21.8 million parameters; 5.5 billion multiply-adds an image of 299 x 299, by XLA's count.
"""

import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import porting, torch_reader

__all__ = ["FEATURES", "SIZE", "Inception", "features", "load_params", "prepare"]

SIZE = 299
FEATURES = 2048


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation with stored statistics, rectifier."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pads = [(p, p) for p in self.padding]
        x = nn.Conv(self.features, self.kernel, self.stride, pads, use_bias=False, name="conv")(x)
        return nn.relu(nn.BatchNorm(True, epsilon=1e-3, name="bn")(x))


class Inception(nn.Module):
    """`[batch, height, width, 3]` in [-1, 1] -> pooled features `[batch, 2048]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(name: str, y: jax.Array, maps: int, *kernel: int, stride: int = 1,
                 same: bool = True) -> jax.Array:
            size = (kernel[0], kernel[-1])
            pads = (size[0] // 2, size[1] // 2) if same else (0, 0)
            return ConvNorm(maps, size, stride, pads, name=name)(y)

        def down(name: str, y: jax.Array, maps: int) -> jax.Array:
            return conv(name, y, maps, 3, stride=2, same=False)

        def mean(y: jax.Array) -> jax.Array:
            around = ((1, 1), (1, 1))
            return nn.avg_pool(y, (3, 3), (1, 1), around, count_include_pad=False)

        x = down("Conv2d_1a_3x3", x, 32)
        x = conv("Conv2d_2a_3x3", x, 32, 3, same=False)
        x = conv("Conv2d_2b_3x3", x, 64, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = conv("Conv2d_3b_1x1", x, 80, 1)
        x = conv("Conv2d_4a_3x3", x, 192, 3, same=False)
        x = nn.max_pool(x, (3, 3), (2, 2))

        for letter, maps in (("b", 32), ("c", 64), ("d", 64)):
            at = f"Mixed_5{letter}_branch"
            one = conv(f"{at}1x1", x, 64, 1)
            five = conv(f"{at}5x5_2", conv(f"{at}5x5_1", x, 48, 1), 64, 5)
            three = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 64, 1), 96, 3)
            three = conv(f"{at}3x3dbl_3", three, 96, 3)
            x = jnp.concatenate([one, five, three, conv(f"{at}_pool", mean(x), maps, 1)], -1)

        at = "Mixed_6a_branch"
        three = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 64, 1), 96, 3)
        rest = (down(f"{at}3x3dbl_3", three, 96), nn.max_pool(x, (3, 3), (2, 2)))
        x = jnp.concatenate([down(f"{at}3x3", x, 384), *rest], -1)

        for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            at = f"Mixed_6{letter}_branch"
            one = conv(f"{at}1x1", x, 192, 1)
            seven = conv(f"{at}7x7_2", conv(f"{at}7x7_1", x, inner, 1), inner, 1, 7)
            seven = conv(f"{at}7x7_3", seven, 192, 7, 1)
            twice = conv(f"{at}7x7dbl_1", x, inner, 1)
            for index, (outer, kernel) in enumerate(
                ((inner, (7, 1)), (inner, (1, 7)), (inner, (7, 1)), (192, (1, 7))), 2
            ):
                twice = conv(f"{at}7x7dbl_{index}", twice, outer, *kernel)
            x = jnp.concatenate([one, seven, twice, conv(f"{at}_pool", mean(x), 192, 1)], -1)

        at = "Mixed_7a_branch"
        three = down(f"{at}3x3_2", conv(f"{at}3x3_1", x, 192, 1), 320)
        seven = conv(f"{at}7x7x3_2", conv(f"{at}7x7x3_1", x, 192, 1), 192, 1, 7)
        seven = down(f"{at}7x7x3_4", conv(f"{at}7x7x3_3", seven, 192, 7, 1), 192)
        x = jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], -1)

        for letter in "bc":
            at = f"Mixed_7{letter}_branch"
            one = conv(f"{at}1x1", x, 320, 1)
            three = conv(f"{at}3x3_1", x, 384, 1)
            wide = (conv(f"{at}3x3_2a", three, 384, 1, 3), conv(f"{at}3x3_2b", three, 384, 3, 1))
            twice = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 448, 1), 384, 3)
            tall = (conv(f"{at}3x3dbl_3a", twice, 384, 1, 3),
                    conv(f"{at}3x3dbl_3b", twice, 384, 3, 1))
            last = nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))) if letter == "c" else mean(x)
            pooled = conv(f"{at}_pool", last, 192, 1)
            x = jnp.concatenate([one, *wide, *tall, pooled], -1)
        return x.mean(axis=(1, 2))


def load_params(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads `{"params": ..., "batch_stats": ...}` from a file of pytorch-fid's weights.

    Raises:
        FileNotFoundError: there is no such file.
        porting.PortingError: the tensors are not those of this network.
    """
    rules: list[porting.Rule] = [
        (r"fc\..*|.*num_batches_tracked|AuxLogits\..*", porting.DROP, porting.identity)
    ]
    for name, inside in ((r"(Conv2d_\w+)", r"\1"), (r"(Mixed_\w+)\.(branch\w+)", r"\1_\2")):
        rules += [
            (rf"{name}\.conv\.weight", f"params/{inside}/conv/kernel", porting.conv_oihw_to_hwio),
            (rf"{name}\.bn\.weight", f"params/{inside}/bn/scale", porting.identity),
            (rf"{name}\.bn\.bias", f"params/{inside}/bn/bias", porting.identity),
            (rf"{name}\.bn\.running_mean", f"batch_stats/{inside}/bn/mean", porting.identity),
            (rf"{name}\.bn\.running_var", f"batch_stats/{inside}/bn/var", porting.identity),
        ]
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), x)
    return porting.port(torch_reader.read(path), rules, shapes)


def prepare(images: jax.Array) -> jax.Array:
    """The network's input of `images [batch, height, width, 1 or 3]` in [0, 1].

    Images of other sizes are resized to 299 x 299 (bilinear, without antialiasing), grey ones
    repeated, as pytorch-fid does it.

    Raises:
        ValueError: not four axes, or channels other than 1 or 3.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected images [batch, height, width, 1 or 3], found shape {tuple(images.shape)}")
    size = (images.shape[0], SIZE, SIZE, images.shape[3])
    x = jax.image.resize(images, size, "bilinear", antialias=False)
    return 2 * jnp.broadcast_to(x, (*size[:3], 3)) - 1


@jax.jit
def features(params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Features `[batch, 2048]` of `images [batch, height, width, 1 or 3]` in [0, 1].

    FID is `common.metrics.distribution.frechet_from_features` of two sets of them, customarily of
    10,000 images or more. Raises as `prepare`.
    """
    return Inception().apply(params, prepare(images))  # type: ignore[return-value]
