"""DCGAN generator of 64 x 64 colour images, with weights for faces.

A. Radford, L. Metz, S. Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", ICLR 2016, in PyTorch's tutorial form: five transposed
convolutions, batch normalisation and ReLU between them, tanh at the end. The weights of the package
gan-face-generate were trained on DigiFace-1M, rendered faces of people who do not exist.

Cost: 3.6 million parameters; 0.1 billion multiply-adds an image.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import porting, registry, torch_reader
from common.nets.conv_transpose import ConvTranspose2x, torch_padding

__all__ = ["LATENT", "Dcgan", "load_variables"]

LATENT = 100

# Names of PyTorch's tutorial: a sequence of layers, three (convolution, norm, ReLU) for each block.
_CONVS = {"0": "conv0", "3": "conv1", "6": "conv2", "9": "conv3", "12": "conv4"}
_NORMS = {"1": "bn0", "4": "bn1", "7": "bn2", "10": "bn3"}
RULES: tuple[porting.Rule, ...] = (
    (r".*num_batches_tracked", porting.DROP, porting.identity),
    *((rf"main\.{source}\.weight", f"params/{target}/kernel", porting.conv_transpose_iohw_to_hwio)
      for source, target in _CONVS.items()),
    *((rf"main\.{source}\.weight", f"params/{target}/scale", porting.identity)
      for source, target in _NORMS.items()),
    *((rf"main\.{source}\.bias", f"params/{target}/bias", porting.identity)
      for source, target in _NORMS.items()),
    *((rf"main\.{source}\.running_(mean|var)", rf"batch_stats/{target}/\1", porting.identity)
      for source, target in _NORMS.items()),
)


class Dcgan(nn.Module):
    """Latents `[batch, 100]`, standard normal -> images `[batch, 64, 64, 3]` in [-1, 1], and maps.

    Attributes:
        width: channels of the largest maps; 64 in the published weights.

    The second result maps "block0" to "block3" to the rectified maps of 4, 8, 16 and 32 cells.
    With `train`, batch statistics normalise and are stored in the collection `batch_stats`.
    """

    width: int = 64

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = z.reshape(z.shape[0], 1, 1, z.shape[1])
        taps = {}
        for index in range(4):
            channels = self.width * 2 ** (3 - index)
            if index == 0:
                x = nn.ConvTranspose(
                    channels, (4, 4), padding="VALID", use_bias=False, name="conv0")(x)
            else:
                x = self._double(channels, index)(x)
            norm = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=f"bn{index}")
            taps[f"block{index}"] = x = nn.relu(norm(x))
        return jnp.tanh(self._double(3, 4)(x)), taps

    def _double(self, channels: int, index: int) -> ConvTranspose2x:
        padding = torch_padding((4, 4), 1)
        return ConvTranspose2x(channels, (4, 4), padding, use_bias=False, name=f"conv{index}")


def load_variables() -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` of the face generator, from the registry.

    Raises:
        registry.RegistryError: the weights cannot be obtained.
        porting.PortingError: the tensors are not those of this network.
    """
    path = registry.fetch("gan-face-generate") / "weights.tar"
    z = jax.ShapeDtypeStruct((1, LATENT), jnp.float32)
    shapes = jax.eval_shape(Dcgan().init, jax.random.key(0), z)
    return porting.port(torch_reader.read(path)["netG_state_dict"], RULES, shapes)
