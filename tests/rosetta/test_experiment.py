"""The stages on a trained network, and the pictures they draw."""

import functools
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from common import config as config_lib
from common.config import ConfigError
from common.storage import load_arrays, load_json
from rosetta import build, context, experiment, figures, stream, tables
from rosetta.units import Layout

CONFIG = "configs/rosetta.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = config_lib.load(f"{CONFIG}:smoke")
    config.mine.models, config.mine.sizes = ("alexnet",), (64,)
    config.mine.images = 8
    config.reference = True
    workdir = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"):  # optax.adam: 1 - decay**count
        experiment.run(config, workdir)
    return config, workdir


def test_results(finished, capsys):
    config, workdir = finished
    results = load_json(workdir / "results.json")
    assert results["images"] == 8
    assert results["units"] == {"dcgan": 960, "alexnet": 1152, "alexnet~0": 1152}
    alexnet = results["networks"]["alexnet"]
    assert alexnet["best_buddies"]["matches"] <= alexnet["asymmetric"]["matches"]
    assert alexnet["asymmetric"]["matches"] <= alexnet["symmetric"]["matches"]
    buddies = alexnet["best_buddies"]
    assert 0 <= buddies["beyond_exchanged"] <= buddies["matches"]
    assert 0 <= buddies["beyond_untrained"] <= buddies["matches"]
    assert len(results["dictionary"]["exchanged_images"]) == 2
    assert len(results["dictionary"]["untrained"]) == 1
    found, header = load_arrays(workdir / "stages/dictionary/dictionary.safetensors")
    assert header["models"] == ["alexnet"]
    assert len(found["anchors"]) == results["dictionary"]["units"] > 0
    mined = context.load_mined(workdir / "stages/mine")
    assert mined.plan.exchanged == (("dcgan", "alexnet"),)
    alone = [("dcgan", name, -1) for name in ("alexnet", "alexnet~0", "dcgan")]
    assert set(mined.neighbours) == {*alone, ("dcgan", "alexnet", 0), ("dcgan", "alexnet", 1)}
    sums = stream.load_state(workdir / "stages/mine/sums.safetensors")
    table = tables.correlations(mined.plan, sums, ("dcgan", "alexnet"))
    near = mined.nearest(("dcgan", "alexnet"), 3)
    np.testing.assert_allclose(near.row_scores[:, 0], table.max(1), atol=1e-6)
    assert set(results["inversion"]["methods"]) == {
        "random units", "rosetta units", "pixels", "pixels, random units", "pixels, rosetta units"
    }
    assert set(results["edits"]["edits"]) == {
        f"{name}, {kind}" for name in ("left", "right", "zoom")
        for kind in ("rosetta units", "random units", "pixels")
    } | {"align, rosetta units", "paste, rosetta units"}
    published = results["reference"]["alexnet"]["best_buddies"]
    assert published["exact"] == buddies["matches"] and 0 < published["both"] <= published["exact"]
    found, _ = load_arrays(workdir / "stages/reference/reference.safetensors")
    assert found["alexnet"].shape == (960, 1152) and 0.5 < np.corrcoef(
        found["alexnet"].ravel(), table.ravel())[0, 1] < 1  # fmt: skip
    pictures = ("pairs_alexnet", "depths_alexnet", "rosetta", "concepts")
    for name in (*pictures, "inversion", "edits", "units"):
        with Image.open(workdir / f"{name}.png") as picture:
            assert min(picture.size) > 100
    assert (workdir / "report.html").stat().st_size > 50_000
    capsys.readouterr()
    experiment.run(config, workdir)
    assert capsys.readouterr().out.count("skipped") == 8


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("models", ("lite0", "vgg19"), "known: lite0, lite1, vgg16, alexnet, faces"),
        ("sizes", (64,), "1 for 2 models"),
        ("images", 12, "12 is no multiple of 8"),
        ("permutations", 8, "must be 1 to 7"),
        ("keep", 4, "config.match.k: 5 partners of the 4 that config.mine.keep keeps"),
        ("rows", -1, "config.mine.rows: -1, expected 0 or more"),
        ("models", ("lite0", "nowhere.py:net"), "nowhere.py:net: no file nowhere.py"),
        ("models", ("lite0", "no_such:net"), "config.mine: no_such:net: no module 'no_such'"),
        ("zoo", "hub", "config.mine.zoo: 'hub'; known: given, fashion"),
        ("generator.network", "stylegan4", "'stylegan4'; known: dcgan, biggan, stylegan_xl"),
        ("generator.space", "w", "space: 'w' of dcgan; StyleGANs have z, w, w., others z"),
        ("match.rule", "best", "config.match.rule: 'best'; known: best_buddies, asymmetric, sym"),
        ("match.rate", 1.0, "config.match.rate: 1.0 is not between 0 and 1"),
        ("invert.schedule", "step", "config.invert.schedule: 'step'; known: constant, ramp"),
        ("invert.steps", 0, "config.invert.steps: 0, expected more than 0"),
        ("invert.images", 0, "config.invert: no images, no photographs and no fol"),
        ("invert.folder", "nowhere", "config.invert.folder: 'nowhere' is no folder"),
        ("generator.crop", True, "config.mine.generator.crop: the maps of dcgan have no margins"),
        ("edit.images", 1, "config.edit.images: at least 2"),
    ],
)
def test_mistakes_are_named(key, value, message, tmp_path):
    config = config_lib.load(f"{CONFIG}:smoke")
    *groups, leaf = (key if key.partition(".")[0] in config else f"mine.{key}").split(".")
    functools.reduce(lambda node, part: node[part], groups, config)[leaf] = value
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_overlay():
    image = np.full((8, 8, 3), 0.5)
    activation = np.zeros((2, 2))
    activation[1, 1] = 3
    drawn = figures.overlay(image, activation, strength=1.0)
    np.testing.assert_allclose(drawn[:2, :2], image[:2, :2])  # the lowest value is transparent
    assert np.abs(drawn[-1, -1] - 0.5).max() > 0.1
    np.testing.assert_array_equal(drawn, figures.overlay(image, activation * 9, 1.0))
    np.testing.assert_allclose(figures.overlay(image, np.ones((3, 3))), image)
    fine = np.kron(activation, np.ones((8, 8)))
    coarse = np.kron(activation, np.ones((4, 4)))
    np.testing.assert_allclose(figures.overlay(image, fine), figures.overlay(image, coarse))


