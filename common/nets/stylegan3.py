"""StyleGAN3 and StyleGAN-XL generators: alias-free synthesis from Fourier features.

T. Karras et al., "Alias-Free Generative Adversarial Networks", NeurIPS 2021 (configurations T and
R); A. Sauer, K. Schwarz, A. Geiger, "StyleGAN-XL", SIGGRAPH 2022, which grows the network in
stages and conditions it on embedded classes. Layers are computed in float32 throughout; the
published ones have float16 parts on GPUs.

As in `common.nets.stylegan2` the style scales a convolution's input and demodulation its output,
with one kernel for all images. Resampling along an axis is a product with a banded matrix; only
configuration R's radial filters are convolutions in two dimensions.

Cost of StyleGAN-XL at 256 pixels: 233 million parameters.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common import porting
from common.nets.resample_filters import matrix_down, matrix_up, radial_lowpass
from common.nets.stylegan2 import EqualLinear

__all__ = [
    "MARGIN", "Layer", "StyleGan3", "from_tensors", "stylegan3_layers", "stylegan_xl_layers",
    "tap_names",
]

MARGIN = 10  # cells around the image on each side, in all layers but the last two
_SLOPE, _GAIN, _CLAMP = 0.2, 2**0.5, 256.0
_LAST_STOPBAND = 2**0.3  # relative to the cutoff
_CRITICAL = 2  # critically sampled layers at the end, besides the colours
_TAPS = 6  # of a low-pass filter for each unit of the factor
_HIGHEST = lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one synthesis layer does; sizes in cells, rates and frequencies in cycles an image."""

    name: str
    in_channels: int
    channels: int
    in_size: int
    size: int
    in_rate: int
    rate: int
    in_cutoff: float
    cutoff: float
    in_half_width: float
    half_width: float
    kernel: int = 3
    colours: bool = False
    critical: bool = False
    radial: bool = False

    @property
    def inner_rate(self) -> int:
        """Sampling rate at which the nonlinearity is applied."""
        return max(self.in_rate, self.rate) * (1 if self.colours else 2)

    @property
    def up(self) -> int:
        """Factor of upsampling before the nonlinearity."""
        return self.inner_rate // self.in_rate

    @property
    def down(self) -> int:
        """Factor of downsampling after it."""
        return self.inner_rate // self.rate

    @property
    def up_taps(self) -> int:
        """Length of the upsampling filter."""
        return _TAPS * self.up if self.up > 1 and not self.colours else 1

    @property
    def down_taps(self) -> int:
        """Length of the downsampling filter."""
        return _TAPS * self.down if self.down > 1 and not self.colours else 1

    @property
    def padding(self) -> tuple[int, int]:
        """Cells before and after the upsampled maps of the convolution, may be negative."""
        total = (self.size - 1) * self.down + 1 - (self.in_size + self.kernel - 1) * self.up
        total += self.up_taps + self.down_taps - 2
        low = (total + self.up) // 2
        return low, total - low


def stylegan3_layers(
    size: int,
    base: int = 32768,
    most: int = 512,
    layers: int = 14,
    kernel: int = 3,
    radial: bool = False,
) -> tuple[Layer, ...]:
    """The layers of StyleGAN3, colours last.

    Args:
      size: of the images in pixels.
      base, most: channels are `base / 2 / cutoff`, at most `most`.
      layers: number of layers before the colours.
      kernel: side of the convolutions; 3 in configuration T, 1 in R.
      radial: radially symmetric filters where not critically sampled; True in configuration R,
        whose `base` and `most` are doubled.
    """
    exponents = np.minimum(np.arange(layers + 1) / (layers - _CRITICAL), 1)
    bands = _bands(2.0, 2**2.1, size, exponents)
    channels = np.rint(np.minimum(base / 2 / bands["cutoff"], most)).astype(int)
    channels[-1] = 3
    return tuple(
        _layer(bands, channels, index, index, size, kernel, radial) for index in range(layers + 1)
    )


