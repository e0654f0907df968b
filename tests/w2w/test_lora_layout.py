"""Adapters as vectors: layout of Stable Diffusion, names of modules, exact flattening."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.w2w import attention
from w2w import lora


@pytest.fixture(scope="module")
def params():
    """Shapes of the parameters."""
    return jax.eval_shape(lambda: attention.init(*attention.inputs()))


def stable_diffusion_modules(text_width, blocks):
    """Adapted modules ``(name, in, out)`` of transformer ``blocks`` ``{name: width}``."""
    return tuple(
        (f"{name}.attn{i}.{layer}", text_width if (i, layer) == (2, "to_v") else width, width)
        for name, width in blocks.items()
        for i in (1, 2)
        for layer in ("to_q", "to_v")
    )


def unet_blocks(down, mid, up):
    """Names and widths of transformer blocks from ``(width, attentions, depth)`` by block."""
    stages = [(f"down_blocks.{i}", *stage) for i, stage in down.items()]
    stages += [("mid_block", *mid)]
    stages += [(f"up_blocks.{i}", *stage) for i, stage in up.items()]
    return {
        f"{stage}.attentions.{i}.transformer_blocks.{j}": width
        for stage, width, attentions, depth in stages
        for i in range(attentions)
        for j in range(depth)
    }


SD_BLOCKS = unet_blocks(
    {0: (320, 2, 1), 1: (640, 2, 1), 2: (1280, 2, 1)},
    (1280, 1, 1),
    {1: (1280, 3, 1), 2: (640, 3, 1), 3: (320, 3, 1)},
)
SDXL_BLOCKS = unet_blocks(
    {1: (640, 2, 2), 2: (1280, 2, 10)}, (1280, 1, 10), {0: (1280, 3, 10), 1: (640, 3, 2)}
)


def test_layout_of_stable_diffusion_15():
    """The published vectors of 99,648 values: order, offsets and digest of the key list."""
    modules = stable_diffusion_modules(768, SD_BLOCKS)
    layout = lora.Layout(modules[::-1], rank=1)
    assert (len(layout.modules), len(layout.names), layout.size) == (64, 128, 99_648)
    assert layout.names[0] == (
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    )
    assert layout.shapes[0] == (1, 320)
    assert layout.names[-1] == (
        "base_model.model.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.lora_B.weight"
    )
    assert layout.shapes[-1] == (320, 1)
    starts = {}
    for name, offset in zip(layout.names, layout.offsets, strict=True):
        starts.setdefault(name.split(".transformer_blocks")[0], offset)
    assert list(starts.values()) == [
        0, 3008, 6016, 11264, 16512, 26240, 35968, 45696,
        55424, 65152, 74880, 80128, 85376, 90624, 93632, 96640,
    ]  # fmt: skip
    assert layout.sha256 == "71c04e30d94d3cb81ba19216f5818168e14bdac5534441b2de6a4c9bc7df2af7"
    assert hash(layout) == hash(lora.Layout(modules, rank=1))


@pytest.mark.parametrize(
    ("text_width", "blocks", "modules", "values"),
    [(1024, SD_BLOCKS, 64, 103_744), (2048, SDXL_BLOCKS, 280, 725_760)],
    ids=["sd21", "sdxl"],
)
def test_layout_sizes_of_other_bases(text_width, blocks, modules, values):
    layout = lora.Layout(stable_diffusion_modules(text_width, blocks), rank=1)
    assert (len(layout.modules), layout.size) == (modules, values)


@pytest.mark.parametrize(
    ("flax", "torch"),
    [
        (
            "down_blocks_1/attentions_0/transformer_blocks_0/attn1/to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("mid_block/attentions_0/transformer_blocks_0/attn2/to_out_0",
         "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"),
        ("time_embedding/linear_1", "time_embedding.linear_1"),
        ("up_blocks_10/ff/net_0_proj", "up_blocks.10.ff.net.0.proj"),
        ("ff/net_2", "ff.net.2"),
        ("resnets_1/conv1", "resnets.1.conv1"),
    ],
)  # fmt: skip
def test_names_of_modules(flax, torch):
    assert lora.torch_name(flax) == torch
    assert lora.flax_path(torch) == flax


def test_targets(params):
    """Default targets in PEFT key order (10 before 2, as text), and errors that name the regex."""
    expected = [
        f"{block}.{attention}.{layer}"
        for block in ("down_blocks.0", "up_blocks.10")
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_v")
    ]
    assert list(lora.target_modules(params, lora.LoraConfig())) == expected
    with pytest.raises(ValueError, match=re.escape("'.*to_x' matches none")):
        lora.target_modules(params, lora.LoraConfig(targets=(".*to_q", ".*to_x")))
    with pytest.raises(ValueError, match="conv_in has a kernel of shape"):
        lora.target_modules(params, lora.LoraConfig(targets=("conv_in",)))
    assert lora.target_modules(params, lora.LoraConfig(targets=(r".*\.to_out\.0",)))


def test_order_of_numbered_blocks_is_textual():
    modules = [(f"blocks.{i}.to_q", 2, 2) for i in (2, 10, 1)]
    assert [m[0] for m in lora.Layout(tuple(modules), 1).modules] == [
        "blocks.1.to_q",
        "blocks.10.to_q",
        "blocks.2.to_q",
    ]


@pytest.mark.parametrize("rank", [1, 4])
def test_flatten_is_exactly_inverted(params, rank):
    _, layout, adapter = attention.make(params, rank)
    vector = jax.jit(lora.flatten, static_argnums=1)(adapter, layout)
    chex.assert_trees_all_equal(lora.unflatten(vector, layout), adapter)
    other = jax.random.normal(jax.random.key(3), (5, layout.size))
    there = jax.vmap(lambda v: lora.unflatten(v, layout))(other)
    np.testing.assert_array_equal(jax.vmap(lambda a: lora.flatten(a, layout))(there), other)
    # C order of lora_A [rank, in], then lora_B [out, rank].
    name, fan_in, fan_out = layout.modules[0]
    a, b = np.asarray(adapter[name]["a"]), np.asarray(adapter[name]["b"])
    np.testing.assert_array_equal(vector[: rank * fan_in], a.T.ravel())
    np.testing.assert_array_equal(vector[rank * fan_in :][: rank * fan_out], b.T.ravel())


def test_flatten_refuses_other_layouts(params):
    _, layout, adapter = attention.make(params, rank=2)
    _, other, _ = attention.make(params, rank=1)
    with pytest.raises(ValueError, match="does not have the layout"):
        lora.flatten(adapter, other)
    with pytest.raises(ValueError, match=rf"\({layout.size},\), got \({layout.size - 1},\)"):
        lora.unflatten(jnp.zeros(layout.size - 1), layout)
    tensors = lora.to_peft(adapter, layout)
    tensors.pop(layout.names[3])
    with pytest.raises(ValueError, match=f"{re.escape(layout.names[3])}: shape absent"):
        lora.from_peft(tensors, layout)
