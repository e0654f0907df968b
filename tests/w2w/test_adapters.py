"""Adapter files: exact round trips, alpha, rank and gauge, and refusals that say what and where."""

import json
import pathlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.w2w.test_lora_layout import SD_BLOCKS, stable_diffusion_modules
from w2w import adapters, lora
from w2w.adapters import planted
from w2w.adapters.formats import FORMATS, AdapterError, dotted, parse, spell

ALPHA = 27.0
LAYOUT = planted.layout()
FIRST = LAYOUT.modules[0][0]


def vector_of(layout, seed=0):
    return np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)


def updates(vector, layout, alpha):
    """Update `[in, out]` of each module."""
    adapter = lora.unflatten(jnp.asarray(vector, jnp.float32), layout)
    scale = lora.LoraConfig(layout.rank, alpha).scale
    return {
        name: scale * np.asarray(f["a"], np.float64) @ np.asarray(f["b"], np.float64)
        for name, f in adapter.items()
    }


def write(tmp_path, format, vector, layout, **options):
    path = tmp_path / ("folder" if format in ("peft", "w2w") else "file.safetensors")
    adapters.save(path, vector, layout, **{"alpha": ALPHA, "format": format, **options})
    return path


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rank", [1, 3])
def test_round_trip_is_exact(tmp_path, format, rank):
    layout = planted.layout(rank=rank)
    vector = vector_of(layout)
    path = write(tmp_path, format, vector, layout)
    loaded = adapters.load(path, layout)
    np.testing.assert_array_equal(loaded.vector, vector)
    assert (loaded.alpha, loaded.format, loaded.notes) == (ALPHA, format, ())
    assert adapters.layout_of(path) == layout


@pytest.mark.parametrize("format", FORMATS)
def test_layout_of_stable_diffusion_from_a_file(tmp_path, format):
    """The published layout, without weights: 64 modules, 99,648 values, the digest of its keys."""
    layout = lora.Layout(stable_diffusion_modules(768, SD_BLOCKS), 1)
    path = write(tmp_path, format, vector_of(layout), layout)
    found = adapters.layout_of(path)
    assert (len(found.modules), found.size) == (64, 99_648)
    assert found.sha256 == "71c04e30d94d3cb81ba19216f5818168e14bdac5534441b2de6a4c9bc7df2af7"
    np.testing.assert_array_equal(adapters.load(path, found).vector, vector_of(layout))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", ["A", "B"])
def test_keys_are_read_as_they_are_spelled(format, part):
    parsed = parse(spell(FIRST, part, format))
    module = dotted([parsed.module], None)[parsed.module] if format == "kohya" else parsed.module
    assert (parsed.format, module, parsed.part) == (format, FIRST, part)


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("unet.mid_block.attn1.processor.to_out_lora.up.weight", "mid_block.attn1.to_out.0"),
        ("mid_block.attn1.processor.to_q_lora.up.weight", "mid_block.attn1.to_q"),
        ("unet.base_model.model.mid_block.attn1.to_q.lora_B.weight", "mid_block.attn1.to_q"),
        ("unet.mid_block.ff.net.0.proj.lora.up.weight", "mid_block.ff.net.0.proj"),
    ],
)
def test_older_spellings(key, module):
    assert (parse(key).module, parse(key).part) == (module, "B")


def test_kohya_names_of_modules_with_underscores():
    names = {
        "down_blocks_0_attentions_1_proj_in": "down_blocks.0.attentions.1.proj_in",
        "mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0": (
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
        ),
        "time_embedding_linear_1": "time_embedding.linear_1",
        "up_blocks_1_resnets_0_time_emb_proj": "up_blocks.1.resnets.0.time_emb_proj",
    }
    assert dotted(names, None) == names
    odd = lora.Layout((("my_net.to_x_y", 2, 2),), 1)
    assert dotted(["my_net_to_x_y"], odd) == {"my_net_to_x_y": "my_net.to_x_y"}
    with pytest.raises(AdapterError, match="one kohya name"):
        dotted([], lora.Layout((("a_b.c", 2, 2), ("a.b_c", 2, 2)), 1))


