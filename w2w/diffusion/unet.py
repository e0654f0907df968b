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

from w2w.diffusion.blocks import (
    Downsample,
    ResnetBlock,
    TimestepEmbedding,
    fold_patches,
    timestep_embedding,
    unfold_patches,
)
from w2w.diffusion.layers import GroupNorm, Upsample
from w2w.diffusion.transformer import SpatialTransformer


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
      num_heads: attention heads, of every level or one number for each.
      cross_attention_dim: width of the text tokens.
      feed_forward_multiple: hidden width of the gated feed-forward layer, over the block's width.
      norm_groups: groups of each group normalisation.
      transformer_layers: blocks of each spatial transformer, of every level or one number for
        each; the middle has as many as the last level.
      size_embedding: width of the sinusoidal embedding of each entry of ``sizes`` (SDXL's
        ``text_time`` conditioning; Podell et al., "SDXL", 2023, section 2.2); None for none.
      pooled_width: width of ``pooled``, if ``size_embedding`` is given.
      size_count: entries of ``sizes``, if ``size_embedding`` is given.
      remat: recompute the inside of residual and transformer blocks in the backward pass instead
        of storing it (gradient checkpointing); the values do not change.
    """

    in_channels: int = 4
    out_channels: int = 4
    patch_size: int = 1
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    num_heads: int | tuple[int, ...] = 8
    cross_attention_dim: int = 768
    feed_forward_multiple: int = 4
    norm_groups: int = 32
    transformer_layers: int | tuple[int, ...] = 1
    size_embedding: int | None = None
    pooled_width: int = 0
    size_count: int = 6
    remat: bool = False

    def __post_init__(self):
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries for "
                f"{len(self.block_out_channels)} levels of block_out_channels"
            )
        for name in ("num_heads", "transformer_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != len(self.block_out_channels):
                raise ValueError(
                    f"{name} has {len(value)} entries for {len(self.block_out_channels)} levels "
                    "of block_out_channels"
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return _per_level(self.num_heads, len(self.block_out_channels))

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks of each spatial transformer, by level."""
        return _per_level(self.transformer_layers, len(self.block_out_channels))


def _per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def _resnet(features: int, config: UNetConfig, dtype: Any, name: str) -> nn.Module:
    kind: Any = nn.remat(ResnetBlock) if config.remat else ResnetBlock
    return kind(features, config.norm_groups, dtype=dtype, name=name)


def _transformer(level: int, config: UNetConfig, dtype: Any, name: str) -> SpatialTransformer:
    return SpatialTransformer(
        config.heads[level],
        config.feed_forward_multiple,
        config.norm_groups,
        config.depths[level],
        config.remat,
        dtype,
        name=name,
    )


class Stage(nn.Module):
    """One resolution level: residual blocks, each with an optional transformer, then a resize.

    On the way down (``skips is None``) returns the output and the list of skip tensors it leaves;
    on the way up each residual block first concatenates the last of ``skips`` and removes it.
    """

    level: int
    layers: int
    resize: str
    config: UNetConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, x, time, text, skips=None):
        cfg = self.config
        left = []
        for i in range(self.layers):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            features = cfg.block_out_channels[self.level]
            x = _resnet(features, cfg, self.dtype, f"resnets_{i}")(x, time)
            if cfg.attention_levels[self.level]:
                x = _transformer(self.level, cfg, self.dtype, f"attentions_{i}")(x, text)
            left.append(x)
        if self.resize == "down":
            x = Downsample(self.dtype, name="downsamplers_0")(x)
            left.append(x)
        elif self.resize == "up":
            x = Upsample(name="upsamplers_0")(x)
        return x, left


class MidBlock(nn.Module):
    """Residual block, transformer, residual block at the coarsest level."""

    config: UNetConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, x, time, text):
        cfg = self.config
        features = cfg.block_out_channels[-1]
        x = _resnet(features, cfg, self.dtype, "resnets_0")(x, time)
        x = _transformer(-1, cfg, self.dtype, "attentions_0")(x, text)
        return _resnet(features, cfg, self.dtype, "resnets_1")(x, time)


