"""Layers of the UNet in forms that XLA compiles well on CPU, each equal to its plain definition."""

import contextlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, 2018) of ``[batch, height, width, channels]``.

    Equal to ``flax.linen.GroupNorm`` with the same parameter names; pixels are summed per channel
    before channels are summed per group and the result is one multiply-add per element, which is
    three times faster on CPU. Moments are float32 whatever the input's type.
    """

    num_groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        if channels % self.num_groups:
            raise ValueError(f"{channels} channels do not divide into {self.num_groups} groups")
        size = channels // self.num_groups
        scale = self.param("scale", nn.initializers.ones, (channels,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(jnp.float32)
        y = x.astype(jnp.float32)
        count = height * width * size

        def per_group(moments):
            return moments.reshape(batch, self.num_groups, size).sum(axis=-1) / count

        mean = per_group(y.sum(axis=(1, 2)))
        square = per_group((y * y).sum(axis=(1, 2)))
        inverse = lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.epsilon)
        gain = jnp.repeat(inverse, size, axis=-1) * scale[None]
        shift = bias[None] - jnp.repeat(mean * inverse, size, axis=-1) * scale[None]
        return (y * gain[:, None, None] + shift[:, None, None]).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) over the last axis.

    Equal to ``flax.linen.LayerNorm`` with the same parameter names; moments are float32 whatever
    the input's type, which flax's computes under standard type promotion only.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32)
        mean = y.mean(axis=-1, keepdims=True)
        variance = jnp.maximum((y * y).mean(axis=-1, keepdims=True) - mean * mean, 0.0)
        gain = lax.rsqrt(variance + self.epsilon) * scale.astype(jnp.float32).reshape(shape)
        return ((y - mean) * gain + bias.astype(jnp.float32).reshape(shape)).astype(x.dtype)


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a 3 x 3 convolution, as four 2 x 2 convolutions.

    Every output phase sees each input pixel through a sum of the kernel's taps, so the 3 x 3
    kernel on the doubled image is four 2 x 2 kernels on the original one: 4/9 of the operations,
    the same result. The parameters are those of the 3 x 3 convolution, under ``conv``.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _PhaseConv(name="conv")(x)


class _PhaseConv(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(x.dtype)
        rows = (
            jnp.stack([kernel[0], kernel[1] + kernel[2]]),
            jnp.stack([kernel[0] + kernel[1], kernel[2]]),
        )
        phases = []
        for row in range(2):
            for column in range(2):
                k = rows[row]
                pair = (
                    (k[:, 0], k[:, 1] + k[:, 2]) if column == 0 else (k[:, 0] + k[:, 1], k[:, 2])
                )
                padding = ((1 - row, row), (1 - column, column))
                phases.append(
                    lax.conv_general_dilated(
                        x,
                        jnp.stack(pair, axis=1).astype(x.dtype),
                        (1, 1),
                        padding,
                        dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    )
                )
        y = jnp.stack(phases).reshape(2, 2, batch, height, width, channels)
        y = y.transpose(2, 3, 0, 4, 1, 5).reshape(batch, 2 * height, 2 * width, channels)
        return y + bias[None, None, None]


def attention_implementation(
    platform: str,
    compute_capability: str | None,
    dtype: Any,
    head_width: int,
    lengths: tuple[int, int],
) -> str:
    """The ``implementation`` of ``jax.nn.dot_product_attention`` for these operands.

    cuDNN's flash kernels exist for half precision, head widths that are multiples of 8 up to 128,
    and NVIDIA devices from compute capability 8.0 on; XLA's code is for everything else. XLA's
    never holds its weights in less than float32; cuDNN's accumulates in float32. JAX refuses to
    differentiate cuDNN's for odd lengths, such as the 77 tokens of CLIP.

    Args:
      platform: of the devices that will compute ("cpu", "gpu", "tpu").
      compute_capability: of an NVIDIA device, such as "9.0"; anything else of others.
      dtype: of queries, keys and values.
      head_width: channels of each head.
      lengths: tokens of queries and of keys.
    """
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    fits = head_width % 8 == 0 and head_width <= 128 and all(n % 2 == 0 for n in lengths)
    number = re.fullmatch(r"(\d+)\.\d+", compute_capability or "")
    recent = number is not None and int(number[1]) >= 8
    return "cudnn" if platform == "gpu" and recent and half and fits else "xla"


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = False) -> jax.Array:
    """Softmax attention of ``q [batch, tokens, heads, width]`` to ``k``, ``v`` of other length."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    lengths = q.shape[1], k.shape[1]
    chosen: Any = attention_implementation(
        device.platform, capability, q.dtype, q.shape[-1], lengths
    )
    # JAX's code promotes half precision to float32 implicitly, which strict promotion forbids.
    mixed = q.dtype != jnp.float32
    with jax.numpy_dtype_promotion("standard") if mixed else contextlib.nullcontext():
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=chosen)


def apply(module: nn.Module, params: Any, *args: Any, method: str | None = None) -> Any:
    """``module.apply`` with the ``params`` collection alone."""
    return module.apply({"params": params}, *args, method=method)
