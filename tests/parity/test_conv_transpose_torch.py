"""The stride-2 transposed convolution against torch.nn.ConvTranspose2d."""

import jax
import numpy as np
import pytest
import torch

from common import porting
from common.nets.conv_transpose import conv_transpose_2x, torch_padding

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("output_padding", [0, 1, (1, 0)])
@pytest.mark.parametrize("padding", [0, 1, 2, (2, 1)])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_equals_torch(kernel, padding, output_padding):
    torch.manual_seed(0)
    layer = torch.nn.ConvTranspose2d(3, 4, kernel, 2, padding, output_padding)
    x = torch.randn(2, 3, 5, 6)
    with torch.no_grad():
        expected = layer(x).numpy().transpose(0, 2, 3, 1)
    weights = porting.conv_transpose_iohw_to_hwio(layer.weight.detach().numpy())
    pads = torch_padding((kernel, kernel), padding, output_padding)
    actual = jax.jit(lambda x, w: conv_transpose_2x(x, w, pads))(
        x.numpy().transpose(0, 2, 3, 1), weights)
    actual = np.asarray(actual) + layer.bias.detach().numpy()
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)