class UNet(nn.Module):
    """Predicts a tensor of the image's shape from a noisy image, a timestep and text tokens.

    Attributes:
      config: widths and depths.
      dtype: of the computation (``jnp.bfloat16``); None for that of inputs and parameters. Norms
        and attention weights are float32 always; the prediction has the input's type.
    """

    config: UNetConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        timesteps: jax.Array,
        text: jax.Array,
        pooled: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the network.

        Args:
          images: noisy images ``[batch, height, width, in_channels]``.
          timesteps: ``[batch]``, in [0, 1000].
          text: text tokens ``[batch, tokens, cross_attention_dim]``.
          pooled: pooled text ``[batch, pooled_width]``, with ``config.size_embedding`` only.
          sizes: ``[batch, size_count]`` in pixels, with ``config.size_embedding`` only. SDXL's are
            original height and width, top and left of the crop, target height and width.

        Returns:
          The prediction ``[batch, height, width, out_channels]``.

        Raises:
          ValueError: sides that the levels do not divide, or conditioning that the configuration
            does not have (or lacks).
        """
        cfg, dtype = self.config, self.dtype
        widths = cfg.block_out_channels
        last = len(widths) - 1
        multiple = cfg.patch_size * 2**last
        if images.shape[1] % multiple or images.shape[2] % multiple:
            raise ValueError(
                f"height {images.shape[1]} and width {images.shape[2]} must be multiples of "
                f"{multiple} for {len(widths)} levels"
            )
        x = images if dtype is None else images.astype(dtype)
        time = TimestepEmbedding(4 * widths[0], dtype, name="time_embedding")(
            timestep_embedding(timesteps, widths[0]).astype(x.dtype)
        )
        added = _added_condition(cfg, pooled, sizes)
        if added is not None:
            extra = TimestepEmbedding(4 * widths[0], dtype, name="add_embedding")
            time = time + extra(added.astype(x.dtype))
        x = nn.Conv(widths[0], (3, 3), dtype=dtype, name="conv_in")(fold_patches(x, cfg.patch_size))
        skips = [x]
        for i in range(len(widths)):
            resize = "down" if i < last else ""
            stage = Stage(i, cfg.layers_per_block, resize, cfg, dtype, name=f"down_blocks_{i}")
            x, left = stage(x, time, text)
            skips += left
        x = MidBlock(cfg, dtype, name="mid_block")(x, time, text)
        for i in range(len(widths)):
            resize, layers = "up" if i < last else "", cfg.layers_per_block + 1
            stage = Stage(last - i, layers, resize, cfg, dtype, name=f"up_blocks_{i}")
            x, _ = stage(x, time, text, skips)
        x = nn.silu(GroupNorm(cfg.norm_groups, epsilon=1e-5, name="conv_norm_out")(x))
        channels = cfg.out_channels * cfg.patch_size**2
        x = nn.Conv(channels, (3, 3), dtype=dtype, name="conv_out")(x)
        x = unfold_patches(x, cfg.patch_size)
        return x if dtype is None else x.astype(images.dtype)


def _added_condition(
    config: UNetConfig, pooled: jax.Array | None, sizes: jax.Array | None
) -> jax.Array | None:
    """Pooled text and embedded sizes in one vector ``[batch, width]``, or None."""
    if config.size_embedding is None:
        if pooled is not None or sizes is not None:
            raise ValueError("this UNet has no size_embedding, but pooled or sizes were given")
        return None
    if pooled is None or sizes is None:
        raise ValueError("a UNet with size_embedding needs pooled and sizes")
    wanted = (config.pooled_width,), (config.size_count,)
    if (pooled.shape[1:], sizes.shape[1:]) != wanted:
        raise ValueError(f"pooled {pooled.shape}, sizes {sizes.shape}; wanted [batch] + {wanted}")
    embedded = timestep_embedding(sizes.reshape(-1), config.size_embedding)
    return jnp.concatenate([pooled.astype(jnp.float32), embedded.reshape(len(sizes), -1)], axis=-1)


def count_parameters(params: Any) -> int:
    """Number of scalars in a parameter pytree."""
    leaves: Sequence[jax.Array] = jax.tree.leaves(params)
    return sum(math.prod(leaf.shape) for leaf in leaves)
