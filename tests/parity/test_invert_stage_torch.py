"""Photographs to adapters with a pipeline that diffusers has saved; gradients equal torch's."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common import config as config_lib
from common import rng as random_streams
from common.config import ConfigError
from common.storage import load_arrays, load_json
from w2w import adapters, lora, subspace
from w2w.adapters import AdapterError, base_model, encode, invert
from w2w.adapters import experiment as adapters_experiment
from w2w.adapters import stages as own_adapters
from w2w.bank import Bank
from w2w.diffusion import inversion, latents, objectives
from w2w.diffusion.latents import Photographs
from w2w.diffusion.pipeline import predictor
from w2w.lora_layout import Layout

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")
diffusers = pytest.importorskip("diffusers", reason="writes the pipeline (extra: test)")
pytest.importorskip("transformers", reason="writes the pipeline (extra: test)")
from tests.parity import tiny_diffusion as tiny  # noqa: E402

# optax.adam: 1 - decay**count
pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("standard_promotion")]
ALPHA = 27.0
MODULES = 12  # adapters of the bank


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a pipeline, adapters of its UNet, labels, photographs and masks."""
    root = tmp_path_factory.mktemp("own")
    with tiny.quiet():
        tiny.pipeline("sd1").save_pretrained(root / "pipeline")
    pipeline = base_model.load(str(root / "pipeline"))
    config = lora.LoraConfig(rank=1, alpha=ALPHA)
    layout = Layout.from_params(pipeline.params["unet"], config)
    rng = np.random.default_rng(0)
    scores, factors = rng.normal(size=(MODULES, 3)), rng.normal(size=(3, layout.size))
    vectors = 0.05 * (scores @ factors + 0.1 * rng.normal(size=(MODULES, layout.size)))
    for i, vector in enumerate(vectors.astype(np.float32)):
        adapters.save(root / "adapters" / f"a{i}", vector, layout, alpha=ALPHA)
    with open(root / "labels.csv", "w", newline="") as file:
        rows = [[f"a{i}", score[0]] for i, score in enumerate(scores)]
        csv.writer(file).writerows([["name", "age"], *rows])
    for name, size in (("anna/1", (16, 16)), ("anna/2", (24, 16)), ("bert/1", (32, 32))):
        for kind in ("photographs", "masks"):
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            if kind == "masks":
                pixels = np.full((size[1], size[0]), 255, np.uint8)
                pixels[:, : size[0] // 4] = 0
            Image.fromarray(pixels).save(path)
    return root, layout


def configuration(root, **changes):
    settings = {
        "folder": root / "adapters",
        "edit.labels": root / "labels.csv",
        "edit.models": "inverted-anna",
        "edit.components": 3,
        "sample.count": 1,
        "base.pipeline": root / "pipeline",
        "invert.images": root / "photographs",
        "invert.masks": root / "masks",
        "invert.steps": 40,
        "invert.batch": 2,
        "invert.views": 3,
        "invert.components": 5,
        "invert.learning_rate": 0.5,
        "invert.save_every": 10,
        "base.remat": True,
        "draw.images": 1,
        "draw.steps": 2,
        "draw.at_once": 2,
        **changes,
    }
    overrides = [(key, str(value)) for key, value in settings.items()]
    return config_lib.apply_overrides(config_lib.load("configs/w2w_adapters.py"), overrides)


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"):  # optax.adam: 1 - decay**count
        adapters_experiment.run(configuration(made[0]), workdir)
    return workdir


def test_photographs_become_models_that_fit_better_than_the_mean_model(finished):
    found, header = load_arrays(finished / "stages/invert/models.safetensors")
    assert header["names"] == ["inverted-anna", "inverted-bert"] and header["components"] == 5
    assert np.all(found["loss"] < found["loss_of_mean_model"])
    assert found["coefficients"].shape == (2, MODULES - 1)
    assert np.all(found["coefficients"][:, 5:] == 0) and np.all(found["coefficients"][:, :5] != 0)
    space, _ = own_adapters.open_space({"space": finished / "stages/space"})
    expected = subspace.unproject(space, jnp.asarray(found["coefficients"]))
    np.testing.assert_allclose(found["vectors"], expected, atol=1e-6)
    results = load_json(finished / "results.json")["inverted"]
    assert [row["name"] for row in results] == header["names"]
    assert not (finished / "stages/invert/groups").exists()


def test_inversions_are_edited_exported_and_drawn(made, finished):
    _, layout = made
    edited, header = load_arrays(finished / "stages/edit/models.safetensors")
    inverted, _ = load_arrays(finished / "stages/invert/models.safetensors")
    assert header["names"] == ["inverted-anna-age-1", "inverted-anna-age+1"]
    np.testing.assert_allclose(
        edited["coefficients"].mean(axis=0), inverted["coefficients"][0], atol=1e-5
    )
    exported = finished / "stages/export/adapters/inverted-bert.safetensors"
    np.testing.assert_array_equal(adapters.load(exported, layout).vector, inverted["vectors"][1])
    drawn = finished / "stages/draw"
    names = ("mean", "sample0", "inverted-anna", "inverted-bert", "inverted-anna-age+1")
    images = [np.asarray(Image.open(drawn / f"images/{name}-0.png"), float) for name in names]
    assert all(image.shape == (16, 16, 3) for image in images)
    for i in range(1, len(images)):
        assert np.abs(images[i] - images[i - 1]).max() > 2  # other models, other images
    page = (finished / "report.html").read_text()
    for name in ("samples", "edits", "inversions"):
        assert (drawn / f"{name}.png").is_file()
    assert page.count("data:image/png") == 4 and "Inverted photographs" in page


def test_the_drawn_image_is_that_of_the_exported_adapter_in_diffusers(made, finished):
    """What the report shows is what the exported file does elsewhere."""
    root, _ = made
    load = diffusers.StableDiffusionPipeline.from_pretrained
    pipe = load(root / "pipeline", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    with tiny.quiet():
        pipe.load_lora_weights(
            str(finished / "stages/export/adapters"), weight_name="inverted-bert.safetensors"
        )
        key = random_streams.stream(jax.random.key(0), "draw")
        noise = np.array(jax.random.normal(jax.random.fold_in(key, 0), (1, 8, 8, 4)))
        expected = pipe(
            "sks person", negative_prompt="low quality, blurry, unfinished", guidance_scale=3.0,
            latents=torch.from_numpy(noise).permute(0, 3, 1, 2), num_inference_steps=2,
            height=16, width=16, output_type="np",
        ).images[0]
    found = np.asarray(Image.open(finished / "stages/draw/images/inverted-bert-0.png"), float)
    assert np.abs(found - 255 * expected).max() <= 1.0


@pytest.mark.parametrize("format", adapters.FORMATS)
def test_inversions_are_exported_in_every_format(made, finished, tmp_path, format):
    _, layout = made
    inputs = {name: finished / "stages" / name for name in ("import", "invert")}
    config = ConfigDict(dict(format=format, fold=False, dtype="float32"))
    own_adapters.export(config, inputs, tmp_path)
    report = load_json(tmp_path / "export.json")
    assert len(report["files"]) == 2 and report["max_abs_error"] == 0
    vectors = load_arrays(finished / "stages/invert/models.safetensors")[0]["vectors"]
    for file, vector in zip(report["files"], vectors, strict=True):
        loaded = adapters.load(tmp_path / file, layout)
        np.testing.assert_array_equal(loaded.vector, vector)
        assert loaded.alpha == ALPHA


def test_a_stopped_stage_continues(made, finished, tmp_path, monkeypatch, capsys):
    """It skips what is done and finds the same models, here by one person after another."""
    root, _ = made
    original = invert.Checkpointer.save
    one_device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one_device)
    others = {"edit.labels": "", "draw.prompts": "()"}
    one_by_one = configuration(root, **{"invert.at_once": 1, **others})
    with monkeypatch.context() as patch:

        def stops(self, step, *args):
            original(self, step, *args)
            if step == 20 and self.directory.name == "1":
                self.wait()
                raise KeyboardInterrupt

        patch.setattr(invert.Checkpointer, "save", stops)
        with pytest.raises(KeyboardInterrupt):
            adapters_experiment.run(one_by_one, tmp_path)
    groups = tmp_path / "stages/invert.partial/groups"
    assert (groups / "0/40").is_dir() and (groups / "1/20").is_dir()
    adapters_experiment.run(one_by_one, tmp_path)
    assert "invert: continues an interrupted run (attempt 2)" in capsys.readouterr().out
    found, expected = (
        load_arrays(run / "stages/invert/models.safetensors")[0] for run in (tmp_path, finished)
    )
    for name in ("coefficients", "loss", "loss_of_mean_model"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)
    adapters_experiment.run(one_by_one, tmp_path)
    assert capsys.readouterr().out.count("done before") == 6


def test_gradient_equals_torch_from_the_same_photographs(made):
    """Views, posterior, masks and checkpointing included: L(beta) as the paper writes it."""
    root, layout = made
    pipeline = base_model.load(str(root / "pipeline"), remat=True)
    config = configuration(root)
    settings = ConfigDict({**config.invert, **config.base, "seed": 0})
    people = encode.find_people(settings, "config.invert")
    latents = encode.encode(people, pipeline, settings)
    assert latents.views.tolist() == [1 + 3, 1]
    rng = np.random.default_rng(2)
    k = 4
    components = np.linalg.qr(rng.normal(size=(layout.size, k)))[0].T.astype(np.float32)
    mean, std = (0.05 * rng.normal(size=(2, layout.size))).astype(np.float32)
    space = subspace.Subspace(*map(jnp.asarray, (mean, std, components, np.ones(k))), n=9)
    lora_config = base_model.lora_config(layout, ALPHA, pipeline.params["unet"], "pipeline")
    problem = inversion.Problem(
        predictor(pipeline.unet), pipeline.scheduler.process, layout, lora_config,
        inversion.Recipe(batch=2),
    )
    condition = pipeline.encode_text(pipeline.tokenize(["sks person"]), (16, 16))
    shared = inversion.Shared(space, pipeline.params["unet"], condition)
    beta = jnp.asarray(rng.normal(size=k), jnp.float32)
    anna, key = jax.tree.map(lambda leaf: leaf[0], latents), jax.random.key(4)
    with jax.default_matmul_precision("highest"):
        value, gradient = jax.jit(
            jax.value_and_grad(lambda beta: inversion.loss(beta, anna, key, shared, problem))
        )(beta)

    # The same draws, then the paper's formula in torch.
    pick_key, posterior_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.randint(pick_key, (2,), 0, 4)
    shape = (2, *anna.mean.shape[1:])
    z = anna.mean[chosen] + anna.deviation[chosen] * jax.random.normal(posterior_key, shape)
    noise, times = objectives.draw(noise_key, z, problem.process)
    z, noise, mask = (
        torch.from_numpy(np.array(x)).permute(0, 3, 1, 2) for x in (z, noise, anna.mask[chosen])
    )
    unet = tiny.unet("sd1", **tiny.ONE_LEVEL)
    coefficients = torch.from_numpy(np.array(beta)).requires_grad_()
    flat = (coefficients @ torch.from_numpy(components)) * torch.from_numpy(std)
    flat = flat + torch.from_numpy(mean)
    merged, offset = {}, 0
    for name, fan_in, fan_out in layout.modules:
        a, b = flat[offset : offset + fan_in], flat[offset + fan_in : offset + fan_in + fan_out]
        offset += fan_in + fan_out
        merged[f"{name}.weight"] = unet.get_parameter(f"{name}.weight") + ALPHA * torch.outer(b, a)
    process = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    t = torch.from_numpy(np.array(times)).long()
    text = torch.from_numpy(np.array(condition.text)).expand(2, -1, -1)
    args = process.add_noise(z, noise, t), t, text
    out = torch.func.functional_call(unet, merged, args).sample
    expected = ((mask * out - mask * noise) ** 2).mean()
    expected.backward()
    assert 0 < float(mask.mean()) < 1
    wanted = coefficients.grad.numpy()
    assert abs(float(value) - expected.item()) <= 1e-4 * expected.item()
    assert np.abs(np.asarray(gradient) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_half_precision_keeps_coefficients_in_float32(made):
    """A step of two people with networks and components in bfloat16, and checkpointing."""
    root, layout = made
    pipeline = base_model.load(str(root / "pipeline"), "bfloat16", remat=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(pipeline.params)} == {jnp.dtype(jnp.bfloat16)}
    params = pipeline.params["unet"]
    zeros, k = jnp.zeros((layout.size,)), 4
    space = subspace.Subspace(zeros, zeros, jnp.zeros((k, layout.size)), jnp.ones(k), n=9)
    shared = inversion.Shared(
        subspace.narrow(space, jnp.bfloat16),
        params,
        pipeline.encode_text(pipeline.tokenize(["sks person"]), (16, 16)),
    )
    problem = inversion.Problem(
        predictor(pipeline.unet), pipeline.scheduler.process, layout,
        base_model.lora_config(layout, ALPHA, params, "pipeline"), inversion.Recipe(),
    )
    mean, deviation = latents.posterior(pipeline, jnp.zeros((16, 16, 3)))
    assert mean.dtype == deviation.dtype == jnp.float32
    data = Photographs(mean[None], deviation[None], jnp.asarray(1), None)
    data = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), data)
    keys, states = jax.random.split(jax.random.key(0)), inversion.init(2, k, problem.recipe)
    step = inversion.make_step(problem)
    states, metrics = jax.eval_shape(step, states, (data, keys, shared), keys[0])
    assert states.params.dtype == metrics["loss"].dtype == jnp.float32
    assert states.params.shape == (2, k) and metrics["loss"].shape == (2,)