def stylegan_xl_layers(
    size: int, base: int = 65536, most: int = 1024, stem: int = 16, layers: int = 10, head: int = 7
) -> tuple[Layer, ...]:
    """The layers of StyleGAN-XL: a stem of 16 pixels, and a head for each doubling.

    A head replaces the critically sampled layers and the colours of what is before it. Its numbers
    go on from there, with one left out.

    Raises:
      ValueError: a size that is no power of two times the stem's.
    """
    factor = size // stem
    if size % stem or factor & (factor - 1) or factor < 1:
        raise ValueError(f"StyleGAN-XL of {size} pixels; sizes are {stem} times powers of two")
    result = list(stylegan3_layers(stem, base, most, layers))
    now = stem
    while now < size:
        now *= 2
        result = [layer for layer in result if not layer.critical]
        last = result[-1]
        exponents = np.minimum(np.arange(head + 1) / (head - _CRITICAL), 1)
        bands = _bands(last.cutoff, last.cutoff + last.half_width, now, exponents, last.rate)
        channels = np.rint(np.minimum(base / 2 / bands["cutoff"], most)).astype(int)
        channels[0], channels[-1] = last.channels, 3
        first = len(result) + 1
        result += [
            _layer(bands, channels, index, first + index, now, 3, False)
            for index in range(head + 1)
        ]
    return tuple(result)


def _bands(
    cutoff: float, stopband: float, size: int, exponents: np.ndarray, first_rate: int | None = None
) -> dict[str, np.ndarray]:
    """Geometric progressions of cutoffs and stopbands; rates, transition bands and sizes."""
    last = size / 2
    cutoffs = cutoff * (last / cutoff) ** exponents
    stopbands = stopband * (last * _LAST_STOPBAND / stopband) ** exponents
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, size))))
    if first_rate is not None:
        rates[0] = first_rate
    sizes = rates + 2 * MARGIN
    sizes[-2:] = size
    half = np.maximum(stopbands, rates / 2) - cutoffs
    return {"cutoff": cutoffs, "rate": rates, "half": half, "size": sizes}


def _layer(
    bands: Mapping[str, np.ndarray], channels: np.ndarray, index: int, number: int, size: int,
    kernel: int, radial: bool,
) -> Layer:
    before = max(index - 1, 0)
    colours = index == len(channels) - 1
    critical = index >= len(channels) - 1 - _CRITICAL
    return Layer(
        name=f"L{number}_{int(bands['size'][index])}_{channels[index]}",
        in_channels=int(channels[before]), channels=int(channels[index]),
        in_size=int(bands["size"][before]), size=int(bands["size"][index]),
        in_rate=int(bands["rate"][before]), rate=int(bands["rate"][index]),
        in_cutoff=float(bands["cutoff"][before]), cutoff=float(bands["cutoff"][index]),
        in_half_width=float(bands["half"][before]), half_width=float(bands["half"][index]),
        kernel=1 if colours else kernel, colours=colours, critical=critical,
        radial=radial and not critical,
    )  # fmt: skip


class FourierInput(nn.Module):
    """Styles `[batch, w]` -> Fourier features `[batch, size, size, channels]`, moved and turned."""

    channels: int
    size: int
    rate: int
    cutoff: float

    @nn.compact
    def __call__(self, w: jax.Array) -> jax.Array:
        frequencies = self.param("freqs", nn.initializers.normal(1.0), (self.channels, 2))
        phases = self.param("phases", nn.initializers.uniform(1.0), (self.channels,))
        given = self.param("transform", lambda _: jnp.eye(3))
        t = EqualLinear(4, name="affine")(w)
        t = t / jnp.linalg.norm(t[:, :2], axis=1, keepdims=True)
        cos, sin, right, down = (t[:, i] for i in range(4))
        zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)

        def stack(rows: list[list[jax.Array]]) -> jax.Array:
            return jnp.stack([jnp.stack(row, -1) for row in rows], -2)

        turn = stack([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])
        move = stack([[one, zero, -right], [zero, one, -down], [zero, zero, one]])
        whole = jnp.einsum("bij,bjk,kl->bil", turn, move, given, precision=_HIGHEST)
        phases = phases.reshape(1, -1) + jnp.einsum(
            "ci,bi->bc", frequencies, whole[:, :2, 2], precision=_HIGHEST)
        turned = jnp.einsum("ci,bij->bcj", frequencies, whole[:, :2, :2], precision=_HIGHEST)
        beyond = (jnp.linalg.norm(turned, axis=2) - self.cutoff) / (self.rate / 2 - self.cutoff)
        amplitudes = jnp.clip(1 - beyond, 0, 1)
        # Centres of the cells, in units in which the image reaches from -0.5 to 0.5.
        places = (np.arange(self.size, dtype=np.float32) * 2 + 1) / self.size - 1
        places = places * np.float32(0.5 * self.size / self.rate)
        columns, rows = jnp.asarray(places).reshape(1, 1, -1, 1), places.reshape(1, -1, 1, 1)
        x = columns * turned[:, None, None, :, 0] + rows * turned[:, None, None, :, 1]
        x = jnp.sin(2 * jnp.pi * (x + phases[:, None, None])) * amplitudes[:, None, None]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (self.channels,) * 2)
        return jnp.einsum("bhwc,cd->bhwd", x, kernel, precision=_HIGHEST) / self.channels**0.5


