"""The text-conditioned UNet of Stable Diffusion's kind, with the module names of diffusers.

Residual blocks with time embedding, spatial transformers with self-attention (``attn1``),
cross-attention to text tokens (``attn2``) and a gated feed-forward layer, in a U of
``block_out_channels``. A configuration with SD 1.5's widths is the architecture of Rombach et
al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022); the face model of
this package is a small configuration of the same class that works on ``patch_size`` x
``patch_size`` blocks of pixels instead of the latents of an autoencoder.

All submodule names equal diffusers' with ``.`` before a list index written as ``_``
(``down_blocks.0.attentions.0`` is ``down_blocks_0/attentions_0``), so that adapters for one load
into the other.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2w.diffusion.layers import GroupNorm, Upsample


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Widths and depths of the UNet.

    Attributes:
      in_channels: channels of the image (or latent) that is denoised.
      out_channels: channels of the prediction.
      patch_size: side of the pixel blocks folded into channels before the first convolution
        (1: none).
      block_out_channels: width of each resolution level, finest first.
      layers_per_block: residual blocks of each level on the way down (one more on the way up).
      attention_levels: for each level, whether its residual blocks are followed by a transformer.
      num_heads: attention heads at each level.
      cross_attention_dim: width of the text tokens.
      feed_forward_multiple: hidden width of the gated feed-forward layer, over the block's width.
      norm_groups: groups of each group normalisation.
    """

    in_channels: int = 4
    out_channels: int = 4
    patch_size: int = 1
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    num_heads: int = 8
    cross_attention_dim: int = 768
    feed_forward_multiple: int = 4
    norm_groups: int = 32

    def __post_init__(self):
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries for "
                f"{len(self.block_out_channels)} levels of block_out_channels"
            )