def test_latents_and_masks_are_of_the_same_view(made, tmp_path, monkeypatch):
    """A white rectangle is where its mask is, in every crop, size and mirroring of the stage."""
    root, _ = made
    pixels = np.zeros((40, 70), np.uint8)
    pixels[8:30, 10:35] = 255
    for kind in ("photographs", "masks"):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "1.png")

    def pooled(pipeline, image):
        mean = image.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
        return mean, jnp.zeros_like(mean)

    monkeypatch.setattr(latents, "posterior", pooled)
    places = {"invert.images": tmp_path / "photographs", "invert.masks": tmp_path / "masks"}
    more = {"invert.views": 10, "invert.zoom": 0.7, "invert.mirror": True}
    config = configuration(root, **places, **more)
    settings = ConfigDict({**config.invert, **config.base, "seed": 0})
    (person,) = encode.find_people(settings, "config.invert")
    found = encode.encode_person(person, base_model.load(str(root / "pipeline")), settings)
    assert found["mask"].shape == (10, 8, 8, 1)
    image, mask = (found["mean"][..., :1] + 1) / 2, found["mask"]
    assert np.abs(image - mask).max() < 0.3 and np.abs(image - mask).mean() < 0.03
    assert np.abs(mask[1:] - mask[:-1]).max() > 0.9  # other views, other places


