"""Photographs to adapters to a space, with nothing but a pipeline that diffusers has saved."""

import csv
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from common import config as config_lib
from common import rng as random_streams
from common.config import ConfigError
from common.storage import load_arrays, load_json
from w2w import adapters, lora
from w2w.adapters import base_model, encode, train
from w2w.adapters import experiment as adapters_experiment
from w2w.adapters.photographs import PhotographError
from w2w.bank import Bank
from w2w.lora_layout import QUERY_AND_VALUE, Layout

torch = pytest.importorskip("torch", reason="torch is the oracle of parity tests (extra: test)")
diffusers = pytest.importorskip("diffusers", reason="writes the pipeline (extra: test)")
pytest.importorskip("transformers", reason="writes the pipeline (extra: test)")
from tests.parity import tiny_diffusion as tiny  # noqa: E402

# optax.adam: 1 - decay**count
pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("standard_promotion")]
PEOPLE = ("anna", "bert", "carl", "dora")
STEPS = 30


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a pipeline, photographs of four people, labels, somebody new."""
    root = tmp_path_factory.mktemp("own")
    with tiny.quiet():
        tiny.pipeline("sd1").save_pretrained(root / "pipeline")
    rng = np.random.default_rng(0)
    pictures = [(f"people/{name}/1", (16, 16)) for name in PEOPLE]
    pictures += [("people/bert/2", (24, 16)), ("new/zoe/1", (20, 20)), ("persons/1", (16, 16))]
    for name, (width, height) in pictures:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["name", "age"], *([n, i] for i, n in enumerate(PEOPLE))])
    return root


def configuration(root, **changes):
    settings = {
        "base.pipeline": root / "pipeline",
        "base.remat": True,
        "train.images": root / "people",
        "train.steps": STEPS,
        "train.learning_rate": 0.01,
        "train.class_count": 3,
        "train.class_at_once": 2,
        "train.class_steps": 2,
        "train.views": 3,
        "train.save_every": 10,
        "train.draws": 4,
        "sample.count": 1,
        "edit.labels": root / "labels.csv",
        "edit.models": "anna",
        "invert.images": root / "new",
        "invert.steps": 3,
        "invert.views": 1,
        "invert.draws": 2,
        "draw.images": 1,
        "draw.steps": 2,
        **changes,
    }
    overrides = [(key, str(value)) for key, value in settings.items()]
    return config_lib.apply_overrides(config_lib.load("configs/w2w_adapters.py"), overrides)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"):  # optax.adam: 1 - decay**count
        adapters_experiment.run(configuration(root), workdir)
    return workdir


def test_photographs_become_adapters_and_a_space(root, finished):
    """Every person is a row of the bank, denoises better than before, and can be edited."""
    stages = finished / "stages"
    bank = Bank(stages / "import/bank")
    assert bank.names == PEOPLE and bank.alpha == 27
    params = base_model.load(str(root / "pipeline"), remat=True).params["unet"]
    assert bank.layout == Layout.from_params(params, lora.LoraConfig(1, 27.0))
    for name, row in zip(bank.names, bank.rows, strict=True):
        folder = stages / "train/adapters" / name
        np.testing.assert_array_equal(adapters.load(folder, bank.layout).vector, row)
    results = load_json(finished / "results.json")
    assert [row["name"] for row in results["trained"]] == list(PEOPLE)
    assert [row["photographs"] for row in results["trained"]] == [1, 2, 1, 1]
    assert all(row["error"] < row["error_of_base_model"] for row in results["trained"])
    assert results["inverted"][0]["name"] == "inverted-zoe"
    assert not (stages / "train/groups").exists()
    names = {path.stem for path in (stages / "export/adapters").iterdir()}
    assert names == {"sample0", "inverted-zoe", "anna-age-1", "anna-age+1"}
    page = (finished / "report.html").read_text()
    assert "Trained adapters" in page and page.count("data:image/png") == 5
    drawn = [np.asarray(Image.open(stages / f"draw/images/{name}-0.png"), float)
             for name in ("mean", *(f"trained-{name}" for name in PEOPLE))]
    for i, image in enumerate(drawn):
        assert (image != drawn[i - 1]).any()  # other adapters, other images


def test_class_images_are_those_of_diffusers(root, finished):
    """Prompt, guidance and noise of each, also of the batch that was filled up."""
    load = diffusers.StableDiffusionPipeline.from_pretrained
    pipe = load(root / "pipeline", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    key = random_streams.stream(jax.random.key(0), "class")
    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), (8, 8, 4)) for i in range(3)])
    with tiny.quiet():
        expected = pipe(
            ["person"] * 3, latents=torch.from_numpy(noise).permute(0, 3, 1, 2),
            num_inference_steps=2, height=16, width=16, output_type="np",
        ).images
    folder = finished / "stages/class/images"
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:04d}.png" for i in range(3)]
    for i, image in enumerate(expected):
        found = np.asarray(Image.open(folder / f"{i:04d}.png"), float)
        assert np.abs(found - 255 * image).max() <= 1.0


def test_a_second_run_skips_everything(root, finished, capsys):
    adapters_experiment.run(configuration(root), finished)
    assert capsys.readouterr().out.count("done before") == 10


def stage_settings(root, **changes):
    config = configuration(root, **changes)
    return ConfigDict({**config.train, **config.base, "seed": config.seed})


def vectors_of(folder, layout):
    return np.stack([adapters.load(folder / name, layout).vector for name in PEOPLE])


def test_a_stopped_stage_continues(root, finished, tmp_path, monkeypatch):
    """Finished groups are left alone; the adapters are those of all people at once."""
    one_device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one_device)
    settings = stage_settings(root, **{"train.at_once": 2})
    inputs = {"class": finished / "stages/class"}
    original, trained = train.Checkpointer.save, []

    def stops(self, step, *args):
        original(self, step, *args)
        if step == 20 and self.directory.name.startswith("2-"):
            self.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Checkpointer, "save", stops)
        with pytest.raises(KeyboardInterrupt):
            train.train(settings, inputs, tmp_path)
    groups = tmp_path / "groups"
    assert sorted(path.name for path in groups.iterdir()) == ["0-2.safetensors", "2-2"]
    assert (groups / "2-2/20").is_dir()
    before = {name: (tmp_path / f"adapters/{name}/adapter_model.safetensors").stat().st_mtime_ns
              for name in PEOPLE[:2]}
    step = train.dreambooth.train

    def counting(*args, **more):
        trained.append(more["checkpointer"].latest_step)
        return step(*args, **more)

    monkeypatch.setattr(train.dreambooth, "train", counting)
    train.train(settings, inputs, tmp_path)
    assert trained == [20]
    for name, time in before.items():
        path = tmp_path / f"adapters/{name}/adapter_model.safetensors"
        assert path.stat().st_mtime_ns == time
    layout = Bank(finished / "stages/import/bank").layout
    found = vectors_of(tmp_path / "adapters", layout)
    expected = vectors_of(finished / "stages/train/adapters", layout)
    change = np.abs(expected - expected.mean(axis=0)).max()
    assert np.abs(found - expected).max() < 0.05 * change
    one, other = (load_json(run / "train.json") for run in (tmp_path, finished / "stages/train"))
    for row, wanted in zip(one["people"], other["people"], strict=True):
        assert row["error"] == pytest.approx(wanted["error"], rel=1e-2)


def test_own_class_images_and_other_targets(root, tmp_path):
    """The class is a folder, the adapters are of rank 2 on the queries of cross-attention."""
    settings = stage_settings(root, **{
        "train.class_images": root / "persons",
        "train.rank": 2,
        "train.alpha": 4.0,
        "train.targets": ".*attn2[.]to_q",
        "train.steps": 2,
    })
    train.train(settings, {}, tmp_path)
    layout = adapters.layout_of(tmp_path / "adapters/anna")
    assert layout.rank == 2 and len(layout.modules) > 1
    assert all(name.endswith("attn2.to_q") for name, _, _ in layout.modules)
    loaded = adapters.load(tmp_path / "adapters/anna", layout)
    assert loaded.alpha == 4 and loaded.format == "peft"
    assert load_json(tmp_path / "train.json")["rank"] == 2
    pictures, _ = load_arrays(tmp_path / "photographs.safetensors")
    assert pictures["pictures"].shape == (4, 16, 16, 3)


def test_a_half_precision_base_trains_float32_adapters(root):
    """Shapes and types of a step of two people."""
    settings = stage_settings(root, **{"base.dtype": "bfloat16", "train.class_batch": 0})
    pipeline = base_model.load(str(root / "pipeline"), "bfloat16", remat=True)
    shared = train.shared_arrays(settings, {}, pipeline)
    assert shared.class_images is None
    problem = train.dreambooth.Problem(
        train.predictor(pipeline.unet), pipeline.scheduler.process,
        train.lora_config_of(settings, shared.params), train.recipe_of(settings),
    )
    states = train.dreambooth.init(jax.random.key(0), 2, shared.params, problem)
    data = encode.encode(train.find_people(settings)[:2], pipeline, settings)
    step = train.dreambooth.make_step(problem)
    new, metrics = jax.eval_shape(step, states, (data, jax.random.key(0), shared), None)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((new.params, metrics))}
    assert kinds == {np.dtype(np.float32)} and metrics["loss"].shape == (2,)


def test_the_default_targets_are_those_of_the_published_adapters():
    assert config_lib.load("configs/w2w_adapters.py").train.targets == QUERY_AND_VALUE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "configs"}, "config.folder and config.train.images: give one source"),
        ({"planted.models": 5}, "config.planted.models and config.train.images: give one"),
        ({"base.pipeline": ""}, "config.train.images needs the base model, config.base.pipeline"),
        ({"base.pipeline": "configs"}, "configs has no model_index.json"),
        ({"train.images": "nowhere"}, "config.train: nowhere is not a folder of photographs"),
        ({"train.images": "ROOT/new"}, "has 1 of the at least 3 people that a space needs"),
        ({"train.class_images": "nowhere"}, "config.train.class_images: nowhere is not a folder"),
        ({"train.class_images": "ROOT/people"}, "has 4 sub-folders; expected pictures"),
        ({"train.class_images": "ROOT/persons", "train.class_batch": 0}, "not looked at with"),
        ({"train.class_count": 0}, "config.train: class_count = 0 must be positive"),
        ({"train.alpha": 0.0}, "config.train: alpha = 0.0 must be positive"),
        ({"train.rank": 0}, "config.train: LoRA rank must be at least 1"),
        ({"train.steps": 0}, "config.train: steps = 0 must be at least 1"),
        ({"train.zoom": 0.0}, "config.train: zoom = 0.0"),
        ({"edit.labels": "nowhere.csv"}, "no file nowhere.csv"),
    ],
)
def test_mistakes_are_errors_before_anything_runs(root, tmp_path, changes, message):
    changes = {key: str(value).replace("ROOT", str(root)) for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        adapters_experiment.run(configuration(root, **changes), tmp_path)
    assert not (tmp_path / "stages").exists()


def test_mistakes_that_need_the_model_or_the_pictures(root, tmp_path):
    with pytest.raises(ConfigError, match="config.train.targets: .*'nothing' matches none"):
        settings = stage_settings(root, **{"train.targets": "nothing"})
        train.train(settings, {}, tmp_path)
    with pytest.raises(ConfigError, match="config.base.size: 15 x 15, not multiples of 2"):
        train.train(stage_settings(root, **{"base.size": 15}), {}, tmp_path)
    people = tmp_path / "people"
    shutil.copytree(root / "people", people)
    whole = (people / "carl/1.png").read_bytes()
    (people / "carl/1.png").write_bytes(whole[:60])
    with pytest.raises(PhotographError, match=r"carl/1.png cannot be read"):
        train.train(stage_settings(root, **{"train.images": people}), {}, tmp_path)
    assert not (tmp_path / "adapters").exists()
    (people / "carl").rename(people / "unet")
    with pytest.raises(ConfigError, match="cannot be called 'unet'"):
        train.find_people(stage_settings(root, **{"train.images": people}))