def timestep_embedding(timesteps: jax.Array, width: int, max_period: float = 10000.0) -> jax.Array:
    """Sinusoidal embedding ``[batch, width]`` of ``timesteps [batch]`` (cosines first).

    The form of Vaswani et al. (2017) as used by DDPM, with diffusers' ``flip_sin_to_cos=True`` and
    ``freq_shift=0``.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two dense layers that turn the sinusoidal embedding into the blocks' time vector."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, name="linear_1")(x)
        return nn.Dense(self.width, name="linear_2")(nn.silu(x))


class ResnetBlock(nn.Module):
    """Residual block: twice norm, SiLU, conv, a time shift between (if any), plus the input."""

    features: int
    norm_groups: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        h = nn.silu(GroupNorm(self.norm_groups, epsilon=self.epsilon, name="norm1")(x))
        h = nn.Conv(self.features, (3, 3), name="conv1")(h)
        if time is not None:
            shift = nn.Dense(self.features, name="time_emb_proj")(nn.silu(time))
            h = h + shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.norm_groups, epsilon=self.epsilon, name="norm2")(h))
        h = nn.Conv(self.features, (3, 3), name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Multi-head attention of ``x [batch, tokens, width]`` to ``context`` (to itself if None)."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"attention width {width} is not a multiple of {self.num_heads} heads")
        context = x if context is None else context

        def heads(y):
            return y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)

        q = heads(nn.Dense(width, use_bias=False, name="to_q")(x))
        k = heads(nn.Dense(width, use_bias=False, name="to_k")(context))
        v = heads(nn.Dense(width, use_bias=False, name="to_v")(context))
        out = jax.nn.dot_product_attention(q, k, v)
        return nn.Dense(width, name="to_out_0")(out.reshape(x.shape))


class GatedFeedForward(nn.Module):
    """GEGLU feed-forward layer (Shazeer, 2020)."""

    multiple: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = x.shape[-1] * self.multiple
        value, gate = jnp.split(nn.Dense(2 * hidden, name="net_0_proj")(x), 2, axis=-1)
        return nn.Dense(x.shape[-1], name="net_2")(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each pre-normed and residual."""

    num_heads: int
    feed_forward_multiple: int

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=1e-5, name="norm1")(x)
        x = x + Attention(self.num_heads, name="attn1")(y)
        y = nn.LayerNorm(epsilon=1e-5, name="norm2")(x)
        x = x + Attention(self.num_heads, name="attn2")(y, text)
        y = nn.LayerNorm(epsilon=1e-5, name="norm3")(x)
        return x + GatedFeedForward(self.feed_forward_multiple, name="ff")(y)


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map, between two dense layers.

    The dense layers are Stable Diffusion's 1 x 1 convolutions; the kernels are stored as matrices.
    """

    num_heads: int
    feed_forward_multiple: int
    norm_groups: int

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm")(x)
        h = nn.Dense(channels, name="proj_in")(h.reshape(batch, height * width, channels))
        block = TransformerBlock(
            self.num_heads, self.feed_forward_multiple, name="transformer_blocks_0"
        )
        h = nn.Dense(channels, name="proj_out")(block(h, text))
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2 with one pixel of padding on each side (torch's layout)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((1, 1), (1, 1))
        return nn.Conv(x.shape[-1], (3, 3), strides=(2, 2), padding=padding, name="conv")(x)


class Stage(nn.Module):
    """One resolution level: residual blocks, each with an optional transformer, then a resize.

    On the way down (``skips is None``) returns the output and the list of skip tensors it leaves;
    on the way up each residual block first concatenates the last of ``skips`` and removes it.
    """

    features: int
    layers: int
    attention: bool
    resize: str
    config: UNetConfig

    @nn.compact
    def __call__(self, x, time, text, skips=None):
        cfg = self.config
        left = []
        for i in range(self.layers):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = ResnetBlock(self.features, cfg.norm_groups, name=f"resnets_{i}")(x, time)
            if self.attention:
                transformer = SpatialTransformer(
                    cfg.num_heads,
                    cfg.feed_forward_multiple,
                    cfg.norm_groups,
                    name=f"attentions_{i}",
                )
                x = transformer(x, text)
            left.append(x)
        if self.resize == "down":
            x = Downsample(name="downsamplers_0")(x)
            left.append(x)
        elif self.resize == "up":
            x = Upsample(name="upsamplers_0")(x)
        return x, left


class MidBlock(nn.Module):
    """Residual block, transformer, residual block at the coarsest level."""

    features: int
    config: UNetConfig

    @nn.compact
    def __call__(self, x, time, text):
        cfg = self.config
        x = ResnetBlock(self.features, cfg.norm_groups, name="resnets_0")(x, time)
        transformer = SpatialTransformer(
            cfg.num_heads, cfg.feed_forward_multiple, cfg.norm_groups, name="attentions_0"
        )
        x = transformer(x, text)
        return ResnetBlock(self.features, cfg.norm_groups, name="resnets_1")(x, time)


class UNet(nn.Module):
    """Predicts a tensor of the image's shape from a noisy image, a timestep and text tokens."""

    config: UNetConfig

    @nn.compact
    def __call__(self, images: jax.Array, timesteps: jax.Array, text: jax.Array) -> jax.Array:
        """Applies the network.

        Args:
          images: noisy images ``[batch, height, width, in_channels]``.
          timesteps: ``[batch]``, in [0, 1000].
          text: text tokens ``[batch, tokens, cross_attention_dim]``.

        Returns:
          The prediction ``[batch, height, width, out_channels]``.
        """
        cfg = self.config
        widths = cfg.block_out_channels
        last = len(widths) - 1
        time = TimestepEmbedding(4 * widths[0], name="time_embedding")(
            timestep_embedding(timesteps, widths[0]).astype(images.dtype)
        )
        x = nn.Conv(widths[0], (3, 3), name="conv_in")(fold_patches(images, cfg.patch_size))
        skips = [x]
        for i, width in enumerate(widths):
            stage = Stage(
                width,
                cfg.layers_per_block,
                cfg.attention_levels[i],
                "down" if i < last else "",
                cfg,
                name=f"down_blocks_{i}",
            )
            x, left = stage(x, time, text)
            skips += left
        x = MidBlock(widths[-1], cfg, name="mid_block")(x, time, text)
        for i, width in enumerate(reversed(widths)):
            stage = Stage(
                width,
                cfg.layers_per_block + 1,
                cfg.attention_levels[last - i],
                "up" if i < last else "",
                cfg,
                name=f"up_blocks_{i}",
            )
            x, _ = stage(x, time, text, skips)
        x = nn.silu(GroupNorm(cfg.norm_groups, epsilon=1e-5, name="conv_norm_out")(x))
        x = nn.Conv(cfg.out_channels * cfg.patch_size**2, (3, 3), name="conv_out")(x)
        return unfold_patches(x, cfg.patch_size)


def fold_patches(images: jax.Array, size: int) -> jax.Array:
    """``[B, H, W, C]`` to ``[B, H/size, W/size, size*size*C]`` (space to depth)."""
    if size == 1:
        return images
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(f"image {height} x {width} does not divide into {size} x {size} patches")
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // size, width // size, size * size * channels)


def unfold_patches(x: jax.Array, size: int) -> jax.Array:
    """Inverse of :func:`fold_patches`."""
    if size == 1:
        return x
    batch, height, width, channels = x.shape
    depth = channels // size**2
    x = x.reshape(batch, height, width, size, size, depth).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * size, width * size, depth)


def count_parameters(params: Any) -> int:
    """Number of scalars in a parameter pytree."""
    leaves: Sequence[jax.Array] = jax.tree.leaves(params)
    return sum(math.prod(leaf.shape) for leaf in leaves)
