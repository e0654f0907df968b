"""Kohya files with the original code's block names load as diffusers' conversion of them."""

import functools
import re

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from w2w import adapters
from w2w.adapters import AdapterError, original_blocks
from w2w.adapters.formats import dotted, parse
from w2w.diffusion import component_config, pretrained
from w2w.lora_layout import Layout, torch_name

torch = pytest.importorskip("torch", reason="diffusers needs it (extra: test)")
pytest.importorskip("diffusers", reason="the oracle of these tests (extra: test)")
from diffusers.loaders import lora_conversion_utils, single_file_utils  # noqa: E402

pytestmark = pytest.mark.parity

SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}
CONFIGS = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]},
    "sdxl": SDXL,
    "refiner": REFINER,
}
# Blocks with transformers: number to depth of input_blocks, of the middle, of output_blocks (the
# attention resolutions and depths of the original configurations).
TRANSFORMERS = {
    "sd1": ({1: 1, 2: 1, 4: 1, 5: 1, 7: 1, 8: 1}, 1, dict.fromkeys(range(3, 12), 1)),
    "sdxl": ({4: 2, 5: 2, 7: 10, 8: 10}, 10, {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}),
    "refiner": ({4: 4, 5: 4, 7: 4, 8: 4}, 4, dict.fromkeys(range(3, 9), 4)),
}
TRANSFORMERS["sd2"] = TRANSFORMERS["sd1"]
LEVELS = {"sd1": 4, "sd2": 4, "sdxl": 3, "refiner": 4}


def original_modules(kind: str) -> list[str]:
    """All modules of the original UNet, by enumeration of its blocks."""
    down, middle, up = TRANSFORMERS[kind]
    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"]
    if kind in ("sdxl", "refiner"):
        names += ["label_emb.0.0", "label_emb.0.2"]
    blocks = 3 * LEVELS[kind]

    def residual(stem):
        layers = ("in_layers.2", "emb_layers.1", "out_layers.3", "skip_connection")
        names.extend(f"{stem}.{layer}" for layer in layers)

    def transformer(stem, depth):
        names.extend([f"{stem}.proj_in", f"{stem}.proj_out"])
        for i in range(depth):
            block = f"{stem}.transformer_blocks.{i}"
            for attention in ("attn1", "attn2"):
                parts = ("to_q", "to_k", "to_v", "to_out.0")
                names.extend(f"{block}.{attention}.{part}" for part in parts)
            names.extend([f"{block}.ff.net.0.proj", f"{block}.ff.net.2"])

    for i in range(1, blocks):
        if i % 3 == 0:
            names.append(f"input_blocks.{i}.0.op")
            continue
        residual(f"input_blocks.{i}.0")
        if i in down:
            transformer(f"input_blocks.{i}.1", down[i])
    residual("middle_block.0")
    transformer("middle_block.1", middle)
    residual("middle_block.2")
    for i in range(blocks):
        residual(f"output_blocks.{i}.0")
        if i in up:
            transformer(f"output_blocks.{i}.1", up[i])
        if i % 3 == 2 and i < blocks - 1:
            names.append(f"output_blocks.{i}.{2 if i in up else 1}.conv")
    return names


def ours(names) -> dict[str, str]:
    """Original module to torch name in diffusers, through the keys of a kohya file."""
    parsed = {n: parse(f"lora_unet_{n.replace('.', '_')}.lora_down.weight").module for n in names}
    split = dotted(parsed.values(), None)
    return {name: split[module] for name, module in parsed.items()}


