"""Vision transformer (pre-norm): checkpoints of DINO (S/16, B/16, B/8) and the encoder of MAE.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; M. Caron et al., "Emerging
Properties in Self-Supervised Vision Transformers" (DINO), ICCV 2021; K. He et al., "Masked
Autoencoders Are Scalable Vision Learners", CVPR 2022. Exact GELU, LayerNorm with epsilon 1e-6. The
names of DINO, MAE and timm (one set) and of the Hugging Face hub (`facebook/dino-vitb16`,
`facebook/vit-mae-base`) are read.

Cost of ViT-B/16 at 224 x 224: 85.8 million parameters; 17.6 billion multiply-adds an image.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import porting

__all__ = ["VARIANTS", "ViT", "from_tensors"]

VARIANTS: dict[str, dict[str, int]] = {
    "vit_s16": dict(patch=16, width=384, depth=12, heads=6),
    "vit_b16": dict(patch=16, width=768, depth=12, heads=12),
    "vit_b8": dict(patch=8, width=768, depth=12, heads=12),
}

RULES: tuple[porting.Rule, ...] = (
    # MAE's decoder and the hub's untrained pooling layer have no part in the encoder.
    (r"(?:decoder\.|decoder_|mask_token|pooler\.).*", porting.DROP, porting.identity),
    (r"cls_token", "class_token", porting.reshape(1, 1, -1)),
    (r"pos_embed", "position", porting.identity),
    (r"patch_embed\.proj\.weight", "patch/kernel", porting.conv_oihw_to_hwio),
    (r"patch_embed\.proj\.bias", "patch/bias", porting.identity),
    (r"blocks\.(\d+)\.(norm\d)\.weight", r"block\1/\2/scale", porting.identity),
    (r"blocks\.(\d+)\.(norm\d)\.bias", r"block\1/\2/bias", porting.identity),
    (r"blocks\.(\d+)\.(?:attn|mlp)\.(\w+)\.weight", r"block\1/\2/kernel", porting.linear_oi_to_io),
    (r"blocks\.(\d+)\.(?:attn|mlp)\.(\w+)\.bias", r"block\1/\2/bias", porting.identity),
    (r"norm\.weight", "norm/scale", porting.identity),
    (r"norm\.bias", "norm/bias", porting.identity),
)

# Hugging Face name (before and since transformers 5) -> DINO's; query, key, value are joined later.
_LAYER = r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\."
_HUB = (
    (r"(?:vit\.)?embeddings\.cls_token", "cls_token"),
    (r"(?:vit\.)?embeddings\.position_embeddings", "pos_embed"),
    (r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (_LAYER + r"layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    (_LAYER + r"attention\.(?:attention\.query|q_proj)\.(\w+)", r"blocks.\1.attn.q.\2"),
    (_LAYER + r"attention\.(?:attention\.key|k_proj)\.(\w+)", r"blocks.\1.attn.k.\2"),
    (_LAYER + r"attention\.(?:attention\.value|v_proj)\.(\w+)", r"blocks.\1.attn.v.\2"),
    (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"(?:vit\.)?layernorm\.(\w+)", r"norm.\1"),
)


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added; also returns the MLP's hidden layer."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, tokens, width = x.shape
        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
        qkv = nn.Dense(3 * width, name="qkv")(y)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        x = x + nn.Dense(width, name="proj")(y.reshape(batch, tokens, width))
        y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
        hidden = nn.gelu(nn.Dense(4 * width, name="fc1")(y), approximate=False)
        return x + nn.Dense(width, name="fc2")(hidden), hidden


class ViT(nn.Module):
    """`[batch, size, size, 3]` -> class token `[batch, width]` and the hidden layers of the MLPs.

    Attributes:
        patch: side of a patch in pixels.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        size: side of the images that the position embedding is for, in pixels.

    The second result maps "block0", "block1", ... to the activations after GELU of the patches
    (the class token is dropped), `[batch, size / patch, size / patch, 4 width]`. Images are RGB in
    [0, 1] less ImageNet's mean, over its deviation. Other sizes than `size` are refused.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    size: int = 224

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        if x.shape[1:3] != (self.size, self.size):
            raise ValueError(f"images of {x.shape[1:3]} pixels, the network is for {self.size}")
        side = self.size // self.patch
        x = nn.Conv(self.width, (self.patch,) * 2, self.patch, "VALID", name="patch")(x)
        x = x.reshape(x.shape[0], side * side, self.width)
        normal = nn.initializers.normal(0.02)
        token = self.param("class_token", normal, (1, 1, self.width))
        position = self.param("position", normal, (1, side * side + 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], 1) + position
        taps = {}
        for index in range(self.depth):
            x, hidden = Block(self.heads, name=f"block{index}")(x)
            taps[f"block{index}"] = hidden[:, 1:].reshape(len(x), side, side, -1)
        return nn.LayerNorm(epsilon=1e-6, name="norm")(x)[:, 0], taps


def from_tensors(module: ViT, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns `{"params": ...}` from a checkpoint's tensors.

    Args:
        module: the network.
        tensors: name -> array, with DINO's, MAE's and timm's names or the hub's. DINO's and MAE's
            files hold the encoder only (MAE's under the key "model").

    Raises:
        porting.PortingError: the tensors are not those of this network.
    """
    x = jax.ShapeDtypeStruct((1, module.size, module.size, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    hub = any("embeddings." in name for name in tensors)
    source = _from_hub(tensors) if hub else tensors
    return {"params": porting.port(source, RULES, shapes)}


def _from_hub(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames a hub checkpoint's tensors to DINO's and joins query, key and value."""
    renamed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        for pattern, target in _HUB:
            match = re.fullmatch(pattern, name)
            if match:
                renamed[match.expand(target)] = array
                break
        else:
            renamed[name] = array  # for the porting error to name it
    for query in [name for name in renamed if ".attn.q." in name]:
        names = [query.replace(".q.", f".{part}.") for part in ("q", "k", "v")]
        if all(name in renamed for name in names):
            joined = np.concatenate([renamed.pop(name) for name in names])
            renamed[query.replace(".q.", ".qkv.")] = joined
    return renamed