def run_with(made, tmp_path, **changes):
    adapters_experiment.run(configuration(made[0], **changes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"invert.images": "nowhere"}, "nowhere is not a folder of photographs"),
        ({"invert.masks": "nowhere"}, "nowhere is not a folder of masks"),
        ({"base.pipeline": "nowhere"}, "nowhere is no folder and no hub id"),
        ({"base.pipeline": "configs"}, "configs has no model_index.json"),
        ({"base.pipeline": ""}, "config.invert.images needs the base model"),
        ({"invert.units": "sigma"}, "config.invert: units = 'sigma'"),
        ({"invert.zoom": 0.0}, "config.invert: zoom = 0.0"),
        ({"invert.images": ""}, "config.invert.masks without config.invert.images"),
    ],
)
def test_mistakes_are_errors_before_anything_runs(made, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_with(made, tmp_path, **changes)
    assert not (tmp_path / "stages").exists()


def test_mistakes_that_need_the_space_or_the_model(made, finished, tmp_path):
    root, _ = made
    inputs = {name: finished / "stages" / name for name in ("import", "space")}

    def stage(**changes):
        config = configuration(root, **changes)
        invert.invert(ConfigDict({**config.invert, **config.base, "seed": 0}), inputs, tmp_path)

    with pytest.raises(ConfigError, match=r"components = 12; the space has 11"):
        stage(**{"invert.components": 12})
    with pytest.raises(ConfigError, match="component_dtype = 'int8'"):
        stage(**{"invert.component_dtype": "int8"})
    with pytest.raises(ConfigError, match="15 x 15, not multiples of 2"):
        stage(**{"base.size": 15})
    with pytest.raises(ConfigError, match="dtype = float16 is not supported"):
        stage(**{"base.dtype": "float16"})


def test_adapters_of_another_base_are_refused(made, finished, tmp_path):
    """Missing modules and other widths are named."""
    root, layout = made
    params = base_model.load(str(root / "pipeline")).params["unet"]
    assert base_model.lora_config(layout, ALPHA, params, "base").scale == ALPHA
    first, *others = layout.modules
    wider = Layout((("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 16, 8),), 1)
    with pytest.raises(AdapterError, match=r"base: .*another base model: mid_block.*\(16, 8\)"):
        base_model.lora_config(wider, ALPHA, params, "base")
    unknown = Layout(((f"down_blocks.7.{first[0]}", 8, 8), *others), 1)
    with pytest.raises(AdapterError, match=r"another base model: down_blocks\.7.*no place"):
        base_model.lora_config(unknown, ALPHA, params, "base")
    bank = Bank.create(tmp_path / "bank", wider, ALPHA)
    bank.append(["a", "b", "c"], np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32))
    inputs = {"import": tmp_path, "space": tmp_path}
    own_adapters.fit(ConfigDict(dict(components=0, method="gram", seed=0)), inputs, tmp_path)
    config = configuration(root, **{"invert.components": 0})
    with pytest.raises(AdapterError, match="another base model"):
        invert.invert(ConfigDict({**config.invert, **config.base, "seed": 0}), inputs, tmp_path)
