"""Weights of diffusers' UNet and transformers' CLIP text encoder in this package's modules.

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
from w2w.diffusion.text import TextConfig, TextEncoder
from w2w.diffusion.unet import UNet, UNetConfig
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

TEXT_RULES: tuple[porting.Rule, ...] = (
    (r"embeddings/token_embedding/weight", "token_embedding/embedding", porting.identity),
    (r"embeddings/position_embedding/weight", "position_embedding", porting.identity),
    (r"embeddings/position_ids", porting.DROP, porting.identity),
    (r"encoder/(layers_\d+)/(layer_norm\d)/weight", r"\1/\2/scale", porting.identity),
    (r"(final_layer_norm)/weight", r"\1/scale", porting.identity),
    (r"encoder/(layers_\d+)/(?:mlp/)?(.*)/weight", r"\1/\2/kernel", porting.linear_oi_to_io),
    (r"encoder/(layers_\d+)/(?:mlp/)?(.*/bias)", r"\1/\2", porting.identity),
    (r"(final_layer_norm/bias)", r"\1", porting.identity),
)


def _renamed(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        found[f"{flax_path(module)}/{leaf}"] = np.asarray(tensor)
    return found


def unet_params(tensors: Mapping[str, Any], config: UNetConfig, size: int = 8) -> dict:
    """Parameters of :class:`UNet` from a state dict of diffusers' ``UNet2DConditionModel``.

    Args:
      tensors: name to array.
      config: widths and depths of that model (``patch_size`` 1).
      size: any image side that the levels divide.

    Raises:
      common.porting.PortingError: names or shapes do not correspond.
    """
    depth = 2 ** (len(config.block_out_channels) - 1)
    side = max(size, depth)
    shapes = jax.eval_shape(
        UNet(config).init,
        jax.random.key(0),
        jnp.zeros((1, side, side, config.in_channels)),
        jnp.zeros((1,)),
        jnp.zeros((1, 2, config.cross_attention_dim)),
    )["params"]
    return porting.port(_renamed(tensors), UNET_RULES, shapes)


def text_params(tensors: Mapping[str, Any], config: TextConfig) -> dict:
    """Parameters of :class:`TextEncoder` from a state dict of ``CLIPTextModel``.

    The prefix ``text_model.`` may be present or not.

    Raises:
      common.porting.PortingError: names or shapes do not correspond.
    """
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    tokens = jnp.zeros((1, config.length), jnp.int32)
    shapes = jax.eval_shape(TextEncoder(config).init, jax.random.key(0), tokens)["params"]
    return porting.port(_renamed(plain), TEXT_RULES, shapes)