class SynthesisLayer(nn.Module):
    """Modulated convolution and filtered leaky ReLU."""

    spec: Layer

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        spec = self.spec
        channels = spec.in_channels
        shape = (spec.kernel, spec.kernel, channels, spec.channels)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        bias = self.param("bias", nn.initializers.zeros, (spec.channels,))
        magnitude = self.param("magnitude_ema", nn.initializers.ones, ())
        style = EqualLinear(channels, bias=1.0, name="affine")(w)
        if spec.colours:
            style = style / (channels * spec.kernel**2) ** 0.5
        else:
            kernel = kernel * lax.rsqrt(jnp.mean(jnp.square(kernel), (0, 1, 2), keepdims=True))
            style = style * lax.rsqrt(jnp.mean(jnp.square(style), 1, keepdims=True))
        scaled = x * (style * lax.rsqrt(magnitude)).reshape(-1, 1, 1, channels)
        y = lax.conv_general_dilated(
            scaled, kernel, (1, 1), [(spec.kernel - 1,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
        if not spec.colours:
            squares = jnp.square(style) @ jnp.sum(jnp.square(kernel), (0, 1))
            y = y * lax.rsqrt(squares + 1e-8).reshape(-1, 1, 1, spec.channels)
        return filtered(y + bias.reshape(1, 1, 1, -1), spec)


class StyleGan3(nn.Module):
    """Latents `[batch, latent]` -> images `[batch, size, size, 3]`, about in [-1, 1], and maps.

    Attributes:
      layers: of the synthesis, see `stylegan3_layers` and `stylegan_xl_layers`.
      latent: size of the latents; 512, in StyleGAN-XL 64.
      style: size of the styles.
      mapping: layers of the mapping.
      classes: number of classes, each with an embedding of `embedding` numbers; 0 for none.
      embedding: size of the embeddings.

    Methods: `__call__(z, label, psi)`; `styles(z, label)` gives `[batch, style]`; `synthesise(w)`
    takes `[batch, style]` or one for the input and each layer, `[batch, 1 + layers, style]`. The
    second result maps the names of `tap_names` to `[batch, s, s, channels]`.
    """

    layers: tuple[Layer, ...]
    latent: int = 512
    style: int = 512
    mapping: int = 2
    classes: int = 0
    embedding: int = 320

    def setup(self) -> None:
        first = self.layers[0]
        self.input = FourierInput(
            first.in_channels, first.in_size, first.in_rate, first.in_cutoff)
        self.parts = [SynthesisLayer(layer, name=layer.name) for layer in self.layers]
        self.fully = [EqualLinear(self.style, 0.01, name=f"fc{i}") for i in range(self.mapping)]
        shape = (self.classes, self.style) if self.classes else (self.style,)
        self.mean_style = self.param("w_avg", nn.initializers.zeros, shape)
        if self.classes:
            self.table = self.param(
                "embed", nn.initializers.normal(1.0), (self.classes, self.embedding))
            self.embed_proj = EqualLinear(self.latent)

    def styles(self, z: jax.Array, label: jax.Array | None = None) -> jax.Array:
        """Latents `[batch, latent]` (and classes `[batch]`, int) -> styles `[batch, style]`."""
        x = _normalised(z)
        if self.classes:
            if label is None:
                raise ValueError(f"a generator of {self.classes} classes needs a label")
            y = nn.leaky_relu(self.embed_proj(self.table[label]), _SLOPE) * _GAIN
            x = jnp.concatenate([x, _normalised(y)], 1)
        for layer in self.fully:
            x = nn.leaky_relu(layer(x), _SLOPE) * _GAIN
        return x

    def mean(self, label: jax.Array | None = None) -> jax.Array:
        """The mean style, `[1, style]`, or of each label, `[batch, style]`."""
        return self.mean_style[label] if self.classes else self.mean_style.reshape(1, -1)

    def synthesise(self, w: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Styles -> images and maps, see the class."""
        count = 1 + len(self.layers)
        if w.ndim == 2:
            w = jnp.broadcast_to(w[:, None], (w.shape[0], count, w.shape[1]))
        taps = {"input": self.input(w[:, 0])}
        x = taps["input"]
        for index, (layer, part) in enumerate(zip(self.layers, self.parts, strict=True)):
            taps[layer.name] = x = part(x, w[:, index + 1])
        image = 0.25 * x
        return image, {"synthesis": image, **taps}

    def __call__(
        self, z: jax.Array, label: jax.Array | None = None, psi: float = 1.0
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        mean = self.mean(label)
        return self.synthesise(mean + psi * (self.styles(z, label) - mean))


def filtered(x: jax.Array, spec: Layer) -> jax.Array:
    """Upsampling, leaky ReLU with gain and clamp, downsampling of `[batch, s, s, channels]`."""
    up = jnp.asarray(_up(spec), x.dtype)
    x = jnp.einsum("oi,bijc->bojc", up, x, precision=_HIGHEST)
    x = jnp.einsum("pj,bojc->bopc", up, x, precision=_HIGHEST)
    x = x if spec.colours else nn.leaky_relu(x, _SLOPE) * _GAIN
    x = jnp.clip(x, -_CLAMP, _CLAMP)
    if spec.radial and spec.down_taps > 1:
        kernel = radial_lowpass(spec.down_taps, spec.cutoff, spec.half_width, spec.inner_rate)
        batch, side, _, channels = x.shape
        flat = x.transpose(0, 3, 1, 2).reshape(-1, side, side, 1)
        flat = lax.conv_general_dilated(
            flat, jnp.asarray(kernel, x.dtype).reshape(*kernel.shape, 1, 1), (spec.down,) * 2,
            "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=_HIGHEST)  # fmt: skip
        return flat.reshape(batch, channels, *flat.shape[1:3]).transpose(0, 2, 3, 1)
    down = jnp.asarray(_down(spec), x.dtype)
    x = jnp.einsum("oi,bijc->bojc", down, x, precision=_HIGHEST)
    return jnp.einsum("pj,bojc->bopc", down, x, precision=_HIGHEST)


@functools.cache
def _up(spec: Layer) -> np.ndarray:
    band = (spec.in_cutoff, spec.in_half_width, spec.inner_rate)
    size = spec.in_size + spec.kernel - 1
    return matrix_up(size, spec.up, spec.up_taps, band, spec.padding)


@functools.cache
def _down(spec: Layer) -> np.ndarray:
    band = (spec.cutoff, spec.half_width, spec.inner_rate)
    return matrix_down(_up(spec).shape[0], spec.down, spec.down_taps, band)


def _normalised(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), 1, keepdims=True) + 1e-8)


def tap_names(module: StyleGan3) -> tuple[str, ...]:
    """The taps in the order of the published numbering: the image, the input, the layers."""
    return ("synthesis", "input", *(layer.name for layer in module.layers))


_RULES: tuple[porting.Rule, ...] = (
    (r"synthesis\..*\.(up|down)_filter.*", porting.DROP, porting.identity),  # follow from the layer
    (r"mapping\.w_avg", "w_avg", porting.identity),
    (r"mapping\.embed\.weight", "embed", porting.identity),
    (r"mapping\.(embed_proj|fc\d+)\.weight", r"\1/kernel", porting.linear_oi_to_io),
    (r"mapping\.(embed_proj|fc\d+)\.bias", r"\1/bias", porting.identity),
    (r"synthesis\.input\.(freqs|phases|transform)", r"input/\1", porting.identity),
    (r"synthesis\.input\.weight", "input/kernel", porting.linear_oi_to_io),
    (r"synthesis\.(input|L\w+)\.affine\.weight", r"\1/affine/kernel", porting.linear_oi_to_io),
    (r"synthesis\.(input|L\w+)\.affine\.bias", r"\1/affine/bias", porting.identity),
    (r"synthesis\.(L\w+)\.weight", r"\1/kernel", porting.conv_oihw_to_hwio),
    (r"synthesis\.(L\w+)\.(bias|magnitude_ema)", r"\1/\2", porting.identity),
)


def from_tensors(module: StyleGan3, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ...}` from a checkpoint's `G_ema`, by its official names.

    Raises:
      porting.PortingError: the tensors are not those of this network.
    """
    z = jax.ShapeDtypeStruct((1, module.latent), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32) if module.classes else None
    shapes = jax.eval_shape(module.init, jax.random.key(0), z, label)["params"]
    return {"params": porting.port(tensors, _RULES, shapes)}
