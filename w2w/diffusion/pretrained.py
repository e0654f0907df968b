"""Weights of diffusers' UNet and autoencoder and of transformers' CLIP in this package's modules.

Names are first written as flax paths (``down_blocks.0.resnets.1.conv1.weight`` becomes
``down_blocks_0/resnets_1/conv1/weight``), then matched to parameters by rules; every tensor is
used exactly once and every parameter filled, or the loader raises with both lists.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import porting
from w2w.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from w2w.diffusion.text import TextConfig, TextEncoder
from w2w.diffusion.unet import UNet, UNetConfig
from w2w.diffusion.weight_files import Tensors
from w2w.lora_layout import flax_path


def _pointwise(array: np.ndarray) -> np.ndarray:
    """1 x 1 convolution ``[out, in, 1, 1]`` or linear ``[out, in]`` to a matrix ``[in, out]``."""
    return porting.linear_oi_to_io(array.reshape(array.shape[:2]))


_LINEAR = r"to_[qkv]|to_out_0|net_0_proj|net_2|linear_[12]|time_emb_proj|[qkv]_proj|out_proj|fc[12]"

UNET_RULES: tuple[porting.Rule, ...] = (
    (r"(.*(?:norm\d?|conv_norm_out))/weight", r"\1/scale", porting.identity),
    (r"(.*/proj_(?:in|out))/weight", r"\1/kernel", _pointwise),
    (rf"(.*/(?:{_LINEAR}))/weight", r"\1/kernel", porting.linear_oi_to_io),
    (r"((?:.*/)?conv\w*)/weight", r"\1/kernel", porting.conv_oihw_to_hwio),
    (r"(.*/bias)", r"\1", porting.identity),
)

# Attention of the autoencoder in files from before diffusers 0.15, and in today's.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out_0"}

AUTOENCODER_RULES: tuple[porting.Rule, ...] = (
    *(
        rule
        for old, new in _OLD_ATTENTION.items()
        for rule in (
            (rf"(.*/attentions_\d+)/{old}/weight", rf"\1/{new}/kernel", _pointwise),
            (rf"(.*/attentions_\d+)/{old}/bias", rf"\1/{new}/bias", porting.identity),
        )
    ),
    (r"(.*/attentions_\d+/to_(?:[qkv]|out_0))/weight", r"\1/kernel", _pointwise),
    (r"((?:post_)?quant_conv)/weight", r"\1/kernel", _pointwise),
    *UNET_RULES,
)

TEXT_RULES: tuple[porting.Rule, ...] = (
    (r"text_projection/weight", "text_projection/kernel", porting.linear_oi_to_io),
    (r"embeddings/token_embedding/weight", "token_embedding/embedding", porting.identity),
    (r"embeddings/position_embedding/weight", "position_embedding", porting.identity),
    (r"embeddings/position_ids", porting.DROP, porting.identity),
    (r"encoder/(layers_\d+)/(layer_norm\d)/weight", r"\1/\2/scale", porting.identity),
    (r"(final_layer_norm)/weight", r"\1/scale", porting.identity),
    (r"encoder/(layers_\d+)/(?:mlp/)?(.*)/weight", r"\1/\2/kernel", porting.linear_oi_to_io),
    (r"encoder/(layers_\d+)/(?:mlp/)?(.*/bias)", r"\1/\2", porting.identity),
    (r"(final_layer_norm/bias)", r"\1", porting.identity),
)


def _flax_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{flax_path(module)}/{leaf}"


def _port(
    tensors: Mapping[str, Any], rules: tuple[porting.Rule, ...], shapes: Any, dtype: Any
) -> dict:
    """Renames, then ports; ``shapes`` are cast to ``dtype``."""
    if isinstance(tensors, Tensors):
        named: Mapping[str, Any] = tensors.renamed(_flax_name)
    else:
        named = {_flax_name(name): np.asarray(tensor) for name, tensor in tensors.items()}
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return porting.port(named, rules, wanted)


def unet_shapes(config: UNetConfig) -> dict:
    """Shapes of the parameters of :class:`UNet`, without computing any."""
    side = config.patch_size * 2 ** (len(config.block_out_channels) - 1)
    extra: tuple[jax.Array, ...] = ()
    if config.size_embedding is not None:
        extra = (jnp.zeros((1, config.pooled_width)), jnp.zeros((1, config.size_count)))
    return jax.eval_shape(
        UNet(config).init,
        jax.random.key(0),
        jnp.zeros((1, side, side, config.in_channels)),
        jnp.zeros((1,)),
        jnp.zeros((1, 2, config.cross_attention_dim)),
        *extra,
    )["params"]


def unet_params(
    tensors: Mapping[str, Any], config: UNetConfig, dtype: Any = jnp.float32
) -> dict:
    """Parameters of :class:`UNet` from a state dict of diffusers' ``UNet2DConditionModel``.

    Args:
      tensors: name to array.
      config: widths and depths of that model (``patch_size`` 1).
      dtype: of the parameters.

    Raises:
      common.porting.PortingError: names or shapes do not correspond.
    """
    return _port(tensors, UNET_RULES, unet_shapes(config), dtype)


def autoencoder_params(
    tensors: Mapping[str, Any], config: AutoencoderConfig, dtype: Any = jnp.float32
) -> dict:
    """Parameters of :class:`Autoencoder` from a state dict of diffusers' ``AutoencoderKL``.

    Args:
      tensors: name to array; attention layers may have their older names.
      config: widths and depths of that model (``patch_size`` 1).
      dtype: of the parameters.

    Raises:
      common.porting.PortingError: names or shapes do not correspond.
    """
    image = jnp.zeros((1, config.factor, config.factor, config.channels))
    shapes = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), image)["params"]
    return _port(tensors, AUTOENCODER_RULES, shapes, dtype)


def text_params(
    tensors: Mapping[str, Any], config: TextConfig, dtype: Any = jnp.float32
) -> dict:
    """Parameters of :class:`TextEncoder` from a state dict of ``CLIPTextModel``.

    The prefix ``text_model.`` may be present or not.

    Args:
      tensors: name to array.
      config: sizes of that model; with ``projection`` a ``CLIPTextModelWithProjection``.
      dtype: of the parameters.

    Raises:
      common.porting.PortingError: names or shapes do not correspond.
    """
    if isinstance(tensors, Tensors):
        plain: Mapping[str, Any] = tensors.renamed(lambda name: name.removeprefix("text_model."))
    else:
        plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    tokens = jnp.zeros((1, config.length), jnp.int32)
    shapes = jax.eval_shape(TextEncoder(config).init, jax.random.key(0), tokens)["params"]
    return _port(plain, TEXT_RULES, shapes, dtype)
