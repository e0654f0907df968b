"""The KL autoencoder of latent diffusion, with the module names of diffusers' ``AutoencoderKL``.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022). The
encoder gives mean and log-variance of each latent, the decoder an image. The face model uses a
small configuration that first folds ``patch_size`` x ``patch_size`` pixels into channels.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2w.diffusion.blocks import ResnetBlock, fold_patches, unfold_patches
from w2w.diffusion.layers import GroupNorm, Upsample, attend

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Widths and depths of the autoencoder (the defaults are Stable Diffusion's).

    Attributes:
      channels: of the image.
      latent_channels: of the latents.
      patch_size: side of the pixel blocks folded into channels first (1: none).
      block_out_channels: width of each resolution level, finest first; each but the last halves
        the resolution.
      layers_per_block: residual blocks of each encoder level (one more in the decoder).
      norm_groups: groups of each group normalisation.
    """

    channels: int = 3
    latent_channels: int = 4
    patch_size: int = 1
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


class PixelAttention(nn.Module):
    """Residual self-attention over pixels with one head."""

    norm_groups: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        dtype = self.dtype
        h = GroupNorm(self.norm_groups, epsilon=EPSILON, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        q, k, v = (nn.Dense(channels, dtype=dtype, name=f"to_{n}")(h)[:, :, None] for n in "qkv")
        h = attend(q, k, v)[:, :, 0]
        return x + nn.Dense(channels, dtype=dtype, name="to_out_0")(h).reshape(x.shape)


class Mid(nn.Module):
    """Residual block, attention, residual block."""

    features: int
    norm_groups: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _resnet(self, "resnets_0")(x)
        x = PixelAttention(self.norm_groups, self.dtype, name="attentions_0")(x)
        return _resnet(self, "resnets_1")(x)


class Level(nn.Module):
    """Residual blocks of one resolution, then a resize ("down", "up" or "")."""

    features: int
    layers: int
    resize: str
    norm_groups: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = _resnet(self, f"resnets_{i}")(x)
        if self.resize == "down":
            x = Halve(self.dtype, name="downsamplers_0")(x)
        elif self.resize == "up":
            x = Upsample(name="upsamplers_0")(x)
        return x


def _resnet(parent: Any, name: str) -> ResnetBlock:
    return ResnetBlock(parent.features, parent.norm_groups, EPSILON, parent.dtype, name=name)


class Halve(nn.Module):
    """3 x 3 convolution of stride 2 with padding after the last row and column only."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((0, 1), (0, 1))
        channels, dtype = x.shape[-1], self.dtype
        conv = nn.Conv(channels, (3, 3), strides=(2, 2), padding=padding, dtype=dtype, name="conv")
        return conv(x)


class Encoder(nn.Module):
    """Images ``[B, H, W, channels]`` to moments ``[B, h, w, 2 * latent_channels]``."""

    config: AutoencoderConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg, dtype = self.config, self.dtype
        widths = cfg.block_out_channels
        x = fold_patches(images, cfg.patch_size)
        x = nn.Conv(widths[0], (3, 3), dtype=dtype, name="conv_in")(x)
        for i, width in enumerate(widths):
            resize = "down" if i < len(widths) - 1 else ""
            name = f"down_blocks_{i}"
            x = Level(width, cfg.layers_per_block, resize, cfg.norm_groups, dtype, name=name)(x)
        x = Mid(widths[-1], cfg.norm_groups, dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(cfg.norm_groups, epsilon=EPSILON, name="conv_norm_out")(x))
        return nn.Conv(2 * cfg.latent_channels, (3, 3), dtype=dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents ``[B, h, w, latent_channels]`` to images ``[B, H, W, channels]``."""

    config: AutoencoderConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        cfg, dtype = self.config, self.dtype
        widths = cfg.block_out_channels[::-1]
        x = nn.Conv(widths[0], (3, 3), dtype=dtype, name="conv_in")(latents)
        x = Mid(widths[0], cfg.norm_groups, dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            resize, layers = "up" if i < len(widths) - 1 else "", cfg.layers_per_block + 1
            name = f"up_blocks_{i}"
            x = Level(width, layers, resize, cfg.norm_groups, dtype, name=name)(x)
        x = nn.silu(GroupNorm(cfg.norm_groups, epsilon=EPSILON, name="conv_norm_out")(x))
        channels = cfg.channels * cfg.patch_size**2
        x = nn.Conv(channels, (3, 3), dtype=dtype, name="conv_out")(x)
        return unfold_patches(x, cfg.patch_size)


class Autoencoder(nn.Module):
    """Encoder and decoder with the 1 x 1 layers between them (``quant_conv``).

    Attributes:
      config: widths and depths.
      dtype: of the computation; None for that of inputs and parameters. Norms and attention
        weights are float32 always; results have the input's type.
    """

    config: AutoencoderConfig
    dtype: Any = None

    def setup(self) -> None:
        cfg, dtype = self.config, self.dtype
        self.encoder = Encoder(cfg, dtype)
        self.decoder = Decoder(cfg, dtype)
        self.quant_conv = nn.Dense(2 * cfg.latent_channels, dtype=dtype)
        self.post_quant_conv = nn.Dense(cfg.latent_channels, dtype=dtype)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance ``[B, h, w, latent_channels]`` of the latents."""
        moments = self.quant_conv(self.encoder(images))
        moments = moments if self.dtype is None else moments.astype(images.dtype)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images of latents."""
        images = self.decoder(self.post_quant_conv(latents))
        return images if self.dtype is None else images.astype(latents.dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.decode(self.encode(images)[0])


def kl_divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL divergence of the latents from standard normal, ``[batch]`` (Kingma & Welling, 2014)."""
    terms = mean * mean + jnp.exp(log_variance) - 1.0 - log_variance
    return 0.5 * jnp.sum(terms, axis=tuple(range(1, mean.ndim)))


def sample_posterior(key: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Latents drawn from the encoder's Gaussian, of the shape of ``mean``."""
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return mean + jnp.exp(0.5 * log_variance) * noise
