"""Adapter layouts of the full-size UNets, configurations, weight files and objectives."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from w2w import lora
from w2w.diffusion import component_config, hub, objectives, pretrained, weight_files
from w2w.diffusion.layers import attention_implementation
from w2w.diffusion.noise import NoiseProcess
from w2w.diffusion.pipeline import load_pipeline
from w2w.diffusion.unet import UNet, UNetConfig, count_parameters

SD21 = {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
    "_class_name": "UNet2DConditionModel",
}
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
SHA256 = "71c04e30d94d3cb81ba19216f5818168e14bdac5534441b2de6a4c9bc7df2af7"
# Start of the first tensor of each transformer block, and the block after the last.
STARTS = {
    "down_blocks.0.attentions.0": 0, "down_blocks.0.attentions.1": 3008,
    "down_blocks.1.attentions.0": 6016, "down_blocks.1.attentions.1": 11264,
    "down_blocks.2.attentions.0": 16512, "down_blocks.2.attentions.1": 26240,
    "mid_block.attentions.0": 35968,
    "up_blocks.1.attentions.0": 45696, "up_blocks.1.attentions.1": 55424,
    "up_blocks.1.attentions.2": 65152, "up_blocks.2.attentions.0": 74880,
    "up_blocks.2.attentions.1": 80128, "up_blocks.2.attentions.2": 85376,
    "up_blocks.3.attentions.0": 90624, "up_blocks.3.attentions.1": 93632,
    "up_blocks.3.attentions.2": 96640,
}


def test_layout_of_sd15_adapters():
    """The order of the published 99,648 values."""
    shapes = pretrained.unet_shapes(component_config.unet_config({"cross_attention_dim": 768}))
    assert count_parameters(shapes) == 859_520_964
    layout = lora.Layout.from_params(shapes, lora.LoraConfig(rank=1, alpha=27.0))
    assert (len(layout.modules), len(layout.names), layout.size) == (64, 128, 99_648)
    assert layout.sha256 == SHA256
    starts: dict[str, int] = {}
    for name, offset in zip(layout.names, layout.offsets, strict=True):
        block = name.removeprefix("base_model.model.").split(".transformer_blocks")[0]
        starts.setdefault(block, offset)
    assert starts == STARTS
    rank_one = lora.LoraConfig(rank=1, targets=(r".*attn[12]\.to_([qkv]|out\.0)",))
    assert lora.Layout.from_params(shapes, rank_one).size == 199_296


@pytest.mark.parametrize(
    ("config", "modules", "size"), [(SD21, 64, 103_744), (SDXL, 280, 725_760)], ids=["2.1", "xl"]
)
def test_layout_of_other_bases(config, modules, size):
    shapes = pretrained.unet_shapes(component_config.unet_config(config))
    layout = lora.Layout.from_params(shapes, lora.LoraConfig(rank=1))
    assert (len(layout.modules), layout.size) == (modules, size)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"addition_embed_type": "image"}, "addition_embed_type"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types"),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "up_block_types"),
        ({"attention_head_dim": [5, 10]}, "attention_head_dim"),
        ({"layers_per_block": [2, 2, 2, 1]}, "layers_per_block"),
        ({"key_of_tomorrow": 3}, "key_of_tomorrow"),
    ],
)
def test_unet_keys_that_are_not_supported_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        component_config.unet_config(change)


def test_keys_that_change_nothing_are_accepted():
    plain = component_config.unet_config({})
    assert plain == component_config.unet_config(
        {"decay": 0.9999, "sample_size": 64, "_name_or_path": "x", "num_class_embeds": None,
         "norm_eps": 1e-05, "act_fn": "silu", "upcast_attention": True, "mid_block_scale_factor": 1}
    )
    assert component_config.text_config({"torch_dtype": "float16", "top_k": 50}).layers == 12
    with pytest.raises(ValueError, match="use_attention_mask"):
        component_config.text_config({"use_attention_mask": True})
    with pytest.raises(ValueError, match="use_quant_conv"):
        component_config.autoencoder_config({"use_quant_conv": False})


def test_unet_refuses_what_does_not_fit():
    config = UNetConfig(4, 4, 1, (8, 16), 1, (True, False), 2, 12, 4, 4)

    def shapes(side, *extra):
        x, text = jnp.zeros((1, side, side, 4)), jnp.zeros((1, 2, 12))
        jax.eval_shape(UNet(config).init, jax.random.key(0), x, jnp.zeros(1), text, *extra)

    with pytest.raises(ValueError, match="multiples of 2"):
        shapes(7)
    with pytest.raises(ValueError, match="size_embedding"):
        shapes(8, jnp.zeros((1, 3)), jnp.zeros((1, 6)))


def test_gradient_checkpointing_changes_the_program_only():
    config = UNetConfig(2, 2, 1, (4,), 1, (True,), 1, 3, 1, 2)
    x, text, t = jnp.ones((1, 2, 2, 2)), jnp.ones((1, 2, 3)), jnp.ones(1)
    rng = np.random.default_rng(0)
    shapes = pretrained.unet_shapes(config)
    tree = jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)

    def loss(remat, x):
        unet = UNet(dataclasses.replace(config, remat=remat))
        return jnp.sum(unet.apply({"params": tree}, x, t, text) ** 2)

    def gradient(remat):
        return jax.grad(functools.partial(loss, remat))

    x = jax.random.normal(jax.random.key(1), x.shape)
    plain, again = (jax.jit(gradient(remat))(x) for remat in (False, True))
    np.testing.assert_allclose(plain, again, atol=1e-4 * float(jnp.abs(plain).max()))
    assert "remat" in str(jax.make_jaxpr(gradient(True))(x))
    assert "remat" not in str(jax.make_jaxpr(gradient(False))(x))


def test_cudnn_attention_is_used_where_it_exists_only():
    choose = attention_implementation
    even = 4096, 4096
    assert choose("gpu", "9.0", jnp.bfloat16, 64, even) == "cudnn"
    for other in (
        ("cpu", None, jnp.bfloat16, 64, even),
        ("gpu", "7.5", jnp.bfloat16, 64, even),
        ("gpu", "gfx90a", jnp.bfloat16, 64, even),
        ("gpu", "9.0", jnp.float32, 64, even),
        ("gpu", "9.0", jnp.bfloat16, 160, even),
        ("gpu", "9.0", jnp.bfloat16, 36, even),
        ("gpu", "9.0", jnp.bfloat16, 64, (4096, 77)),
        ("gpu", "9.0", jnp.bfloat16, 64, (77, 4096)),
    ):
        assert choose(*other) == "xla"


def loss_with(predicted_change=0.0, clean_change=0.0, mask=None):
    rng = np.random.default_rng(0)
    latents, noise, out = rng.normal(size=(3, 1, 4, 4, 2)).astype(np.float32)
    out[:, :2] += predicted_change
    noise[:, :2] += clean_change
    t = np.array([300], np.int32)
    errors = objectives.denoising_errors(
        lambda x, t, c: jnp.asarray(out), latents, None, noise, t, NoiseProcess(), mask
    )
    return errors, out, noise


def test_masked_loss():
    """The mean is over all elements, and nothing outside the mask counts at all."""
    mask = np.ones((1, 4, 4, 1), np.float32)
    mask[:, :2] = 0.0
    plain, out, noise = loss_with()
    np.testing.assert_allclose(plain, ((out - noise) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
    masked, *_ = loss_with(mask=mask)
    np.testing.assert_allclose(masked[0], ((out - noise)[:, 2:] ** 2).sum() / 32, rtol=1e-5)
    for change in (1.0, np.inf):
        np.testing.assert_array_equal(loss_with(change, mask=mask)[0], masked)
        assert loss_with(change)[0] > plain
    np.testing.assert_array_equal(loss_with(0.0, 7.0, mask)[0], masked)


def test_prior_preservation_weighs_the_class():
    t, process = np.array([1, 2, 3], np.int32), NoiseProcess()
    latents, noise = jnp.zeros((3, 2, 2, 1)), jnp.zeros((3, 2, 2, 1))

    def predict(x, t, condition):
        return jnp.asarray([1.0, 2.0, 4.0]).reshape(3, 1, 1, 1) * jnp.ones((3, 2, 2, 1))

    def loss(**settings):
        return objectives.dreambooth(predict, latents, None, noise, t, process, **settings)

    np.testing.assert_allclose(loss(class_count=2, prior_weight=0.5), 1 + 0.5 * (4 + 16) / 2)
    np.testing.assert_allclose(loss(), 7.0)
    with pytest.raises(ValueError, match="class images"):
        loss(class_count=3)


def test_drawn_timesteps_cover_the_process():
    latents = jnp.zeros((4000, 1, 1, 1))
    noise, t = objectives.draw(jax.random.key(0), latents, NoiseProcess())
    assert noise.shape == latents.shape and abs(float(noise.std()) - 1) < 0.05
    assert t.dtype == jnp.int32 and int(t.min()) >= 0 and 950 < int(t.max()) <= 999
    assert abs(float(t.mean()) - 499.5) < 20


def test_weights_are_chosen_in_a_fixed_order():
    stem = "diffusion_pytorch_model"
    both = [f"{stem}.fp16.safetensors", f"{stem}.safetensors", f"{stem}.bin", "config.json"]
    assert weight_files.choose(both, "diffusers", "x") == f"{stem}.safetensors"
    assert weight_files.choose(both[:1] + both[2:], "diffusers", "x") == both[0]
    assert weight_files.choose(["pytorch_model.bin"], "transformers", "x") == "pytorch_model.bin"
    with pytest.raises(FileNotFoundError, match="x: no weights"):
        weight_files.choose(["model.ckpt"], "diffusers", "x")


def test_shards_that_lie_are_refused(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "s-00001-of-00001.safetensors")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"

    def read(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))
        return weight_files.read(tmp_path, "diffusers")

    file = "s-00001-of-00001.safetensors"
    assert list(read({"a": file})) == ["a"]
    with pytest.raises(ValueError, match="in no shard: \\['b'\\]"):
        read({"a": file, "b": file})
    with pytest.raises(ValueError, match="not the name of a file beside it"):
        read({"a": "../" + file})
    with pytest.raises(FileNotFoundError, match="not there"):
        read({"a": "t.safetensors"})
    with pytest.raises(ValueError, match="weight_map"):
        read({})
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged safetensors file"):
        read({"a": file})


def test_hub_files_are_one_copy_of_the_weights():
    files = [
        "model_index.json", "README.md", "v1-5-pruned.ckpt", "scheduler/scheduler_config.json",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    left_out = {"README.md", "v1-5-pruned.ckpt", "safety_checker/model.safetensors",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "unet/diffusion_pytorch_model.bin",
                "vae/diffusion_pytorch_model.fp16.safetensors"}
    assert set(hub.needed(files)) == set(files) - left_out
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        hub.needed(["unet/config.json"])


def test_places_that_hold_no_pipeline(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        load_pipeline("./no/such/folder")
    with pytest.raises(FileNotFoundError, match="model_index.json is missing"):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match="float16 is not supported|not supported"):
        load_pipeline(tmp_path, dtype=jnp.float16)
    pytest.importorskip("huggingface_hub", reason="asks what happens offline (extra: w2w)")
    with pytest.raises(ConnectionError, match="nobody/nothing.*cannot be reached") as error:
        load_pipeline("nobody/nothing")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install"):
        load_pipeline("nobody/nothing")
