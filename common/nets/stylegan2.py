"""StyleGAN2 generator, with the names of rosinality's PyTorch port.

T. Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (configuration
F). Styles scale the input of a convolution whose weights all images share, and demodulation scales
its output: the same as modulating the weights for each image, without a kernel for each. The noise
maps are those of the checkpoint, so an image is a function of its latent.

Cost at 256 pixels: 30.0 million parameters, mapping included.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common import porting
from common.nets.conv_transpose import conv_transpose_2x, torch_padding

__all__ = ["StyleGan2", "from_tensors", "tap_names"]

_SLOPE, _GAIN = 0.2, 2**0.5
_FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 16  # times 4: zeros are inserted


def _modulated(array: np.ndarray) -> np.ndarray:
    """`[1, out, in, k, k]` -> `[k, k, in, out]`."""
    return porting.conv_oihw_to_hwio(array[0])


def _modulated_up(array: np.ndarray) -> np.ndarray:
    """The kernel of an upsampling convolution, which PyTorch scatters."""
    return porting.conv_transpose_iohw_to_hwio(array[0].swapaxes(0, 1))


def _bhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


_LAYER = r"(?P<name>conv1|convs\.\d+|to_rgb1|to_rgbs\.\d+)"
RULES: tuple[porting.Rule, ...] = (
    (r".*\.kernel", porting.DROP, porting.identity),  # the low-pass filter, always the same
    (r"style\.(\d)\.weight", r"style\1/kernel", porting.linear_oi_to_io),
    (r"style\.(\d)\.bias", r"style\1/bias", porting.identity),
    (r"input\.input", "constant", _bhwc),
    (r"noises\.noise_(\d+)", r"noise\1", _bhwc),
    (r"convs\.(\d*[02468])\.conv\.weight", r"convs.\1/kernel", _modulated_up),
    (_LAYER + r"\.conv\.weight", r"\g<name>/kernel", _modulated),
    (_LAYER + r"\.conv\.modulation\.weight", r"\g<name>/modulation/kernel",
     porting.linear_oi_to_io),
    (_LAYER + r"\.conv\.modulation\.bias", r"\g<name>/modulation/bias", porting.identity),
    (_LAYER + r"\.noise\.weight", r"\g<name>/noise_strength", porting.identity),
    (_LAYER + r"\.(?:activate\.)?bias", r"\g<name>/bias", porting.reshape(-1)),
    (r"latent_avg", "mean_latent", porting.identity),
)  # fmt: skip


class EqualLinear(nn.Module):
    """A linear map whose stored weights have unit variance; `rate` scales weight and bias."""

    features: int
    rate: float = 1.0
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        initial = nn.initializers.normal(1 / self.rate)
        kernel = self.param("kernel", initial, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        scale = self.rate / x.shape[-1] ** 0.5
        return x @ (kernel * scale) + (bias * self.rate).reshape(1, -1)


class ModulatedConv(nn.Module):
    """A convolution of an image whose channels a style has scaled.

    Attributes:
        features: output channels.
        kernel: side of the kernel.
        up: doubles the resolution, by a transposed convolution and a low-pass filter.
        demodulate: divides by the norm of the scaled weights.
        noise: adds noise, bias and leaky ReLU; otherwise bias only.
    """

    features: int
    kernel: int = 3
    up: bool = False
    demodulate: bool = True
    noise: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, latent: jax.Array, noise: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the result and the convolution before noise and bias."""
        channels = x.shape[-1]
        shape = (self.kernel, self.kernel, channels, self.features)
        weight = self.param("kernel", nn.initializers.normal(1.0), shape)
        weight = weight / (channels * self.kernel**2) ** 0.5
        style = EqualLinear(channels, bias=1.0, name="modulation")(latent)
        x = x * style.reshape(-1, 1, 1, channels)
        if self.up:
            x = conv_transpose_2x(x, weight, torch_padding((self.kernel,) * 2))
            x = _filtered(x, ((1, 1), (1, 1)))
        else:
            x = lax.conv_general_dilated(
                x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if self.demodulate:
            squares = jnp.square(style) @ jnp.sum(jnp.square(weight), (0, 1))
            x = x * lax.rsqrt(squares + 1e-8).reshape(-1, 1, 1, self.features)
        raw = x
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.noise:
            strength = self.param("noise_strength", nn.initializers.zeros, (1,))
            assert noise is not None
            x = x + strength.reshape(1, 1, 1, 1) * noise
        x = x + bias.reshape(1, 1, 1, -1)
        return (nn.leaky_relu(x, _SLOPE) * _GAIN if self.noise else x), raw


class StyleGan2(nn.Module):
    """Latents `[batch, 512]` -> images `[batch, size, size, 3]`, about in [-1, 1], and maps.

    Attributes:
        size: side of the images in pixels, a power of two from 8.
        latent: size of the latents.
        layers: of the mapping.
        most: channels of the smallest maps.
        base: maps of `s` cells have `base / s` channels, at most `most`; 32768 is configuration F.

    Methods: `__call__(z, psi)` maps z to a style, moves it towards the mean latent (psi 1: not at
    all) and synthesises; `synthesise(w)` takes styles `[batch, 512]` or, one for each layer,
    `[batch, 2 log2(size) - 2, 512]`. The second result maps the names of `tap_names` to the
    activations of all convolutions but the first, and to the colour convolutions but the first
    (before bias and sum), `[batch, s, s, channels]`.
    """

    size: int = 256
    latent: int = 512
    layers: int = 8
    most: int = 512
    base: int = 32768

    def setup(self) -> None:
        log = self.size.bit_length() - 1
        if self.size != 2**log or log < 3:
            raise ValueError(f"size {self.size} is no power of two from 8")
        self.style = [EqualLinear(self.latent, 0.01, name=f"style{i + 1}")
                      for i in range(self.layers)]  # fmt: skip
        self.mean_latent = self.param("mean_latent", nn.initializers.zeros, (self.latent,))
        channels = {s: min(self.most, self.base // s) for s in self.sizes()}
        self.constant = self.param("constant", nn.initializers.normal(1.0), (1, 4, 4, channels[4]))
        self.conv1 = ModulatedConv(channels[4])
        self.to_rgb1 = ModulatedConv(3, 1, demodulate=False, noise=False)
        convs, colours, noises = [], [], [self._noise(0, 4)]
        for index, s in enumerate(self.sizes()[1:]):
            for part in (0, 1):
                name = f"convs.{2 * index + part}"
                convs.append(ModulatedConv(channels[s], up=part == 0, name=name))
                noises.append(self._noise(2 * index + 1 + part, s))
            colours.append(
                ModulatedConv(3, 1, demodulate=False, noise=False, name=f"to_rgbs.{index}"))
        self.convs, self.colours, self.noises = convs, colours, noises

    def sizes(self) -> list[int]:
        """Sides of the maps."""
        return [2**i for i in range(2, self.size.bit_length())]

    def _noise(self, index: int, size: int) -> jax.Array:
        return self.param(f"noise{index}", nn.initializers.normal(1.0), (1, size, size, 1))

    def styles(self, z: jax.Array) -> jax.Array:
        """Latents z -> styles w, both `[batch, latent]`."""
        w = z * lax.rsqrt(jnp.mean(jnp.square(z), -1, keepdims=True) + 1e-8)
        for layer in self.style:
            w = nn.leaky_relu(layer(w), _SLOPE) * _GAIN
        return w

    def synthesise(self, w: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Styles -> images and maps, see the class."""
        count = 2 * len(self.sizes())
        if w.ndim == 2:
            w = jnp.broadcast_to(w[:, None], (w.shape[0], count, w.shape[1]))
        x = jnp.broadcast_to(self.constant, (w.shape[0], *self.constant.shape[1:]))
        x, _ = self.conv1(x, w[:, 0], self.noises[0])
        image, _ = self.to_rgb1(x, w[:, 1])
        taps = {}
        for index, colour in enumerate(self.colours):
            for number in (2 * index, 2 * index + 1):
                x, _ = self.convs[number](x, w[:, number + 1], self.noises[number + 1])
                taps[f"convs.{number}"] = x
            added, taps[f"to_rgbs.{index}"] = colour(x, w[:, 2 * index + 3])
            image = _filtered(image, ((2, 2), (2, 2)), dilation=2) + added
        return image, taps

    def __call__(self, z: jax.Array, psi: float = 1.0) -> tuple[jax.Array, dict[str, jax.Array]]:
        mean = self.mean_latent.reshape(1, -1)
        return self.synthesise(mean + psi * (self.styles(z) - mean))


def tap_names(module: StyleGan2) -> tuple[str, ...]:
    """The taps in the order of the published numbering of units: convolutions, then colours."""
    count = module.size.bit_length() - 3
    convs = tuple(f"convs.{i}" for i in range(2 * count))
    return convs + tuple(f"to_rgbs.{i}" for i in range(count))


def from_tensors(
    module: StyleGan2, tensors: Mapping[str, np.ndarray], mean_latent: np.ndarray
) -> dict[str, Any]:
    """Returns `{"params": ...}` from a checkpoint's tensors.

    Args:
        module: the network.
        tensors: name -> array, the checkpoint's `g_ema`.
        mean_latent: its `latent_avg`, `[latent]`.

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    z = jax.ShapeDtypeStruct((1, module.latent), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), z)["params"]
    source = {**tensors, "latent_avg": np.asarray(mean_latent).reshape(-1)}
    return {"params": porting.port(source, RULES, shapes)}


def _filtered(x: jax.Array, padding: Any, dilation: int = 1) -> jax.Array:
    """The low-pass filter [1, 3, 3, 1], after inserting zeros if `dilation` is 2."""
    channels = x.shape[-1]
    kernel = jnp.broadcast_to(jnp.asarray(_FIR).reshape(4, 4, 1, 1), (4, 4, 1, channels))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, (dilation, dilation), feature_group_count=channels,
        dimension_numbers=("NHWC", "HWIO", "NHWC"))