def test_images_are_ordered_by_common_response():
    random = np.random.default_rng(0)
    first = random.normal(size=(6, 4, 4))
    second = first.copy()
    second[[1, 4]] *= -1
    order = figures.together(first, second)
    assert set(order[-2:].tolist()) == {1, 4}
    strength = (figures.standardised(first) ** 2).mean((1, 2))
    assert order[0] == max({0, 2, 3, 5}, key=lambda i: strength[i])


def test_labels_and_depths(tmp_path):
    layout = Layout("net", ("a", "b"), (4, 2), (3, 5))
    assert figures.label(layout, 4) == "b #1"
    np.testing.assert_array_equal(layout.depth([0, 2, 3, 7]), [0, 0, 1, 1])
    with pytest.raises(IndexError, match="has 8 units, not 8"):
        layout.find(8)
    path = figures.depths(tmp_path / "d.png", (layout, layout), np.array([0, 3]), np.array([4, 7]))
    assert path.stat().st_size > 1000


def test_devices_that_share_a_batch():
    assert jax.device_count() == 4
    assert build.mesh_for(8, 2).devices.size == 2  # four devices would have two images each
    assert build.mesh_for(12, 2).devices.size == 4
    assert build.mesh_for(6, 2).devices.size == 2
    assert build.mesh_for(7, 2) is None


def test_checkpoints_are_asked_for(tmp_path):
    config = config_lib.load(f"{CONFIG}:imagenet")
    with pytest.raises(ConfigError, match="config.mine.generator.path: '' is no file, nor a hub"):
        experiment.check(config)
    file = tmp_path / "gan.bin"
    file.write_bytes(b"")
    config.mine.generator.path = str(file)
    with pytest.raises(ConfigError, match="config.mine.paths.resnet50: '' is no file"):
        experiment.check(config)
    config.mine.sizes = (192,) * 5
    with pytest.raises(ConfigError, match="192 for resnet50, which sees 224 pixels"):
        experiment.check(config)
    config = config_lib.load(f"{CONFIG}:fashion")
    experiment.check(config)
    config.mine.generator.network = "biggan"
    with pytest.raises(ConfigError, match="config.mine.generator is of the zoo given, not of fash"):
        experiment.check(config)


def test_nothing_significant(finished, tmp_path):
    """No match passes the test: an empty dictionary, and a report that says so."""
    config, workdir = finished
    other = tmp_path / "run"
    shutil.copytree(workdir, other)
    config = config.copy_and_resolve_references()
    config.match.rate = 1e-9
    experiment.run(config, other)
    results = load_json(other / "results.json")
    assert results["dictionary"]["units"] == 0 and results["dictionary"]["mean_r"] is None
    assert results["networks"]["alexnet"]["significant_matches"] == 0
    assert "<strong>0 units of the generator" in (other / "report.html").read_text()
