"""`:imagenet` from files to report, with random weights under the official names."""

import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from common import config as config_lib
from common.config import ConfigError
from common.porting import PortingError
from common.storage import load_arrays, load_json
from rosetta import build, checks, context, experiment
from tests.parity import rosetta_files as official

pytestmark = [
    pytest.mark.parity,
    pytest.mark.full_size,  # small networks, but ten of them to compile: minutes
    # spectral_norm of this old package is torch's former one.
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning"),
]
MODELS = ("resnet50", "mae_vitb16", "dino_resnet50", "dino_vitb16", "clip_resnet50")


def configured(paths, images):
    config = config_lib.load("configs/rosetta.py:imagenet")
    config.mine.images = config.mine.batch = images
    config.mine.generator.path = str(paths["biggan"])
    for name in MODELS:
        config.mine.paths[name] = str(paths[name])
    config.match.rate = 0.5
    config.guide.update(dict(pairs=4, most=2))
    config.show.update(dict(pool=images, matches=2, entries=2, concepts=2))
    config.invert.update(dict(images=3, tries=2, steps=2, lpips=0.0))
    config.edit.update(dict(images=2, steps=2, units=1))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    with pytest.MonkeyPatch.context() as patch:
        official.shrink(patch)
        paths = official.write(folder)
        config = configured(paths, 4)
        config.mine.sizes = (official.SIZE,) * 5
        config.mine.rows = 400  # of the generator's 644
        with jax.numpy_dtype_promotion("standard"):  # optax.adam: 1 - decay**count
            experiment.run(config, folder / "run")
        yield config, paths, folder / "run"


def test_results(finished):
    _, _, workdir = finished
    results = load_json(workdir / "results.json")
    assert list(results["networks"]) == list(MODELS)
    assert results["images"] == 4 and set(results["units"]) == {"biggan256", *MODELS}
    assert results["units"]["clip_resnet50"] == 480 and results["units"]["mae_vitb16"] == 128
    mined = context.load_mined(workdir / "stages/mine")
    units = results["units"]["biggan256"]
    assert units == 644
    for name in MODELS:
        near = mined.nearest(("biggan256", name), 10)
        np.testing.assert_array_equal(near.rows, np.arange(units))
        np.testing.assert_array_equal(near.columns, np.arange(results["units"][name]))
        assert near.row_scores[:, 0].max() > 0.2
    own = mined.nearest(("biggan256", "biggan256"), 1)
    assert (own.row_partners[:, 0] != own.rows).all()
    assert set(results["inversion"]["methods"]) >= {"rosetta units", "random units", "pixels"}
    latents, _ = load_arrays(workdir / "stages/invert/inversion.safetensors")
    assert latents["rosetta units/latents"].shape == (3, 6)
    assert (workdir / "report.html").stat().st_size > 50_000
    # The sums of blocks are not left behind.
    assert not list((workdir / "stages/mine").glob("sums*"))


def test_blocks_are_kept(finished, tmp_path, capsys):
    """A stage that was stopped continues with the block it was at, and with the same results."""
    config, _, workdir = finished
    partial = tmp_path / "mine"
    shutil.copytree(workdir / "stages/mine", partial)
    (partial / context.MINED).unlink()
    (partial / "block1.safetensors").unlink()
    first = (partial / "block0.safetensors").stat().st_mtime_ns
    build.mine(ConfigDict({**config.mine, "seed": config.seed}), {}, partial)
    printed = capsys.readouterr().out
    assert "block 2 of 2" in printed and "block 1 of 2" not in printed
    assert (partial / "block0.safetensors").stat().st_mtime_ns == first
    found, expected = (
        load_arrays(folder / context.MINED)[0] for folder in (partial, workdir / "stages/mine")
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_replaced_checkpoints_are_mined_again(finished):
    config, paths, _ = finished
    before = checks.fingerprints(config)
    assert set(before) == {"generator.path", *(f"paths.{name}" for name in MODELS)}
    config = config.copy_and_resolve_references()
    config.mine.paths.dino_vitb16 = str(paths["mae_vitb16"])
    after = checks.fingerprints(config)
    assert {key for key in before if before[key] != after[key]} == {"paths.dino_vitb16"}


def test_checkpoints_of_other_networks_are_named(finished, tmp_path):
    config, paths, _ = finished
    config = config.copy_and_resolve_references()
    config.mine.paths.mae_vitb16 = str(paths["resnet50"])
    with pytest.raises(PortingError, match=r"resnet50-11ad3fa6.pth: source tensors that no rule"):
        experiment.run(config, tmp_path)
    config.mine.generator.path = str(paths["clip_resnet50"])
    with pytest.raises(PortingError, match=r"clip_rn50.safetensors: source tensors that no rule"):
        experiment.run(config, tmp_path)
    config.mine.generator.label = 300
    config.mine.generator.path = str(paths["biggan"])
    with pytest.raises(ValueError, match="class 300 of 300"):
        experiment.run(config, tmp_path)
    config.mine.paths.mae_vitb16 = "facebook/vit-mae-base"
    with pytest.raises(ConfigError, match="paths.mae_vitb16: 'facebook/vit-mae-base' is no file, "
                       "and the hub cannot be reached"):  # fmt: skip
        experiment.run(config, tmp_path)
