"""The form of a convolution that is fast on the kind of device at hand."""

from typing import Any

import jax

from common.nets import conv_products
from common.nets.conv import Conv
from common.nets.conv_transpose import ConvTranspose2x

__all__ = ["layers"]


def layers() -> tuple[Any, Any]:
    """The layers (convolution, transposed convolution of stride 2) for this kind of device.

    On CPUs convolutions, elsewhere the equal products of matrices: the networks of a population
    have a kernel each, which makes a grouped convolution of the one, for which there are no fast
    programs, and a batched product of the other; and a product needs no search for the algorithm
    of each convolution. The parameters are the same. What the two forms have in common:
    ``convolution(features, (height, width), strides, padding)`` with numbers, and
    ``transposed(features, (height, width), [(before, after)] * 2)``.
    """
    if jax.default_backend() == "cpu":
        return Conv, ConvTranspose2x
    return conv_products.Conv, conv_products.ConvTranspose2x
