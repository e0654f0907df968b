"""Blocks that UNet and autoencoder are made of, besides attention: time, residuals, patches."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2w.diffusion.layers import GroupNorm


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
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(nn.silu(x))


class ResnetBlock(nn.Module):
    """Residual block: twice norm, SiLU, conv, a time shift between (if any), plus the input."""

    features: int
    norm_groups: int
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        dtype = self.dtype
        h = nn.silu(GroupNorm(self.norm_groups, epsilon=self.epsilon, name="norm1")(x))
        h = nn.Conv(self.features, (3, 3), dtype=dtype, name="conv1")(h)
        if time is not None:
            shift = nn.Dense(self.features, dtype=dtype, name="time_emb_proj")(nn.silu(time))
            h = h + shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.norm_groups, epsilon=self.epsilon, name="norm2")(h))
        h = nn.Conv(self.features, (3, 3), dtype=dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2 with one pixel of padding on each side (torch's layout)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.Conv(
            x.shape[-1],
            (3, 3),
            strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dtype=self.dtype,
            name="conv",
        )
        return conv(x)


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
