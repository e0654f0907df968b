"""Folders written by diffusers load into pipelines whose images equal diffusers'."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2w import lora
from w2w.diffusion.generate import generate
from w2w.diffusion.pipeline import load_pipeline
from w2w.diffusion.schedulers import PNDM
from w2w.diffusion.sigma_schedulers import Euler

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")
pytest.importorskip("diffusers", reason="the oracle of these tests (extra: test)")
pytest.importorskip("transformers", reason="the oracle of these tests (extra: test)")
from tests.parity import tiny_diffusion as tiny  # noqa: E402

pytestmark = pytest.mark.parity
PROMPTS = ["a photo of sks person", "person"]
SIZE = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: (torch pipeline, folder)} of both kinds."""
    made = {}
    for kind in ("sd1", "sdxl"):
        pipe = tiny.pipeline(kind)
        pipe.set_progress_bar_config(disable=True)
        folder = tmp_path_factory.mktemp(kind)
        with tiny.quiet():
            pipe.save_pretrained(folder)
        made[kind] = (pipe, folder)
    return made


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_images_equal_diffusers(folders, kind):
    pipe, folder = folders[kind]
    ours = load_pipeline(folder)
    assert isinstance(ours.scheduler, PNDM if kind == "sd1" else Euler)
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    negative = "low quality" if kind == "sd1" else None  # SDXL: zero features
    with tiny.quiet():
        expected = pipe(
            prompt=PROMPTS,
            negative_prompt=None if negative is None else [negative] * 2,
            latents=torch.from_numpy(noise).permute(0, 3, 1, 2),
            num_inference_steps=6,
            guidance_scale=3.0,
            height=SIZE,
            width=SIZE,
            output_type="np",
        ).images
    with jax.default_matmul_precision("highest"):
        found = generate(
            ours, PROMPTS, negative, latents=jnp.asarray(noise), steps=6, guidance=3.0,
            image_size=(SIZE, SIZE),
        )
    assert found.shape == expected.shape == (2, SIZE, SIZE, 3)
    assert expected.std() > 0.01
    assert np.abs(np.asarray(found) - expected).max() <= 1e-4


def test_tokens_equal_the_tokenizer(folders):
    pipe, folder = folders["sd1"]
    rows = load_pipeline(folder).tokenize(PROMPTS)[0]
    expected = pipe.tokenizer(PROMPTS, padding="max_length", max_length=11, truncation=True)
    np.testing.assert_array_equal(rows, expected["input_ids"])
    assert rows.dtype == np.int32 and rows.shape == (2, 11)


def test_a_population_of_adapters_is_one_program_per_architecture(folders):
    """Each image of a population equals that of its adapter alone; injection switches."""
    _, folder = folders["sd1"]
    pipeline = load_pipeline(folder)
    config = lora.LoraConfig(rank=1, alpha=27.0)
    layout = lora.Layout.from_params(pipeline.params["unet"], config)
    vectors = 0.02 * jax.random.normal(jax.random.key(1), (2, layout.size))
    adapters = jax.vmap(lambda v: lora.unflatten(v, layout))(vectors)
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], adapters) for i in range(2))
    common = dict(
        latents=jax.random.normal(jax.random.key(0), (1, 8, 8, 4)),
        steps=4, guidance=3.0, lora_config=config, decode=False, image_size=(SIZE, SIZE),
    )
    both = generate(pipeline, "person", adapter=adapters, **common)
    alone = generate(pipeline, "person", adapter=second, **common)
    assert both.shape == (2, 1, 8, 8, 4)
    scale = float(jnp.abs(alone).max())
    np.testing.assert_allclose(both[1], alone, atol=1e-4 * scale)
    assert jnp.abs(both[0] - both[1]).max() > 1e-2 * scale

    def switched(threshold):
        return generate(
            pipeline, "person", adapter=second, original=first, threshold=threshold, **common
        )

    np.testing.assert_array_equal(switched(1000), alone)  # bit for bit
    np.testing.assert_allclose(switched(-1), both[0], atol=1e-4 * scale)
    middle = switched(400)
    assert jnp.abs(middle - alone).max() > 1e-3 * scale
    assert jnp.abs(middle - both[0]).max() > 1e-3 * scale


def copied(folder, path):
    shutil.copytree(folder, path / "copy")
    return path / "copy"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_not_supported_is_named(folders, tmp_path):
    folder = copied(folders["sd1"][1], tmp_path)
    for file, changes, named in (
        ("unet/config.json", dict(resnet_time_scale_shift="scale_shift"), "resnet_time_scale"),
        ("vae/config.json", dict(shift_factor=0.5), "shift_factor"),
        ("text_encoder/config.json", dict(hidden_act="relu"), "hidden_act"),
        ("scheduler/scheduler_config.json", dict(_class_name="HeunDiscreteScheduler"), "Heun"),
        ("scheduler/scheduler_config.json", dict(skip_prk_steps=False), "skip_prk_steps"),
        ("model_index.json", dict(_class_name="FluxPipeline"), "FluxPipeline"),
        ("model_index.json", dict(controlnet=["diffusers", "ControlNetModel"]), "controlnet"),
    ):
        before = (folder / file).read_text()
        edit(folder / file, **changes)
        with pytest.raises(ValueError, match=named):
            load_pipeline(folder)
        (folder / file).write_text(before)


def test_old_files_other_precisions_and_torch_files(folders, tmp_path):
    """Sharded, half-precision and ``.bin`` weights are read; float16 becomes float32."""
    pipe, source = folders["sd1"]
    expected = load_pipeline(source).params["unet"]
    folder = copied(source, tmp_path)
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole.unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_pipeline(folder)
    with tiny.quiet():
        pipe.unet.save_pretrained(folder / "unet", max_shard_size="20KB")
    assert not whole.exists() and list((folder / "unet").glob("*-00002-of-*.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, load_pipeline(folder).params["unet"], expected)

    for file in (folder / "unet").glob("*.safetensors*"):
        file.unlink()
    torch.save(pipe.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    jax.tree.map(np.testing.assert_array_equal, load_pipeline(folder).params["unet"], expected)
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()

    half = {k: v.half() for k, v in pipe.unet.state_dict().items()}
    from safetensors.torch import save_file

    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    found = load_pipeline(folder, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype(jnp.bfloat16)}
    found = load_pipeline(folder).params["unet"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found, expected)