def test_another_alpha_is_folded_and_said(tmp_path):
    vector = vector_of(LAYOUT)
    path = write(tmp_path, "kohya", vector, LAYOUT)
    with pytest.warns(UserWarning, match=r"lora_B multiplied by 13\.5 \(alpha 2 at rank 1\)"):
        loaded = adapters.load(path, LAYOUT, alpha=2.0)
    assert loaded.alpha == 2.0
    for name, update in updates(vector, LAYOUT, ALPHA).items():
        np.testing.assert_allclose(updates(loaded.vector, LAYOUT, 2.0)[name], update, rtol=1e-6)
    a = slice(0, LAYOUT.offsets[1])
    np.testing.assert_array_equal(loaded.vector[a], vector[a])  # only lora_B is touched


@pytest.mark.parametrize("format", ["diffusers", "model", "kohya"])
def test_missing_alpha_is_never_guessed(tmp_path, format):
    vector = vector_of(LAYOUT)
    path = write(tmp_path, format, vector, LAYOUT)
    tensors = {k: v for k, v in load_file(path).items() if not k.endswith(".alpha")}
    save_file(tensors, path)  # without metadata
    with pytest.raises(AdapterError, match="file.safetensors: key .*does not state alpha"):
        adapters.load(path, LAYOUT)
    with pytest.warns(UserWarning, match="lora_B multiplied by 1 .*taken by missing_alpha = 27"):
        given = adapters.load(path, LAYOUT, missing_alpha=27)
    np.testing.assert_array_equal(given.vector, vector)
    with pytest.warns(UserWarning, match="lora_B multiplied by 0.037037037"):
        folded = adapters.load(path, LAYOUT, alpha=ALPHA, missing_alpha="fold")
    weak, strong = updates(folded.vector, LAYOUT, ALPHA), updates(vector, LAYOUT, ALPHA)
    np.testing.assert_allclose(27 * weak[FIRST], strong[FIRST], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format", ["peft", "kohya", "diffusers"])
def test_folded_export_needs_no_alpha(tmp_path, format):
    vector = vector_of(LAYOUT)
    path = write(tmp_path, format, vector, LAYOUT, fold=True)
    with pytest.warns(UserWarning, match="lora_B multiplied"):
        back = adapters.load(path, LAYOUT, alpha=ALPHA, missing_alpha="fold")
    np.testing.assert_allclose(back.vector, vector, rtol=3e-7)


def test_reduction_of_rank_keeps_the_leading_component(tmp_path):
    big = planted.layout(rank=4)
    vector = vector_of(big)
    path = write(tmp_path, "peft", vector, big)
    with pytest.raises(AdapterError, match="rank 4, the layout has rank 1"):
        adapters.load(path, LAYOUT)
    with pytest.warns(UserWarning, match="8 modules reduced to rank 1, keeping a share of"):
        loaded = adapters.load(path, LAYOUT, alpha=ALPHA / 4, reduce="svd")
    wanted = updates(vector, big, ALPHA)
    for name, update in updates(loaded.vector, LAYOUT, ALPHA / 4).items():
        u, s, vt = np.linalg.svd(wanted[name])
        leading = s[0] * np.outer(u[:, 0], vt[0])
        np.testing.assert_allclose(update, leading, atol=2e-6 * s[0])


def test_a_lower_rank_is_filled_exactly(tmp_path):
    big = planted.layout(rank=2)
    vector = vector_of(LAYOUT)
    path = write(tmp_path, "peft", vector, LAYOUT)
    with pytest.warns(UserWarning, match="at least 1.0000"):
        loaded = adapters.load(path, big, reduce="svd")
    for name, update in updates(vector, LAYOUT, ALPHA).items():
        got = updates(loaded.vector, big, loaded.alpha)[name]
        np.testing.assert_allclose(got, update, atol=1e-4)


def test_canonical_gauge(tmp_path):
    """The same update with other factors gives one vector, which it does not without."""
    vector = vector_of(LAYOUT)
    factor = np.where(planted.up_entries(LAYOUT), -0.25, -4.0).astype(np.float32)
    paths = [
        adapters.save(tmp_path / f"{i}.safetensors", v, LAYOUT, alpha=ALPHA, format="kohya")
        for i, v in enumerate((vector, vector * factor))
    ]
    first, second = (adapters.load(path, LAYOUT, canonical=True).vector for path in paths)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(vector - vector * factor).max() > 1
    for name, update in updates(vector, LAYOUT, ALPHA).items():
        np.testing.assert_allclose(updates(first, LAYOUT, ALPHA)[name], update, atol=1e-4)


def test_narrow_types(tmp_path):
    vector = vector_of(LAYOUT)
    for dtype in (np.float16, jnp.bfloat16):
        path = write(tmp_path, "kohya", vector, LAYOUT, dtype=dtype)
        wanted = vector.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(adapters.load(path, LAYOUT).vector, wanted)


def test_vectors_that_are_not_written(tmp_path):
    vector = vector_of(LAYOUT)
    path = tmp_path / "x.safetensors"
    for bad, dtype, match in (
        (vector[:-1], np.float32, rf"\({LAYOUT.size - 1},\).* {LAYOUT.size} values"),
        (np.where(np.arange(LAYOUT.size) == 3, np.nan, vector), np.float32, "1 of 24 values"),
        (1e6 * vector, np.float16, "not finite in float16"),
    ):
        with pytest.raises(AdapterError, match=match):
            adapters.save(path, bad, LAYOUT, alpha=ALPHA, format="kohya", dtype=dtype)
    with pytest.raises(ValueError, match="unknown format 'a1111'; expected one of peft"):
        adapters.save(path, vector, LAYOUT, alpha=ALPHA, format="a1111")
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        adapters.save(path, vector, LAYOUT, alpha=0)
    assert not list(tmp_path.iterdir())


# What is refused. Each case spoils a good kohya or PEFT file; the message names file and key.

KEY = spell(FIRST, "A", "kohya")
UP = spell(FIRST, "B", "kohya")


def changed(**more):
    """A spoiler that sets (or, with None, removes) tensors; names with dots come as they are."""

    def spoil(path):
        tensors = load_file(path)
        for key, value in more.items():
            tensors.pop(key, None)
            if value is not None:
                tensors[key] = np.asarray(value)
        save_file(tensors, path)

    return spoil


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def ones(*shape):
    return np.ones(shape, np.float32)


def with_value(value):
    def spoil(path):
        tensors = load_file(path)
        tensors[UP][5, 0] = value
        save_file(tensors, path)

    return spoil


def repeated_key(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + size].decode().rstrip()
    entry = json.dumps(KEY) + ":" + json.dumps(json.loads(header)[KEY])
    header = (header[:-1] + "," + entry + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def other_base(path):
    layout = planted.layout(width=32)
    adapters.save(path, vector_of(layout), layout, alpha=ALPHA, format="kohya")


DIFFUSERS_KEY = spell(FIRST, "A", "diffusers")
CASES = {
    "empty": (cut(0), "truncated: header of 0 bytes in a file of 0"),
    "cut in the header": (cut(100), "truncated: header of [0-9]+ bytes in a file of 100"),
    "cut in the data": (cut(-4), "damaged file of [0-9]+ bytes"),
    "not safetensors": (lambda p: p.write_bytes(b"\3" + bytes(7) + b"abc"), "not a safetensors"),
    "nan": (with_value(np.nan), f"{UP}: 1 of 24 values are not finite"),
    "infinite": (with_value(-np.inf), f"{UP}: 1 of 24 values are not finite"),
    "ranks differ": (changed(**{KEY: ones(2, 24)}), f"{KEY}: rank 2, but {UP} has rank 1"),
    "no lora_A": (changed(**{KEY: None}), "lora_A of the same module is missing"),
    "no lora_B": (changed(**{UP: None}), "lora_B of the same module is missing"),
    "convolution": (changed(**{KEY: ones(1, 24, 1, 1)}), "shape .1, 24, 1, 1. is not a matrix"),
    "integers": (changed(**{KEY: np.ones((1, 24), np.int64)}), f"{KEY}: int64 instead of"),
    "other base": (other_base, r"in and out are \(32, 32\), in the layout \(24, 24\)"),
    "module missing": (
        changed(**{KEY: None, UP: None, spell(FIRST, "alpha", "kohya"): None}),
        f"module {FIRST} is missing .7 modules.*the layout has 8 modules",
    ),
    "module too many": (
        changed(
            **{
                "lora_unet_mid_block_to_q.lora_down.weight": ones(1, 4),
                "lora_unet_mid_block_to_q.lora_up.weight": ones(4, 1),
                "lora_unet_mid_block_to_q.alpha": np.float32(1),
            }
        ),
        "lora_unet_mid_block_to_q.lora_down.weight: not a module of the layout",
    ),
    "key twice": (repeated_key, f"key {KEY} occurs 2 times"),
    "tensor twice": (
        changed(**{KEY.replace("lora_down", "lora_A"): ones(1, 24)}),
        "are the same tensor",
    ),
    "mixed": (changed(**{DIFFUSERS_KEY: ones(1, 24)}), f"mixes 2 spellings.*{DIFFUSERS_KEY}"),
    "alpha of one missing": (
        changed(**{spell(FIRST, "alpha", "kohya"): None}),
        f"{KEY}: no alpha, as for 1 of 8",
    ),
    "alpha 0": (changed(**{spell(FIRST, "alpha", "kohya"): np.float32(0)}), "alpha is 0"),
    "alphas differ": (
        changed(**{spell(FIRST, "alpha", "kohya"): np.float32(3)}),
        "alphas from 3 to 27",
    ),
    "text encoder": (
        changed(**{"lora_te_text_model_encoder.lora_down.weight": ones(1, 4)}),
        "1 of 25 tensors adapt a text encoder",
    ),
    "DoRA": (changed(**{KEY.replace("lora_down.weight", "dora_scale"): ones(4)}), "DoRA"),
    "LoHa": (changed(**{KEY.replace("lora_down.weight", "hada_w1_a"): ones(4)}), "LyCORIS"),
    "other names": (
        changed(**{"lora_unet_input_blocks_1_1_to_q.lora_down.weight": ones(1, 4)}),
        "original Stable Diffusion code",
    ),
    "something else": (changed(**{"conv_in.weight": ones(1, 4)}), "not a tensor of a LoRA"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_files(tmp_path, case):
    spoil, message = CASES[case]
    path = write(tmp_path, "kohya", vector_of(LAYOUT), LAYOUT)
    adapters.load(path, LAYOUT)
    spoil(path)
    with pytest.raises(AdapterError, match=f"file.safetensors: .*{message}"):
        adapters.load(path, LAYOUT)


def test_text_encoder_left_out_on_request(tmp_path):
    vector = vector_of(LAYOUT)
    path = write(tmp_path, "kohya", vector, LAYOUT)
    changed(**{"lora_te_text_model_encoder.lora_down.weight": ones(1, 4)})(path)
    with pytest.warns(UserWarning, match="left out 1 tensors of a text encoder"):
        loaded = adapters.load(path, LAYOUT, text_encoder="drop")
    np.testing.assert_array_equal(loaded.vector, vector)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save = .'conv_in'. is not supported"),
        ({"some_future_option": 3}, "some_future_option = 3 is not supported"),
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA' is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"r": 4}, f"rank 4 for {FIRST}, its lora_A has 1"),
        ({"rank_pattern": {"to_q": 2}}, f"rank 2 for {FIRST}"),
        ({"lora_alpha": None}, "lora_alpha = None, expected a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan, expected a positive number"),
        ({"alpha_pattern": {"(": 2}}, r"bad pattern '\('"),
    ],
)
def test_refused_configurations(tmp_path, changes, message):
    path = write(tmp_path, "peft", vector_of(LAYOUT), LAYOUT)
    config = path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(AdapterError, match=f"adapter_config.json: .*{message}"):
        adapters.load(path, LAYOUT)


def test_refused_places(tmp_path):
    path = write(tmp_path, "peft", vector_of(LAYOUT), LAYOUT)
    (path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="adapter_config.json, which states its alpha, is not"):
        adapters.load(path, LAYOUT)
    (path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="expected one file of adapter weights, found adapter"):
        adapters.load(path, LAYOUT)
    with pytest.raises(AdapterError, match="nobody: no such file"):
        adapters.load(tmp_path / "nobody", LAYOUT)


def test_a_malicious_pickle_is_not_executed(tmp_path):
    witness = tmp_path / "executed"
    command = f"touch {witness}".encode()
    path = tmp_path / "evil.bin"
    path.write_bytes(b"\x80\x02cposix\nsystem\nU" + bytes([len(command)]) + command + b"\x85R.")
    with pytest.raises(AdapterError, match="evil.bin: .*'posix.system'.*nothing was executed"):
        adapters.load(path, LAYOUT)
    assert not pathlib.Path(witness).exists()
