"""Inception-v3: the feature map of torchvision's network, of Keras', and of FID's.

C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.

They differ in the pools inside the blocks: torchvision's mean counts the zeros around the map
(divides by 9 at the edge, too), Keras' and FID's do not; and in its last block FID's (TensorFlow's
graph of December 2015, see `common.nets.inception`) takes the maximum. `style` says which is meant.

Cost: 21.8 million parameters without classifier; 5.7 billion multiply-adds an image of 299 x 299.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from common.nets.conv_norm import called, keras_numbers, layers, plain_names, rules
from common.nets.pool import max_pool

__all__ = ["STYLES", "InceptionV3", "from_tensors"]

STYLES = ("keras", "torch", "fid")


class InceptionV3(nn.Module):
    """`[batch, height, width, channels]` -> feature map `[batch, about height / 32, ..., 2048]`.

    Attributes:
        style: "keras", "torch" or "fid", see the module.
        momentum: of the averages of batch normalisation.

    Images have at least 75 pixels a side. With `train`, batch statistics normalise and are stored
    in the collection `batch_stats`.
    """

    style: str = "keras"
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}; known: {', '.join(STYLES)}")

        conv, valid = layers(self.momentum, train)

        def mean(y: jax.Array) -> jax.Array:
            pads = ((1, 1), (1, 1))
            if self.style == "torch":
                return nn.pooling.pool(y, 0.0, jax.lax.add, (3, 3), (1, 1), pads) / 9.0
            return nn.avg_pool(y, (3, 3), (1, 1), pads, count_include_pad=False)

        def largest(y: jax.Array) -> jax.Array:
            return max_pool(y, (3, 3), (2, 2))

        # Calls stand in the order in which Keras makes its layers: it numbers them.
        x = valid("Conv2d_1a_3x3", x, 32, stride=2)
        x = conv("Conv2d_2b_3x3", valid("Conv2d_2a_3x3", x, 32), 64, 3)
        x = valid("Conv2d_4a_3x3", valid("Conv2d_3b_1x1", largest(x), 80, 1), 192)
        x = largest(x)
        for letter, maps in (("b", 32), ("c", 64), ("d", 64)):
            at = f"Mixed_5{letter}_branch"
            one = conv(f"{at}1x1", x, 64, 1)
            five = conv(f"{at}5x5_2", conv(f"{at}5x5_1", x, 48, 1), 64, 5)
            three = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 64, 1), 96, 3)
            three = conv(f"{at}3x3dbl_3", three, 96, 3)
            x = jnp.concatenate([one, five, three, conv(f"{at}_pool", mean(x), maps, 1)], -1)
        at = "Mixed_6a_branch"
        first = valid(f"{at}3x3", x, 384, stride=2)
        twice = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 64, 1), 96, 3)
        twice = valid(f"{at}3x3dbl_3", twice, 96, stride=2)
        x = jnp.concatenate([first, twice, largest(x)], -1)
        for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            at = f"Mixed_6{letter}_branch"
            one = conv(f"{at}1x1", x, 192, 1)
            seven = conv(f"{at}7x7_2", conv(f"{at}7x7_1", x, inner, 1), inner, 1, 7)
            seven = conv(f"{at}7x7_3", seven, 192, 7, 1)
            twice = conv(f"{at}7x7dbl_1", x, inner, 1)
            for index, (maps, kernel) in enumerate(
                ((inner, (7, 1)), (inner, (1, 7)), (inner, (7, 1)), (192, (1, 7))), 2
            ):
                twice = conv(f"{at}7x7dbl_{index}", twice, maps, *kernel)
            x = jnp.concatenate([one, seven, twice, conv(f"{at}_pool", mean(x), 192, 1)], -1)
        at = "Mixed_7a_branch"
        three = valid(f"{at}3x3_2", conv(f"{at}3x3_1", x, 192, 1), 320, stride=2)
        seven = conv(f"{at}7x7x3_2", conv(f"{at}7x7x3_1", x, 192, 1), 192, 1, 7)
        seven = valid(f"{at}7x7x3_4", conv(f"{at}7x7x3_3", seven, 192, 7, 1), 192, stride=2)
        x = jnp.concatenate([three, seven, largest(x)], -1)
        for letter in "bc":
            at = f"Mixed_7{letter}_branch"
            one = conv(f"{at}1x1", x, 320, 1)
            three = conv(f"{at}3x3_1", x, 384, 1)
            wide = conv(f"{at}3x3_2a", three, 384, 1, 3), conv(f"{at}3x3_2b", three, 384, 3, 1)
            twice = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 448, 1), 384, 3)
            tall = (conv(f"{at}3x3dbl_3a", twice, 384, 1, 3),
                    conv(f"{at}3x3dbl_3b", twice, 384, 3, 1))
            greatest = self.style == "fid" and letter == "c"
            pooled = max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))) if greatest else mean(x)
            pooled = conv(f"{at}_pool", pooled, 192, 1)
            x = jnp.concatenate([one, *wide, *tall, pooled], -1)
        return x


def from_tensors(module: InceptionV3, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` from a checkpoint's tensors.

    Args:
        module: the network, of the tensors' family.
        tensors: name -> array, without classifier, with the names of torchvision (also timm; the
            auxiliary head is dropped) or of Keras.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    channels = 3
    for name, array in tensors.items():
        if name.startswith("Conv2d_1a_3x3.conv"):
            channels = array.shape[1]
    shapes, names = called(module, jax.ShapeDtypeStruct((1, 96, 96, channels), jnp.float32))
    if module.style != "keras":
        kept = {n: a for n, a in tensors.items() if not n.startswith("AuxLogits.")}
        return porting.port(plain_names(kept), rules(porting.conv_oihw_to_hwio), shapes)
    return porting.port(keras_numbers(tensors, names), rules(porting.identity), shapes)
