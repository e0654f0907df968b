"""The spatial transformer of the UNet: attention over pixels and to the text, feed-forward."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2w.diffusion.layers import GroupNorm, LayerNorm, attend


class Attention(nn.Module):
    """Multi-head attention of ``x [batch, tokens, width]`` to ``context`` (to itself if None)."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"attention width {width} is not a multiple of {self.num_heads} heads")
        context = x if context is None else context

        def heads(y, name):
            y = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)

        out = attend(heads(x, "to_q"), heads(context, "to_k"), heads(context, "to_v"))
        return nn.Dense(width, dtype=self.dtype, name="to_out_0")(out.reshape(x.shape))


class GatedFeedForward(nn.Module):
    """GEGLU feed-forward layer (Shazeer, 2020)."""

    multiple: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = x.shape[-1] * self.multiple
        both = nn.Dense(2 * hidden, dtype=self.dtype, name="net_0_proj")(x)
        value, gate = jnp.split(both, 2, axis=-1)
        out = nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")
        return out(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each pre-normed and residual."""

    num_heads: int
    feed_forward_multiple: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        dtype = self.dtype
        y = LayerNorm(name="norm1")(x)
        x = x + Attention(self.num_heads, dtype, name="attn1")(y)
        y = LayerNorm(name="norm2")(x)
        x = x + Attention(self.num_heads, dtype, name="attn2")(y, text)
        y = LayerNorm(name="norm3")(x)
        return x + GatedFeedForward(self.feed_forward_multiple, dtype, name="ff")(y)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two dense layers.

    The dense layers are Stable Diffusion's 1 x 1 convolutions (SD 1.x) or linear layers (SD 2.x,
    SDXL), which are the same map; the kernels are stored as matrices.
    """

    num_heads: int
    feed_forward_multiple: int
    norm_groups: int
    layers: int = 1
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.norm_groups, epsilon=1e-6, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, name="proj_in")(h)
        kind: Any = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for i in range(self.layers):
            block = kind(
                self.num_heads,
                self.feed_forward_multiple,
                self.dtype,
                name=f"transformer_blocks_{i}",
            )
            h = block(h, text)
        h = nn.Dense(channels, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)
