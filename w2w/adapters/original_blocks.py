"""Module names of the original Stable Diffusion code ("LDM", SDXL's "sgm"), as kohya spells them.

The original code numbers all blocks of the way down (``input_blocks``) and up (``output_blocks``)
in one row: every level is two residual blocks and a resize on the way down, and three residual
blocks on the way up, the last with the resize. A residual block is entry 0 of its block, a
transformer entry 1, a resize what comes next. Inside transformers the names are those of diffusers.
All of SD 1.x, 2.x, SDXL and its refiner have two residual blocks a level, so that the numbers alone
decide and no configuration is needed. (CompVis/stable-diffusion, ldm/modules/diffusionmodules/
openaimodel.py; names compared with diffusers' own conversion in tests/parity.)
"""

import re

_BLOCK = re.compile(
    r"(?P<way>input_blocks|output_blocks)_(?P<block>\d+)_(?P<entry>\d+)_(?P<rest>.+)"
    r"|middle_block_(?P<middle>[012])_(?P<inside>.+)"
)
_ORIGINAL = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_\d")
_OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_RESIDUAL = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TRANSFORMER = re.compile(r"proj_in|proj_out|transformer_blocks_\d+_.+")
_PER_LEVEL = 3


def is_original(name: str) -> bool:
    """Whether a module, with underscores for dots, is named as in the original code."""
    return _ORIGINAL.match(name) is not None


def to_diffusers(name: str) -> str | None:
    """The name in diffusers, also with underscores for dots; None if there is no such module.

    ``input_blocks_4_1_transformer_blocks_0_attn1_to_q`` becomes
    ``down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q``.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    if found["middle"] is not None:
        number, inside = int(found["middle"]), found["inside"]
        if number == 1:
            return _inside("mid_block_attentions_0", inside)
        return _residual(f"mid_block_resnets_{number // 2}", inside)
    block, entry, rest = int(found["block"]), int(found["entry"]), found["rest"]
    if found["way"] == "input_blocks":
        level, layer = divmod(block - 1, _PER_LEVEL)  # block 0 is conv_in
        if block == 0 or layer == _PER_LEVEL - 1:
            resize = block > 0 and (entry, rest) == (0, "op")
            return f"down_blocks_{level}_downsamplers_0_conv" if resize else None
        stem = f"down_blocks_{level}"
    else:
        level, layer = divmod(block, _PER_LEVEL)
        stem = f"up_blocks_{level}"
        if rest == "conv":  # after the transformer, or in its place where a level has none
            resize = layer == _PER_LEVEL - 1 and entry in (1, 2)
            return f"{stem}_upsamplers_0_conv" if resize else None
    if entry == 0:
        return _residual(f"{stem}_resnets_{layer}", rest)
    return _inside(f"{stem}_attentions_{layer}", rest) if entry == 1 else None


def _residual(stem: str, rest: str) -> str | None:
    return f"{stem}_{_RESIDUAL[rest]}" if rest in _RESIDUAL else None


def _inside(stem: str, rest: str) -> str | None:
    return f"{stem}_{rest}" if _TRANSFORMER.fullmatch(rest) else None