@functools.cache
def networks_modules(kind: str) -> dict[str, tuple]:
    """Torch name to kernel shape of every layer of our UNet."""
    sizes = {"size_count": 5} if kind == "refiner" else {}
    shapes = pretrained.unet_shapes(component_config.unet_config(CONFIGS[kind], **sizes))
    flat = traverse_util.flatten_dict(shapes, sep="/")
    return {
        torch_name(path.removesuffix("/kernel")): leaf.shape
        for path, leaf in flat.items()
        if path.endswith("/kernel")
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_module_of_the_original_networks(kind):
    """Checkpoint names: equal to diffusers' conversion, and every layer of the UNet is named."""
    names = original_modules(kind)
    parts = [(name, part) for name in names for part in ("weight", "bias")]
    checkpoint = {f"model.diffusion_model.{name}.{part}": (name, part) for name, part in parts}
    config = {"layers_per_block": 2, **CONFIGS[kind]}
    converted = single_file_utils.convert_ldm_unet_checkpoint(checkpoint, config)
    expected = {
        name: key.removesuffix(".weight")
        for key, (name, part) in converted.items()
        if part == "weight"
    }
    assert expected.keys() == set(names)  # the enumeration has no name that diffusers leaves out
    found = ours(names)
    assert found == expected
    layers = networks_modules(kind)
    existing = {name for name in found.values() if "conv_shortcut" not in name or name in layers}
    assert existing == layers.keys()
    projections = [name for name in layers if re.search(r"\.attn[12]\.to_(q|k|v|out\.0)$", name)]
    blocks = {"sd1": 16, "sd2": 16, "sdxl": 70, "refiner": 44}[kind]
    assert len(projections) == 8 * blocks and set(projections) <= set(found.values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_attention_projection_as_diffusers_reads_the_lora(kind):
    """LoRA names: the path that diffusers' ``load_lora_weights`` takes for such files."""
    names = [name for name in original_modules(kind) if ".attn" in name]
    tensors = {}
    for i, name in enumerate(names):
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = torch.full((1, 1), float(i))
        tensors[f"{stem}.lora_up.weight"] = torch.full((1, 1), float(i))
        tensors[f"{stem}.alpha"] = torch.tensor(27.0)
    config = type("Config", (), {"layers_per_block": 2})
    mapped = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(dict(tensors), config)
    converted, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(mapped)
    found = ours(names)
    expected = {}
    for key, value in converted.items():
        if match := re.fullmatch(r"unet\.(.+)\.processor\.(to_.+)_lora\.down\.weight", key):
            layer = "to_out.0" if match[2] == "to_out" else match[2]
            expected[names[int(value.item())]] = f"{match[1]}.{layer}"
    assert len(expected) == len(names)
    assert found == expected


@pytest.mark.parametrize(("kind", "size"), [("sd1", 99_648), ("sdxl", 725_760)])
def test_a_file_of_either_spelling_is_the_same_vector(tmp_path, kind, size):
    widths = networks_modules(kind)
    chosen = {n: s for n, s in widths.items() if re.search(r"\.attn[12]\.to_[qv]$", n)}
    layout = Layout(tuple((name, *shape) for name, shape in chosen.items()), 1)
    assert layout.size == size
    vector = np.random.default_rng(0).normal(size=size).astype(np.float32)
    file = adapters.save(tmp_path / "new.safetensors", vector, layout, alpha=27, format="kohya")
    older = {torch_name: name for name, torch_name in ours(original_modules(kind)).items()}
    renamed = {}
    for key, tensor in load_file(file).items():
        flat, _, part = key.removeprefix("lora_unet_").partition(".")
        name = older[dotted([flat], layout)[flat]]
        renamed[f"lora_unet_{name.replace('.', '_')}.{part}"] = tensor
    save_file(renamed, tmp_path / "old.safetensors")
    assert not any("down_blocks" in key for key in renamed)
    assert adapters.layout_of(tmp_path / "old.safetensors") == layout
    loaded = adapters.load(tmp_path / "old.safetensors", layout)
    np.testing.assert_array_equal(loaded.vector, vector)
    assert (loaded.alpha, loaded.format) == (27, "kohya")


def test_a_file_with_both_spellings_of_one_module_is_refused(tmp_path):
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    layout = Layout(((module, 4, 4),), 1)
    file = adapters.save(tmp_path / "a.safetensors", np.ones(8), layout, alpha=2, format="kohya")
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    more = {f"{stem}.lora_down.weight": np.ones((1, 4), np.float32)}
    save_file({**load_file(file), **more}, file)
    with pytest.raises(AdapterError, match="are the same tensor"):
        adapters.load(file, layout)


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks_1_1_to_q",
        "input_blocks_3_1_transformer_blocks_0_attn1_to_q",  # block 3 is a resize
        "input_blocks_0_1_proj_in",
        "input_blocks_1_2_proj_in",
        "input_blocks_1_0_op",
        "output_blocks_1_1_conv",
        "output_blocks_2_0_conv",
        "middle_block_3_in_layers_2",
        "middle_block_1_in_layers_2",
        "out_0",
        "time_embed_1",
    ],
)
def test_names_of_no_module_are_refused(name):
    assert original_blocks.is_original(name) and original_blocks.to_diffusers(name) is None
    with pytest.raises(AdapterError, match=f"{name} is named as in the original"):
        parse(f"lora_unet_{name}.lora_down.weight")


def test_layout_of_the_refiner():
    layers = networks_modules("refiner")
    assert layers["add_embedding.linear_1"] == (1280 + 5 * 256, 1536)
    chosen = [(*s,) for n, s in layers.items() if re.search(r"\.attn[12]\.to_[qv]$", n)]
    blocks = {768: 20, 1536: 24}  # transformer blocks by width
    total = sum(n * (7 * width + 1280) for width, n in blocks.items())
    assert (len(chosen), sum(i + o for i, o in chosen)) == (4 * 44, total)
