"""A network of two transformer blocks with the layer names of diffusers, and adapters of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from w2w import lora

WIDTHS = {"self": 24, "text": 12, "mlp": 17}


class Attention(nn.Module):
    """Single-head attention with the layer names of diffusers."""

    @nn.compact
    def __call__(self, x, context=None):
        context = x if context is None else context
        width = x.shape[-1]
        q = nn.Dense(width, use_bias=False, name="to_q")(x)
        k = nn.Dense(width, use_bias=False, name="to_k")(context)
        v = nn.Dense(width, use_bias=False, name="to_v")(context)
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / width**0.5)
        return nn.Dense(width, name="to_out_0")(weights @ v)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, text):
        x = x + Attention(name="attn1")(x)
        x = x + Attention(name="attn2")(x, text)
        return x + nn.Dense(x.shape[-1], name="net_2")(nn.gelu(nn.Dense(WIDTHS["mlp"])(x)))


class Network(nn.Module):
    """Two transformer blocks, the second optionally rematerialised, behind one convolution."""

    remat: bool = False

    @nn.compact
    def __call__(self, x, text):
        x = nn.Conv(WIDTHS["self"], (3,), name="conv_in")(x)
        x = Block(name="down_blocks_0")(x, text)
        block = nn.remat(Block) if self.remat else Block
        return block(name="up_blocks_10")(x, text)


def call(params, x, text, remat=False):
    return Network(remat).apply({"params": params}, x, text)


def inputs():
    """One batch of inputs ``(x, text)``."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 7, 5))
    return x, jax.random.normal(keys[1], (3, 4, WIDTHS["text"]))


def init(x, text):
    return Network().init(jax.random.split(jax.random.key(0), 3)[2], x, text)["params"]


def random_adapter(key, layout, scale=0.3):
    return lora.unflatten(scale * jax.random.normal(key, (layout.size,)), layout)


def make(params, rank=1, alpha=27.0, key=7, **kwargs):
    config = lora.LoraConfig(rank, alpha, **kwargs)
    layout = lora.Layout.from_params(params, config)
    return config, layout, random_adapter(jax.random.key(key), layout, 0.3 / config.scale**0.5)
